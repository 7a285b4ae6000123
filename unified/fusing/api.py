"""Fusion in one call from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.search.config import Config, preset
from fusion.search.progress import Event
from fusion.search.tasks import Task
from unified.cores import use_threads
from unified.device import parse_device
from unified.errors import UnifiedError
from unified.fusing.data_files import from_objects, read_data
from unified.fusing.parting import Parts, part
from unified.fusing.rows import Rows
from unified.fusing.session import Fusion, examples_of, fuse_jobs, fuse_tasks
from unified.fusing.sources import read_results
from unified.fusing.tasks import output_key
from unified.fusing.threads import threads_kept


def fuse(  # noqa: PLR0913 - all but two by name
    models: Mapping[str, nn.Module] | Sequence[str | Path] | str | Path,
    data: Any = None,
    *,
    max_drop: float | Sequence[float] = 0.01,
    out: str | Path | None = None,
    scores: Mapping[str, Callable[[Tensor, Tensor], Any]] | None = None,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
    progress: Callable[[Event], None] | None = None,
    **settings: Any,
) -> Fusion:
    """Fuse trained models that take the same input into one module that answers all of them, faster.

    The models are not changed. They teach: the fused module learns to answer as they do, on inputs alone; labels, where there
    are any, only tell how good it is.

    Args:
        models: Trained modules by the name of their task, or the folders of finished jobs' results.
        data: Samples of the input: ``inputs``, ``(inputs, labels)`` with one tensor of labels for all tasks or a dict of
            them by task, or such by ``"train"``, ``"validation"`` and ``"test"``; or a path to them. None: the data that the
            jobs were trained and tested on.
        max_drop: How much of its score a task may lose: 0.01 is one point in a hundred. Of several, the first one's model is
            the result's ``module``; the report has the others.
        out: Folder for the model, the report and what the search needs to go on; None keeps nothing.
        scores: By task a function of (output, labels), higher is better; by default accuracy where labels are whole numbers,
            a job's own first metric, and else agreement with the model.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:0"``: where to train and measure.
        threads: On a CPU, as many while this lasts; None: as many as PyTorch uses now.
        trust: Accept results whose model runs code when it is loaded.
        progress: Called with events of :mod:`fusion.search.progress`.
        **settings: Of the search, see :class:`fusion.search.config.Config`: ``budget_seconds``, ``max_candidates``,
            ``seed``, ``policy``, ``metric``, ``label_free``, ``resume``, …; ``preset`` names a set of them.

    Returns:
        The fused module and the report.

    Raises:
        InvalidSubmission: With what is wrong with results or data.
        UnifiedError: If the models cannot be fused; the message says why.

    Example:
        >>> import torch, unified
        >>> _ = torch.manual_seed(0)
        >>> body = [torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU()]
        >>> models = {name: torch.nn.Sequential(*body, torch.nn.Linear(8, size)) for name, size in (("age", 3), ("mood", 2))}
        >>> fusion = unified.fuse(models, torch.randn(64, 4), max_candidates=2, measure_seconds=0.1)
        >>> {task: tuple(answer.shape) for task, answer in fusion.module(torch.randn(5, 4)).items()}
        {'age': (5, 3), 'mood': (5, 2)}
    """
    config = make_config(max_drop, out, settings)
    with threads_kept():
        if threads is not None:
            use_threads(threads)
        if isinstance(models, Mapping):
            return _fuse_modules(models, data, config, scores=scores or {}, device=device, progress=progress)
        folders = [models] if isinstance(models, str | Path) else list(models)
        jobs = read_results([Path(folder) for folder in folders])
        given = None if data is None else _given(data, tuple(job.name for job in jobs))
        return fuse_jobs(jobs, given, config, device=device, trust=trust, progress=progress)


def _fuse_modules(
    models: Mapping[str, nn.Module],
    data: Any,
    config: Config,
    *,
    scores: Mapping[str, Callable[[Tensor, Tensor], Any]],
    device: str,
    progress: Callable[[Event], None] | None,
) -> Fusion:
    if data is None:
        raise UnifiedError("modules say nothing of their data: give samples of their input as data; labels are not needed")
    given = _given(data, tuple(models))
    parts = part(given["train"], given.get("validation"), given.get("test"), seed=config.seed)
    where = torch.device(parse_device(device)[0])
    return fuse_tasks(_tasks(models, parts, scores), parts, config, device=where, progress=progress)


def make_config(max_drop: float | Sequence[float], out: str | Path | None, settings: Mapping[str, Any]) -> Config:
    """Return the settings of a search.

    Raises:
        UnifiedError: With what is wrong with them.
    """
    settings = dict(settings)
    name = settings.pop("preset", "full")
    thresholds = tuple(float(value) for value in ([max_drop] if isinstance(max_drop, int | float) else max_drop))
    try:
        return preset(name, thresholds=thresholds, out=None if out is None else Path(out), **settings)
    except FusionError as error:
        raise UnifiedError(str(error)) from error


def _given(data: Any, names: tuple[str, ...]) -> dict[str, Rows]:
    return read_data(Path(data), names) if isinstance(data, str | Path) else from_objects(data, names)


def _tasks(models: Mapping[str, nn.Module], parts: Parts, scores: Mapping[str, Callable[[Tensor, Tensor], Any]]) -> list[Task]:
    unknown = sorted(scores.keys() - models.keys())
    if unknown:
        raise UnifiedError(f"a score for {unknown[0]!r}, which is no task; there are: {', '.join(models)}")
    inputs = examples_of(parts)
    try:
        return [
            Task(name=name, model=model, output=output_key(name, model, inputs, None), score=scores.get(name))
            for name, model in models.items()
        ]
    except FusionError as error:
        raise UnifiedError(str(error)) from error
