"""The samples that fusion needs: what the jobs were trained and tested on, or data that was given for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion.search.data import FusionData, Part, SealedPart
from unified.admission import DatasetRef
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission, Problem
from unified.fusing.parting import Parts, part
from unified.fusing.rows import Rows, join, make_rows, signature, signature_refused
from unified.fusing.sources import FinishedJob


def gather(jobs: Sequence[FinishedJob], given: Mapping[str, Rows] | None, *, seed: int) -> Parts:
    """Return the three parts of the data.

    Args:
        jobs: Whose models are to be fused.
        given: Rows by part that take the place of the jobs' own data, or None.
        seed: Of what is set aside.

    Raises:
        InvalidSubmission: If a job's data is not where it was.
        UnifiedError: If the jobs' inputs are not alike.
    """
    if given is None:
        trained = [own_rows(job, job.train, "training") for job in jobs]
        _check_signatures(jobs, trained)
        tested = [own_rows(job, job.test, "test") for job in jobs if job.test is not None]
        given = {"train": join(trained)} | ({"test": join(tested)} if tested else {})
    return part(given["train"], given.get("validation"), given.get("test"), seed=seed)


def own_rows(job: FinishedJob, dataset: DatasetRef | None, which: str) -> Rows:
    """Return the rows of one of a job's own datasets, with its targets as labels of its task.

    Raises:
        InvalidSubmission: If the data is not where it was; it says to give some.
    """
    if dataset is None:
        raise _gone(job, which, "a result that does not say where they are, of an older version")
    if not dataset.path.is_file():
        raise _gone(job, which, f"nothing at {str(dataset.path)!r} (handed in as {dataset.source!r})")
    try:
        data = load_tensors(dataset)
    except InvalidSubmission as error:
        raise _gone(job, which, f"at {str(dataset.path)!r} {error.problems[0].given}") from None
    return make_rows(data.inputs, {job.name: data.targets})


def as_fusion_data(parts: Parts) -> FusionData:
    """Return the parts as a search takes them, the test part sealed."""
    return FusionData(
        train=Part(inputs=parts.train.inputs, labels=parts.train.labels),
        validation=Part(inputs=parts.validation.inputs, labels=parts.validation.labels),
        test=SealedPart(Part(inputs=parts.test.inputs, labels=parts.test.labels)) if len(parts.test) else None,
    )


def groups_of(jobs: Sequence[FinishedJob]) -> list[list[FinishedJob]]:
    """Group jobs whose training data has inputs of one signature, in the order of the first of each group."""
    groups: dict[tuple[object, ...], list[FinishedJob]] = {}
    for job in jobs:
        if job.train is None or not Path(job.train.path).is_file():
            continue
        found = tuple(signature(load_tensors(job.train).inputs).items())
        groups.setdefault(found, []).append(job)
    return list(groups.values())


def _check_signatures(jobs: Sequence[FinishedJob], rows: Sequence[Rows]) -> None:
    first = rows[0]
    for job, other in zip(jobs[1:], rows[1:], strict=True):
        if signature(other.inputs) != signature(first.inputs):
            raise signature_refused(jobs[0].name, first.inputs, job.name, other.inputs)


def _gone(job: FinishedJob, which: str, given: str) -> InvalidSubmission:
    problem = Problem(
        code="E-FUSE",
        job=job.name,
        field=f"{which} data",
        expected="the samples that the job was handed in with",
        given=given,
        remedy="give samples with --data DIR (in Python: data=…); labels are not needed",
    )
    return InvalidSubmission([problem])
