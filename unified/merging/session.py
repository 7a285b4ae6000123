"""One merge from finished jobs to files: models and labelled samples are read, merged, and what came out is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.merged import MergedNetwork
from fusion.merging.pipeline import MergeOutcome, run
from fusion.merging.progress import Progress
from fusion.merging.records import MergeReport
from fusion.merging.samples import MergeData, Samples
from fusion.merging.settings import MergeSettings
from unified.device import parse_device
from unified.errors import UnifiedError
from unified.fusing.gathering import gather
from unified.fusing.parting import Parts
from unified.fusing.rows import Rows, has_label, signature_text
from unified.fusing.session import examples_of
from unified.fusing.sources import FinishedJob
from unified.fusing.tasks import task_of
from unified.merging.labels import check_outputs, fitting_labels
from unified.merging.writing import write_outcome
from unified.quantities import plural

Key = str | int | None
Prepare = Callable[[Sequence[nn.Module], Parts, torch.device], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """What came out of a merge.

    Attributes:
        network: Answers any of the tasks: ``network(inputs, tasks=["a"])``; a dict by task.
        report: What it costs and how good it is, for every combination of tasks.
        folder: Where its files are, or None.
        notes: What was done to the data, and what could not be written.
        alone: With ``baselines=True`` each model pruned alone, which can be the cheapest: a copy of the module given with
            narrower layers, or a plain one; by task.
    """

    network: MergedNetwork
    report: MergeReport
    folder: Path | None
    notes: tuple[str, ...] = ()
    alone: Mapping[str, nn.Module] = field(default_factory=dict)

    def module(self, *tasks: str) -> nn.Module:
        """Return a plain module for some tasks, all if none is named: exact sizes, a dict by task, exportable.

        Raises:
            UnifiedError: A task is unknown.
        """
        try:
            return self.network.specialize(tasks or self.network.tasks).eval()
        except MergeError as error:
            raise UnifiedError(str(error)) from error


def merge_jobs(  # noqa: PLR0913 - all but three by name
    jobs: Sequence[FinishedJob],
    given: Mapping[str, Rows] | None,
    settings: MergeSettings,
    *,
    out: Path | None,
    device: str,
    trust: bool,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
) -> Merged:
    """Merge the models of finished jobs.

    Args:
        jobs: At least two.
        given: Rows by part instead of the jobs' own data, or None.
        settings: Of the merge.
        out: Where files go; None writes none.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:N"``.
        trust: Whether model files that run code when they are loaded are accepted.
        progress: Told what happens.
        prepare: Called with the models, the data and the device before anything is trained.

    Raises:
        InvalidSubmission: With what is wrong with a model or its data.
        UnifiedError: If the models cannot be merged; the message says why.
    """
    where = torch.device(parse_device(device)[0])
    parts = gather(jobs, given, seed=settings.seed)
    tasks = [task_of(job, examples_of(parts), trust=trust) for job in jobs]
    models = {task.name: answering(task.model, task.output) for task in tasks}
    if prepare is not None:
        prepare(list(models.values()), parts, where)
    losses = {job.name: job.spec.loss.name for job in jobs}
    return merge_models(models, parts, settings, losses=losses, out=out, device=where, progress=progress)


def merge_models(
    models: Mapping[str, nn.Module],
    parts: Parts,
    settings: MergeSettings,
    *,
    losses: Mapping[str, str],
    out: Path | None,
    device: torch.device,
    progress: Progress | None = None,
) -> Merged:
    """Merge models that answer one tensor each, and write what comes out.

    Args:
        models: By task; they are moved to the device.
        parts: Of the data.
        settings: Of the merge.
        losses: By task the name of the loss that its model was trained with, where that is known.
        out: Where files go; None writes none.
        device: Where to train.
        progress: Told what happens.

    Raises:
        UnifiedError: If they cannot be merged; the message says why.
    """
    data = merge_data(models, parts, losses, device)
    placed = {task: model.to(device) for task, model in models.items()}
    try:
        outcome: MergeOutcome = run(placed, data, settings, progress=progress)
        notes = parts.notes
        if out is not None:
            notes += write_outcome(outcome, out, data.train.inputs[:4], notes)
    except MergeError as error:
        raise UnifiedError(f"{error}{_elsewhere(str(error))}") from error
    return Merged(network=outcome.network, report=outcome.report, folder=out, notes=notes, alone=outcome.alone)


def merge_data(models: Mapping[str, nn.Module], parts: Parts, losses: Mapping[str, str], device: torch.device) -> MergeData:
    """Return the samples of the three parts, each with a label of every task.

    Raises:
        UnifiedError: Inputs or labels that merging cannot use; the message says which.
    """
    inputs = parts.train.inputs
    if not isinstance(inputs, Tensor):
        raise UnifiedError(f"merging takes models of one input tensor; got {signature_text(inputs)}")
    named = {"training": parts.train, "validation": parts.validation, "test": parts.test}
    problems = [problem for which, rows in named.items() if len(rows) for problem in _unlabelled(rows, models, which)]
    if problems:
        raise UnifiedError("\n".join(problems))
    outputs = {task: _answer(model, inputs[:2]) for task, model in models.items()}
    check_outputs(outputs, parts.train.labels, losses)
    train, validation, test = (
        Samples(
            inputs=rows.inputs.to(device) if isinstance(rows.inputs, Tensor) else torch.empty(0),
            labels={task: fitting_labels(outputs[task], rows.labels[task], losses.get(task)).to(device) for task in models}
            if len(rows)
            else {},
        )
        for rows in named.values()
    )
    return MergeData(train=train, validation=validation, test=test if len(parts.test) else None)


def answering(model: nn.Module, key: Key) -> nn.Module:
    """Return a model that answers one tensor: itself, or with the part of its output that counts."""
    return model if key is None else _Answering(model, key)


class _Answering(nn.Module):
    """Answers with one part of a model's output."""

    def __init__(self, model: nn.Module, key: str | int) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, inputs: Tensor) -> Any:
        """Return the part."""
        return self.model(inputs)[self.key]


def _elsewhere(said: str) -> str:
    """Name what does share between networks that cannot be merged."""
    if "no corresponding layer" not in said and "unsupported layer" not in said:
        return ""
    return (
        "\nmerging shares neurons of layers that are alike from the input on; --tasks merges only some of the models, "
        "and 'unified fuse' shares blocks between networks of any architecture"
    )


def _unlabelled(rows: Rows, tasks: Mapping[str, object], which: str) -> list[str]:
    """Say which tasks lack labels."""
    said = []
    for task in tasks:
        labels = rows.labels.get(task)
        missing = len(rows) if labels is None else int((~has_label(labels)).sum())
        if missing:
            said.append(
                f"task {task!r}: {missing} of {plural(len(rows), f'{which} sample')} have no label of it; merging measures "
                "what neurons tell about every task's labels: give samples that all tasks have labels for, with --data "
                "(in Python: data=(inputs, {'task': labels, …}))"
            )
    return said


def _answer(model: nn.Module, inputs: Tensor) -> Tensor:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was = model.training
    with torch.no_grad():
        answer = model.eval()(inputs.to(device))
    model.train(was)
    return answer.cpu()
