"""Finished jobs as the folders that a run leaves: what was trained, on which data, with which result. Free of torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unified.admission import DatasetRef
from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.job import JobSpec
from unified.job_state import JobState

RESULT = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedJob:
    """A job that was trained, as its result tells of it.

    Attributes:
        name: What its task will be called.
        folder: Where its result is.
        model: Its trained model: a file that may need trust, one of weights whose architecture is the job's, or a folder.
        spec: What was handed in.
        metrics: The last row of its metrics; what was not finite is left out.
        train: Its training data, None where the result does not say.
        test: Its test data, None without any.
    """

    name: str
    folder: Path
    model: Path
    spec: JobSpec
    metrics: dict[str, float]
    train: DatasetRef | None
    test: DatasetRef | None


def read_results(folders: Sequence[Path], tasks: Sequence[str] = ()) -> list[FinishedJob]:
    """Read the results of jobs, checked but for their models.

    Args:
        folders: Each a result (a folder with ``result.json``) or a folder of results, as ``unified run --out`` leaves it.
        tasks: Names of the jobs that are wanted, in order; all if empty.

    Returns:
        At least two jobs of different names.

    Raises:
        InvalidSubmission: With everything that is wrong.
    """
    problems: list[Problem] = []
    found: dict[Path, FinishedJob] = {}
    for folder in folders:
        try:
            found |= {path: read_result(path) for path in result_folders(folder)}
        except InvalidSubmission as error:
            problems += error.problems
    if problems:
        raise InvalidSubmission(problems)
    return _at_least_two(named_apart(_chosen(list(found.values()), tasks)))


def result_folders(folder: Path) -> list[Path]:
    """Return ``folder`` if it is a result, else the results in it, by name.

    Raises:
        InvalidSubmission: If it is neither.
    """
    if (folder / RESULT).is_file():
        return [folder.resolve()]
    found = sorted(path.parent.resolve() for path in folder.glob(f"*/{RESULT}")) if folder.is_dir() else []
    if found:
        return found
    given, remedy = "nothing there", "check the path: give the folders that 'unified run --out DIR' wrote"
    if (folder / "job.json").is_file():
        given, remedy = (
            "a job folder, which is not trained yet",
            "train it first: unified run FOLDER --out DIR (--fuse does both)",
        )
    elif folder.is_dir():
        given = f"a folder without {RESULT}: a job that is not finished, or no job at all"
    raise _refused(folder.name, str(folder), f"the result of a finished job, a folder with {RESULT}", given, remedy)


def read_result(folder: Path) -> FinishedJob:
    """Read one result.

    Raises:
        InvalidSubmission: If it is damaged, or of a job that did not finish or whose model is not a file.
    """
    path = folder / RESULT
    expected = f"a {RESULT} as 'unified run' writes it"
    try:
        content = json.loads(path.read_bytes())
        name, state, job = str(content["name"]), content["state"], content["job"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        given = f"{type(error).__name__}: {error}"
        raise _refused(folder.name, str(path), expected, given, "train the job again") from None
    if state != JobState.FINISHED:
        raise _refused(name, str(path), "a job that finished", f"one that is {state}", "train it again, or leave it out")
    spec = JobSpec.parse(job, job=name, asks_torch=False)
    datasets = content.get("datasets") or {}
    return FinishedJob(
        name=name,
        folder=folder,
        model=_model_file(name, folder, spec),
        spec=spec,
        metrics={key: value for key, value in content.get("metrics", {}).items() if isinstance(value, int | float)},
        train=_dataset(datasets.get("train")),
        test=_dataset(datasets.get("test")),
    )


def _model_file(name: str, folder: Path, spec: JobSpec) -> Path:
    weights = folder / "model.safetensors"
    if weights.is_file() and (folder / "config.json").is_file():
        return folder  # as save_pretrained writes one
    if weights.is_file() and spec.architecture is not None:
        return weights
    found = [path for suffix in (".umodel", ".pt", ".pth", ".pt2") if (path := folder / f"model{suffix}").is_file()]
    found += sorted(path for path in folder.glob("model.*") if path.suffix not in {".safetensors", ".log"})
    if found:
        return found[0]
    raise _refused(
        name,
        str(folder),
        "the trained model beside result.json",
        "weights only, as for a module handed in from Python",
        "in Python, where the module is, call unified.fuse({name: module, …}, data) or unified.stack([module, …], inputs)",
    )


def _dataset(content: dict[str, Any] | None) -> DatasetRef | None:
    """Return the dataset that a result names; older results name none."""
    if not content:
        return None
    reference = DatasetRef(**content)
    return replace(reference, path=Path(reference.path))


def named_apart(jobs: Sequence[FinishedJob]) -> list[FinishedJob]:
    """Return the jobs with names that tasks may have, each its own: other marks than ``_`` and ``-`` become ``_``."""
    named: dict[str, FinishedJob] = {}
    for job in jobs:
        name = base = re.sub(r"[^A-Za-z0-9_-]", "_", job.name)
        number = 1
        while name in named:
            number += 1
            name = f"{base}-{number}"
        named[name] = replace(job, name=name)
    return list(named.values())


def _chosen(jobs: list[FinishedJob], tasks: Sequence[str]) -> list[FinishedJob]:
    missing = [name for name in tasks if all(job.name != name for job in jobs)]
    if missing:
        there = ", ".join(dict.fromkeys(job.name for job in jobs))
        raise UnifiedError(f"--tasks {missing[0]!r} is none of the jobs there; there are: {there or 'none'}")
    return [job for name in dict.fromkeys(tasks) for job in jobs if job.name == name] if tasks else jobs


def _at_least_two(jobs: list[FinishedJob]) -> list[FinishedJob]:
    if len(jobs) < 2:
        given = f"only {jobs[0].name!r}" if jobs else "none"
        raise UnifiedError(f"models share parts with each other: expected two finished jobs or more, got {given}")
    return jobs


def _refused(job: str, field: str, expected: str, given: str, remedy: str) -> InvalidSubmission:
    return InvalidSubmission([Problem(code="E-FUSE", job=job, field=field, expected=expected, given=given, remedy=remedy)])
