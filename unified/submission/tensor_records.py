"""Describe a module's parameters and buffers: names in the order of the state dict, types, shapes, ties."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unified.errors import ExportError
from unified.submission.umodel_format import STORED_DTYPES, TensorRecord
from unified.submission.umodel_names import name_fault

Kind = Literal["parameter", "buffer"]


def describe_tensors(model: nn.Module) -> tuple[tuple[TensorRecord, ...], dict[str, Tensor]]:
    """Return a record of each parameter and buffer, and the tensors that are to be stored (each tied one once).

    Raises:
        ExportError: If a name, a type or the way in which tensors share memory cannot be stored.
    """
    records: list[TensorRecord] = []
    own: dict[str, Tensor] = {}
    first_names: dict[int, str] = {}
    for name, tensor, kind, persistent in _tensors(model):
        _check_tensor(name, tensor)
        tie = first_names.get(id(tensor))
        if tie is None:
            first_names[id(tensor)] = name
            own[name] = tensor.detach()
        records.append(
            TensorRecord(
                name=name,
                kind=kind,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                requires_grad=tensor.requires_grad,
                persistent=persistent,
                tie=tie,
                order=_order(tensor),
            )
        )
    stored = [record.name for record in records if record.persistent]
    listed = list(model.state_dict())
    if stored != listed:
        odd = sorted(set(stored) ^ set(listed)) or "their order"
        raise ExportError(f"the state dict of {type(model).__name__} is not just its parameters and persistent buffers: {odd}")
    _check_overlaps(own)
    return tuple(records), own


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, Kind, bool]]:
    """Yield (name, tensor, kind, persistent) in the order of the state dict, with all names of what is tied or shared."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield dot + name, parameter, "parameter", True
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield dot + name, buffer, "buffer", name not in module._non_persistent_buffers_set


def _check_tensor(name: str, tensor: Tensor) -> None:
    fault = name_fault(name)
    if fault is not None:
        raise ExportError(f"the name {name!r} cannot be stored: {fault}; rename it")
    if is_lazy(tensor):
        raise ExportError(f"{name!r} has no shape yet: call the model once before exporting it")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in STORED_DTYPES:
        raise ExportError(f"{name!r} is of type {tensor.dtype}; accepted are {sorted(STORED_DTYPES)}")
    if tensor.is_sparse or tensor.is_nested or tensor.is_meta:
        raise ExportError(f"{name!r} is not an ordinary dense tensor")


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Return the dimensions from outermost to innermost in memory."""
    dims = range(tensor.ndim)
    if tensor.is_contiguous():
        return tuple(dims)
    return tuple(sorted(dims, key=lambda dim: -tensor.stride(dim)))


def _check_overlaps(tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that share memory without being one: trained as separate tensors they would drift apart."""
    extents = []
    for name, tensor in tensors.items():
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            extents.append((start, start + (last + 1) * tensor.element_size(), name))
    extents.sort()
    for (_, stop, name), (start, _, other) in pairwise(extents):
        if start < stop:
            raise ExportError(
                f"{name!r} and {other!r} share memory but are not the same tensor; "
                f"assign one to the other, so that they are tied"
            )
