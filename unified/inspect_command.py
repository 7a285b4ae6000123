"""What ``unified inspect`` does: says what a job folder holds, or everything that is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unified.admission import DatasetRef, Submission
from unified.engine import Engine
from unified.errors import InvalidSubmission, Problem
from unified.listeners import json_line
from unified.messages import Inspected
from unified.run_command import EXIT_DONE, EXIT_ERROR, check_folders
from unified.stage_table import stage_table
from unified.summary import finite
from unified.tables import members_table, submission_table
from unified.terminal import line_writer, make_console, show


def inspect(folder: Path, *, trust: bool, as_json: bool) -> int:
    """Print what ``folder`` holds and return the exit code.

    Raises:
        InvalidSubmission: With everything that is wrong with it; with ``as_json`` it is printed instead.
    """
    found = _inspected(folder, trust=trust)
    problems = [problem for member in found for problem in member.problems]
    if as_json:
        line_writer(sys.stdout)(json_line(finite(_to_json(found, problems))))
        return EXIT_ERROR if problems else EXIT_DONE
    first = found[0]
    if first.submission is not None:
        if _is_sweep(first):
            show(make_console(), members_table([(each.submission, each.step_seconds) for each in found if each.submission]))
        show(make_console(), submission_table(first.submission, first.step_seconds))
    if first.stages:
        show(make_console(), stage_table(first.stages))
    if problems:
        raise InvalidSubmission(problems)
    return EXIT_DONE


def _inspected(folder: Path, *, trust: bool) -> tuple[Inspected, ...]:
    try:
        check_folders([folder])
        with Engine(trust=trust) as engine:
            return engine.inspect_folder(folder)
    except InvalidSubmission as error:
        return (Inspected(folder=folder, submission=None, problems=error.problems, step_seconds=None),)


def _is_sweep(found: Inspected) -> bool:
    """Whether what was read is the first member of a sweep, and not a job of its own."""
    submission = found.submission
    return submission is not None and submission.spec.from_sweep is not None


def _to_json(found: Sequence[Inspected], problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the first job, which of a sweep stands for what all have in common, and the members of a sweep."""
    first = _one_to_json(found[0])
    members = {"members": [_one_to_json(member) for member in found]} if _is_sweep(found[0]) else {}
    stages = [asdict(outcome) | {"stage": outcome.stage.name.lower()} for outcome in found[0].stages]
    told = [_problem_to_json(problem) for problem in problems]
    return {"folder": str(found[0].folder), **first, **members, "stages": stages, "problems": told}


def _one_to_json(found: Inspected) -> dict[str, Any]:
    submission = found.submission
    return {} if submission is None else _submission_to_json(submission) | {"step_seconds": found.step_seconds}


def _submission_to_json(submission: Submission) -> dict[str, Any]:
    return {
        "name": submission.name,
        "user": submission.spec.user,
        "sweep": None if submission.spec.from_sweep is None else submission.spec.from_sweep.model_dump(mode="json"),
        "model": {
            "file": submission.model.path.name,
            "form": submission.model.form,
            "sha256": submission.model.sha256,
        },
        "train": _dataset_to_json(submission.train),
        "test": _dataset_to_json(submission.test) if submission.test else None,
        "num_epochs": submission.num_epochs,
        "num_steps": submission.num_steps,
        "batch_size": submission.spec.batch_size,
        "estimate": asdict(submission.estimate),
    }


def _dataset_to_json(dataset: DatasetRef) -> dict[str, Any]:
    return asdict(dataset) | {"path": str(dataset.path)}


def _problem_to_json(problem: Problem) -> dict[str, str]:
    return asdict(problem)
