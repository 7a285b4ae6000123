"""What variants are made of: a multi-task network out of a file, a job's result, a fusion, a merge, or Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.merging import saving as merged_files
from fusion.merging.errors import MergeError
from fusion.merging.merged import MergedNetwork
from fusion.timer import evaluating
from serving.building import argument_names
from unified.admission import ModelForm
from unified.errors import UnifiedError
from unified.fusing.examples import example_of_data, find_model, umodel_example
from unified.random_state import preserved_random_state
from unified.submission.models import load_model, recognise
from unified.submission.umodel_format import InputRecord
from unified.submission.umodel_read import read_manifest

_MERGED, _FUSED_STEPS, _UMODEL = "merged", "tree.json", "model.umodel"
NUM_EXAMPLES = 2


class ParentKind(StrEnum):
    """Where a parent comes from, which decides what is made of it unless more is said."""

    NETWORK = "network"  #: a .umodel or a module: trained here
    RESULT = "result"  #: of a job: trained already
    FUSED = "fused"
    MERGED = "merged"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parent:
    """A multi-task network.

    Attributes:
        name: What its family is called by default.
        kind: Where it comes from.
        module: Gives ``{task: tensor}``.
        inputs: Names of its inputs if it takes them by name, else None.
        names: What clients may call its inputs, None if nobody has named them.
        tasks: Names of its outputs.
        merged: The network that ``module`` was cut from, if it was merged.
    """

    name: str
    kind: ParentKind
    module: nn.Module
    inputs: tuple[str, ...] | None
    tasks: tuple[str, ...]
    names: tuple[str, ...] | None = None
    merged: MergedNetwork | None = None


class ByPosition(nn.Module):
    """A module that takes its inputs by name, called by position."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *inputs: Tensor) -> Any:
        """Return the module's output."""
        return self.module(**dict(zip(self.names, inputs, strict=True)))


def read_parent(path: Path, *, trust: bool) -> Parent:
    """Read a parent from disk.

    Raises:
        InvalidSubmission: If there is no model, it is damaged or needs trust that it does not have.
        UnifiedError: If it does not answer tasks by name.
    """
    if not path.exists():
        raise UnifiedError(
            f"{path}: expected a .umodel, the result of a job, or what 'unified fuse' or 'unified merge' wrote; got"
            " nothing there; check the path"
        )
    name = _family_name(path)
    if (path / _MERGED).is_dir():
        try:
            merged = merged_files.load(path / _MERGED)
        except MergeError as error:
            raise UnifiedError(f"{path / _MERGED}: {error}") from error
        return of_merged(merged, name)
    is_fused = (path / _FUSED_STEPS).is_file()
    if is_fused and not (path / _UMODEL).is_file():
        raise UnifiedError(
            f"{path}: expected {_UMODEL} beside {_FUSED_STEPS}, as 'unified fuse' writes it; there is none: the notes in "
            "its report.json say why"
        )
    source = find_model(path / _UMODEL if is_fused else path)
    ref = recognise(source.file, job=name, trust=trust, staged=False, architecture=source.architecture)
    module = load_model(ref, job=name)
    kind = ParentKind.FUSED if is_fused else ParentKind.NETWORK if path.is_file() else ParentKind.RESULT
    is_umodel = ref.form is ModelForm.UMODEL
    example = umodel_example(source.file, NUM_EXAMPLES) if is_umodel else example_of_data(source, NUM_EXAMPLES)
    names = tuple(record.name for record in _by_position(source.file)) if is_umodel else None
    return of_module(module, example, name=name, kind=kind, names=names)


def of_merged(merged: MergedNetwork, name: str) -> Parent:
    """Return a merged network as a parent."""
    whole = merged.specialize(merged.tasks)
    return Parent(name=name, kind=ParentKind.MERGED, module=whole, inputs=None, tasks=merged.tasks, merged=merged)


def of_module(
    module: nn.Module,
    example: Any,
    *,
    name: str,
    kind: ParentKind = ParentKind.NETWORK,
    names: tuple[str, ...] | None = None,
) -> Parent:
    """Return a module as a parent.

    Args:
        module: Any that gives ``{task: tensor}``.
        example: A few samples: a tensor, several in a tuple, or by name.
        name: Of the family.
        kind: Where it comes from.
        names: What clients may call its inputs; by default what its ``forward`` calls them.

    Raises:
        UnifiedError: If it does not take the samples, or does not answer tasks by name.
    """
    if not isinstance(module, nn.Module):
        raise UnifiedError(f"{name}: expected a torch.nn.Module, a merged network or a path, got a {type(module).__name__}")
    by_name = tuple(example) if isinstance(example, Mapping) else None
    inputs = tuple(example.values()) if isinstance(example, Mapping) else (example,) if isinstance(example, Tensor) else example
    called = module if by_name is None else ByPosition(module, by_name)
    with torch.no_grad(), preserved_random_state(), evaluating(module):
        try:
            output = called(*inputs)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UnifiedError(f"{name}: the network does not take its samples: {reason}") from error
    if not isinstance(output, Mapping) or not all(isinstance(value, Tensor) for value in output.values()):
        raise UnifiedError(
            f"{name}: expected a network that returns a dict with a tensor for each task, got a {type(output).__name__}; "
            "return {'task': output, …} from its forward"
        )
    names = by_name or names or argument_names(module)
    return Parent(name=name, kind=kind, module=called, inputs=by_name, tasks=tuple(map(str, output)), names=names)


def _by_position(path: Path) -> list[InputRecord]:
    return sorted(read_manifest(path).inputs, key=lambda record: record.position or 0)


def _family_name(path: Path) -> str:
    """Return a path's last part as a family may be called; that of its folder for a ``model.umodel``."""
    path = path.resolve()
    stem = path.parent.name if path.stem == "model" else path.stem if path.is_file() else path.name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("_.-") or "family"
