"""Pruning-aware merging in one call from Python."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusion.merging.progress import Progress
from fusion.merging.settings import MergeSettings
from unified.cores import use_threads
from unified.device import parse_device
from unified.errors import UnifiedError
from unified.fusing.data_files import from_objects, read_data
from unified.fusing.parting import part
from unified.fusing.rows import Rows
from unified.fusing.session import examples_of
from unified.fusing.sources import read_results
from unified.fusing.tasks import output_key
from unified.fusing.threads import threads_kept
from unified.merging.session import Merged, answering, merge_jobs, merge_models
from unified.merging.settings import make_settings
from unified.merging.writing import check_room


def merge(  # noqa: PLR0913 - all but two by name
    models: Mapping[str, nn.Module] | Sequence[str | Path] | str | Path,
    data: Any = None,
    *,
    max_drop: float = 0.01,
    alpha: float | str = "auto",
    prune: str | None = "taylor",
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Merged:
    """Merge trained networks that take the same input into one that is cheap for every subset of their tasks.

    Neurons that tell little about the other tasks stay exclusive to their own; the rest are shared, and all are pruned for each
    task in turn. The models are not changed.

    Args:
        models: Trained modules by the name of their task, or the folders of finished jobs' results.
        data: Samples with labels of every task: ``(inputs, {"task": labels})``, or such by ``"train"``, ``"validation"`` and
            ``"test"``; or a path to them. None: the data that the jobs were trained and tested on.
        max_drop: How much of its score a task may lose on validation data: 0.01 is one point in a hundred.
        alpha: How much exclusive neurons may tell about other tasks, as a fraction of what their layer tells: small shares
            more. ``"auto"`` tries several and takes the one with the least FLOPs on average over the combinations of tasks.
        prune: ``"taylor"``, ``"vib"``, or None to merge only.
        out: New or empty folder for the models and the report; None writes nothing.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:0"``.
        threads: On a CPU, as many while this lasts; None: as many as PyTorch uses now.
        trust: Accept results whose model runs code when it is loaded.
        progress: Called with events of :mod:`fusion.merging.progress`.
        **settings: See :class:`fusion.merging.settings.MergeSettings`: ``baselines``, ``steps``, ``lr``, ``batch_size``,
            ``seed``, ``private``, ``alphas``, ``latency_batch``, ``regroup``.

    Returns:
        The merged network and the report.

    Raises:
        InvalidSubmission: With what is wrong with results or data.
        UnifiedError: If the models cannot be merged; the message says why.
    """
    if isinstance(alpha, str) and alpha != "auto":
        raise UnifiedError(f"alpha is a number or 'auto', got {alpha!r}")
    chosen = make_settings(max_drop=max_drop, alpha=None if isinstance(alpha, str) else alpha, prune=prune, **settings)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_room(folder, list(models) if isinstance(models, Mapping) else ())
    with threads_kept():
        if threads is not None:
            use_threads(threads)
        if isinstance(models, Mapping):
            return _merge_modules(models, data, chosen, out=folder, device=device, progress=progress)
        jobs = read_results([Path(path) for path in ([models] if isinstance(models, str | Path) else models)])
        given = None if data is None else _given(data, tuple(job.name for job in jobs))
        return merge_jobs(jobs, given, chosen, out=folder, device=device, trust=trust, progress=progress)


def _merge_modules(
    models: Mapping[str, nn.Module],
    data: Any,
    settings: MergeSettings,
    *,
    out: Path | None,
    device: str,
    progress: Progress | None,
) -> Merged:
    if data is None:
        raise UnifiedError("modules say nothing of their data: give samples as data=(inputs, {'task': labels, …})")
    given = _given(data, tuple(models))
    parts = part(given["train"], given.get("validation"), given.get("test"), seed=settings.seed)
    inputs = examples_of(parts)
    chosen = {
        name: answering(copy.deepcopy(model), output_key(name, model, inputs, None)).eval() for name, model in models.items()
    }
    where = torch.device(parse_device(device)[0])
    return merge_models(chosen, parts, settings, losses={}, out=out, device=where, progress=progress)


def _given(data: Any, names: tuple[str, ...]) -> dict[str, Rows]:
    return read_data(Path(data), names) if isinstance(data, str | Path) else from_objects(data, names)
