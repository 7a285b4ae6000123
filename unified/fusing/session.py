"""One fusion from sources to files: tasks and data are read, a search is run, and what came out is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fusion.graph.errors import FusionError
from fusion.graph.tree import FusedTree
from fusion.search.config import Config
from fusion.search.progress import Event
from fusion.search.report import FusionReport
from fusion.search.search import run
from fusion.search.tasks import Task
from unified.dataset_problems import Inputs
from unified.device import parse_device
from unified.errors import UnifiedError
from unified.fusing.cotrain import co_train
from unified.fusing.gathering import as_fusion_data, gather
from unified.fusing.parting import Parts
from unified.fusing.rows import Rows, map_inputs
from unified.fusing.sources import FinishedJob
from unified.fusing.tasks import task_of
from unified.fusing.writing import write_outcome

NUM_EXAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fusion:
    """What came out of a fusion.

    Attributes:
        module: The fused model of the first threshold, in evaluation mode: it returns a dict by task, and
            ``module(inputs, tasks=["a"])`` computes only what that task needs.
        report: What was searched and found.
        folder: Where its files are, or None.
        notes: What was done to the data, and what could not be written.
    """

    module: FusedTree
    report: FusionReport
    folder: Path | None
    notes: tuple[str, ...] = ()


def fuse_jobs(  # noqa: PLR0913 - all but three by name
    jobs: Sequence[FinishedJob],
    given: Mapping[str, Rows] | None,
    config: Config,
    *,
    device: str,
    trust: bool,
    onnx: bool = False,
    progress: Callable[[Event], None] | None = None,
    prepare: Callable[[Sequence[Task], Parts, torch.device], None] | None = None,
) -> Fusion:
    """Fuse the models of finished jobs and write what comes out to ``config.out``.

    Args:
        jobs: At least two.
        given: Rows by part instead of the jobs' own data, or None.
        config: How to search.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:N"``.
        trust: Whether model files that run code when they are loaded are accepted.
        onnx: Write an ONNX file too.
        progress: Told what happens.
        prepare: Called with the tasks, the data and the device before anything is measured.

    Raises:
        InvalidSubmission: With what is wrong with a model or its data.
        UnifiedError: If the models cannot be fused; the message says why.
    """
    where = torch.device(parse_device(device)[0])
    parts = gather(jobs, given, seed=config.seed)
    tasks = [task_of(job, examples_of(parts), trust=trust) for job in jobs]
    if prepare is not None:
        prepare(tasks, parts, where)
    return fuse_tasks(tasks, parts, config, device=where, onnx=onnx, progress=progress)


def fuse_tasks(
    tasks: Sequence[Task],
    parts: Parts,
    config: Config,
    *,
    device: torch.device,
    onnx: bool = False,
    progress: Callable[[Event], None] | None = None,
) -> Fusion:
    """Search, and write what comes out; see :func:`fuse_jobs`."""
    notes = parts.notes
    try:
        report = run(tasks, as_fusion_data(parts), config, cotrain=co_train, progress=progress, device=device)
        if config.out is not None:
            examples = map_inputs(examples_of(parts), lambda tensor: tensor.to(device))
            notes += write_outcome(report, config.out, examples, onnx=onnx)
    except FusionError as error:
        raise UnifiedError(str(error)) from error
    return Fusion(module=report.module, report=report, folder=config.out, notes=notes)


def examples_of(parts: Parts) -> Inputs:
    """Return a few samples' inputs."""
    return first_rows(parts, NUM_EXAMPLES)


def first_rows(parts: Parts, count: int) -> Inputs:
    """Return the inputs of the first training samples, at most ``count``."""
    return parts.train.take(torch.arange(min(count, len(parts.train)))).inputs
