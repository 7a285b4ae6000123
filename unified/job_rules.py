"""What must hold between the fields of a job, each rule with the fields that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath

from unified.errors import Problem
from unified.job_parts import ArchitectureSpec, DataSpec, EarlyStopping, LRSchedulerSpec
from unified.job_problems import describe, did_you_mean
from unified.metrics import HIGHER_IS_BETTER, METRIC_NAMES


def length_problems(job: str, epochs: int | None, max_steps: int | None) -> Iterator[Problem]:
    """Yield a problem unless exactly one of the two says how long to train."""
    if epochs is None and max_steps is None:
        yield Problem(
            code="E-MISSING",
            job=job,
            field="epochs",
            expected="epochs or max_steps",
            given="neither",
            remedy="say how long to train, e.g. with epochs 3",
        )
    if epochs is not None and max_steps is not None:
        yield Problem(
            code="E-VALUE",
            job=job,
            field="max_steps",
            expected="epochs or max_steps",
            given=f"epochs {epochs} and max_steps {max_steps}",
            remedy="leave out one of them",
        )


def metric_problems(job: str, metrics: tuple[str, ...]) -> Iterator[Problem]:
    """Yield the metrics that there are not, and those asked for twice."""
    for index, name in enumerate(metrics):
        field = f"metrics[{index}]"
        if name not in METRIC_NAMES:
            remedy = did_you_mean(name, METRIC_NAMES, f"use one of {', '.join(METRIC_NAMES)}")
            yield Problem(code="E-NAME", job=job, field=field, expected="a metric", given=describe(name), remedy=remedy)
        elif name in metrics[:index]:
            yield Problem(
                code="E-VALUE",
                job=job,
                field=field,
                expected="each metric once",
                given=describe(name),
                remedy="remove it",
            )


def early_stopping_problems(
    job: str, early_stopping: EarlyStopping | None, metrics: tuple[str, ...], data: DataSpec
) -> Iterator[Problem]:
    """Yield a problem if what training is to be stopped by will not be measured."""
    if early_stopping is None:
        return
    name, field = early_stopping.metric, "early_stopping.metric"
    given = describe(name)
    if name not in HIGHER_IS_BETTER:
        remedy = did_you_mean(name, HIGHER_IS_BETTER, f"use one of {', '.join(HIGHER_IS_BETTER)}")
        yield Problem(code="E-NAME", job=job, field=field, expected="a metric or a loss", given=given, remedy=remedy)
        return
    if name in METRIC_NAMES and name not in metrics:
        expected, remedy = "one of the job's metrics", f"add {name!r} to metrics"
        yield Problem(code="E-VALUE", job=job, field=field, expected=expected, given=given, remedy=remedy)
    if name != "train_loss" and data.test is None:
        expected, remedy = "train_loss, as there is no test set", "name one in data.test"
        yield Problem(code="E-VALUE", job=job, field=field, expected=expected, given=given, remedy=remedy)


def data_problems(job: str, data: DataSpec) -> Iterator[Problem]:
    """Yield what is said about tables or text where there are none."""
    if data.tokenizer is not None and data.columns is None:
        yield Problem(
            code="E-MISSING",
            job=job,
            field="data.columns",
            expected="the columns that hold the text and the targets",
            given="a tokenizer without columns",
            remedy="add data.columns",
        )
    if data.max_length is not None and data.tokenizer is None:
        yield Problem(
            code="E-MISSING",
            job=job,
            field="data.tokenizer",
            expected="the folder of a tokenizer",
            given="max_length without a tokenizer",
            remedy="add data.tokenizer, or leave out max_length",
        )
    if data.columns is not None and not isinstance(data.train, str):
        yield Problem(
            code="E-VALUE",
            job=job,
            field="data.columns",
            expected="null, as tensors have no columns",
            given=describe(data.columns.inputs),
            remedy="leave out columns, or name a table in data.train",
        )


def architecture_problems(job: str, architecture: ArchitectureSpec | None, model: object) -> Iterator[Problem]:
    """Yield what keeps an architecture from being one: a name of a library, or a list of layers, for a file of weights."""
    if architecture is None:
        return
    library, name, layers = architecture.library, architecture.name, architecture.layers
    faults: list[tuple[str, str, str, str, str]] = []
    if not isinstance(model, str):
        faults.append(("E-VALUE", "", "null, as an nn.Module says itself what it is", "an architecture", "leave it out"))
    if (library is None and name is None) == (layers is None):
        given = "neither" if layers is None else "both"
        faults.append(("E-VALUE", "", "either library and name, or layers", given, "give one of them"))
    elif layers is None and (library is None or name is None):
        missing = "name" if name is None else "library"
        faults.append(("E-MISSING", f".{missing}", "a library and a name that it knows", "nothing", "add it"))
    if architecture.arguments and library not in ("torchvision", "timm"):
        remedy = "write them into the layers, or into config.json"
        faults.append(("E-VALUE", ".arguments", "none", describe(architecture.arguments), remedy))
    for code, field, expected, given, remedy in faults:
        place = f"architecture{field}"
        yield Problem(code=code, job=job, field=place, expected=expected, given=given, remedy=remedy)


def schedule_problems(job: str, lr_scheduler: LRSchedulerSpec | None) -> Iterator[Problem]:
    """Yield a problem if a schedule that follows the epoch's loss is to be stepped more often."""
    if lr_scheduler is None or lr_scheduler.name != "ReduceLROnPlateau" or lr_scheduler.every == "epoch":
        return
    yield Problem(
        code="E-VALUE",
        job=job,
        field="lr_scheduler.every",
        expected='"epoch", as ReduceLROnPlateau follows the loss of an epoch',
        given=describe(lr_scheduler.every),
        remedy='write "epoch"',
    )


def relative_path_problems(job: str, paths: dict[str, str | None]) -> Iterator[Problem]:
    """Yield the paths, by field, that are absolute or lead upwards, on whatever system."""
    for field, path in paths.items():
        if path is None:
            continue
        windows, posix = PureWindowsPath(path), PurePosixPath(path)
        if windows.drive or windows.root or posix.root or ".." in windows.parts:
            yield Problem(
                code="E-PATH",
                job=job,
                field=field,
                expected="a path inside the job's folder",
                given=describe(path),
                remedy="put the file there and name it relative to job.json",
            )
