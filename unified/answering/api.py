"""Stacking in one call from Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from unified.answering.members import Answerer, of_modules, read_answerers
from unified.answering.session import Stacked, inputs_for, repeated, stack_members
from unified.cores import use_threads
from unified.device import parse_device
from unified.errors import UnifiedError
from unified.fusing.threads import choose_threads, threads_kept


def stack(  # noqa: PLR0913 - all but two by name
    models: Mapping[str, nn.Module] | Sequence[nn.Module | str | Path] | str | Path,
    inputs: Any = None,
    *,
    one_input: bool = False,
    out: str | Path | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    threads: int | str | None = None,
    trust: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Stacked:
    """Make one module of trained models of one architecture that answers for all of them at once.

    Answers are compared with those of each model alone before anything is returned or written. The models are not changed.

    Args:
        models: Modules, by name or in order; or results, job folders and model files, or a folder of such.
        inputs: A batch that the models take: a tensor, a tuple of positional ones or a dict of named ones; a list has one
            such for each member. None: the jobs' own samples, or what the files say that they take.
        one_input: The module takes one input, ``(batch, ...)``, for all members; else one each, ``(members, batch, ...)``.
        out: The ``.pt2`` to write; beside it goes a ``.json``.
        batch_size: Samples to measure with; None: as many as there are in ``inputs``, or the first job's batch size.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:0"``; None: where the modules are, the CPU for files.
        threads: On a CPU, as many while this lasts, or ``"auto"``: as many as the models are fastest with; None: as many as
            PyTorch uses now.
        trust: Accept model files that run their own code when loaded.
        progress: Told in a few words what is being done.

    Returns:
        The module, the stack that it was made of, and what was measured.

    Raises:
        InvalidSubmission: With what is wrong with the files.
        UnifiedError: If the models are not of one architecture or cannot be exported; the message says why.

    Example:
        >>> import torch, unified
        >>> models = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in range(3)]
        >>> stacked = unified.stack(models, torch.randn(16, 4), one_input=True)
        >>> stacked.module(torch.randn(5, 4)).shape, stacked.report.relative_difference < 1e-5
        (torch.Size([3, 5, 2]), True)
    """
    tell = progress or (lambda _: None)
    most = torch.get_num_threads()
    path = None if out is None else checked_file(Path(out))
    with threads_kept():
        if threads is not None:
            use_threads(threads if isinstance(threads, int) else 1)  # helper threads are made when they get cores of their own
        members = find_members(models, trust=trust, tell=tell)
        if not members:
            raise UnifiedError("expected at least one model, got none")
        notes: tuple[str, ...] = ()
        if inputs is None:
            batches, notes = inputs_for(members, batch_size, one_input=one_input)
        else:
            batches = _given(inputs, len(members), batch_size, one_input=one_input)
        where = _device(members, device)
        moved = pytree.tree_map(lambda value: value.to(where), batches)
        if device is not None:
            members = [replace(member, model=_moved(member, where)) for member in members]
        if threads == "auto" and where.type == "cpu":
            _choose_threads(members, moved[0], most)
        return stack_members(members, moved, one_input=one_input, out=path, notes=notes, tell=tell)


def find_members(models: Any, *, trust: bool, tell: Callable[[str], None]) -> list[Answerer]:
    """Return what is to be stacked, loaded."""
    if isinstance(models, str | Path):
        models = [models]
    if isinstance(models, Mapping) or all(isinstance(model, nn.Module) for model in models):
        return of_modules(models)
    tell("reading models")
    return read_answerers([Path(model) for model in models], trust=trust)


def checked_file(out: Path) -> Path:
    """Return where the archive goes.

    Raises:
        UnifiedError: If it is not called so.
    """
    if out.suffix != ".pt2":
        raise UnifiedError(f"expected a file that ends in .pt2 for the stack, got {out.name!r}")
    return out


def _given(inputs: Any, num_members: int, batch_size: int | None, *, one_input: bool) -> list[Any]:
    batches = inputs if isinstance(inputs, list) else [inputs] * num_members
    if len(batches) != num_members:
        raise UnifiedError(f"expected inputs for each of {num_members} models, got {len(batches)}")
    if one_input:
        batches = [batches[0]] * num_members
    return batches if batch_size is None else [repeated(each, batch_size) for each in batches]


def _choose_threads(members: Sequence[Answerer], inputs: Any, most: int) -> None:
    if not isinstance(inputs, tuple):
        choose_threads([member.model for member in members], inputs, len(pytree.tree_leaves(inputs)[0]), most=most)


def _moved(member: Answerer, device: torch.device) -> nn.Module:
    """Return the model on a device; a caller's own stays where it is."""
    own = member.model if member.source is not None else copy.deepcopy(member.model)
    return own.to(device)


def _device(members: Sequence[Answerer], device: str | None) -> torch.device:
    if device is not None:
        return torch.device(parse_device(device)[0])
    return next((value.device for value in members[0].model.parameters()), torch.device("cpu"))
