"""Files of weights without their model, tensors only: read by name, one at a time, each checked against what the file says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified.submission.pickle_machine import Made
from unified.submission.refusal import refused
from unified.submission.safetensors_part import entries_of, parse_header, read_tensor
from unified.submission.saved_values import in_words, mapping
from unified.submission.stored_tensors import StoredTensors, can_be_shape
from unified.submission.torch_file import TorchFile, map_file
from unified.submission.umodel_format import (
    DTYPES,
    MAX_RANK,
    MAX_TENSORS,
    STORED_DTYPES,
)

_BY_STORED_NAME = {stored: name for name, stored in STORED_DTYPES.items()}
MAX_NAME = 1000

_FLAT = "save a flat mapping: torch.save(model.state_dict(), path)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A stored tensor: its type and shape, and how to read it into memory of its own."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.numel * self.dtype.itemsize


def torch_weights(file: TorchFile, field: str) -> dict[str, Weight]:
    """Return the tensors of a ``.pt`` that holds a flat mapping of names to tensors.

    Raises:
        RefusedModelError: If it holds anything else.
    """
    named = mapping(file.root)
    if named is None:
        given = "a list" if isinstance(file.root, list | tuple) else in_words(file.root)
        raise refused("E-TENSORS", field, "a mapping of names to tensors", given, _FLAT)
    nested = [key for key, value in named.items() if not isinstance(value, Made) or mapping(value) is not None]
    if nested:
        given = f"{in_words(nested[0])}, which is {in_words(named[nested[0]])[:80]}"
        raise refused("E-TENSORS", field, "a mapping of names to tensors, and nothing in it but tensors", given, _FLAT)
    check_names(named, field)
    tensors = StoredTensors(file.storages)
    found = {name: tensors.tensor(f"{field}: {name}", described) for name, described in named.items()}
    tensors.check_overlaps()
    return {
        name: Weight(dtype=tensor.dtype, shape=tuple(tensor.shape), read=lambda tensor=tensor: tensor)
        for name, tensor in found.items()
    }


def safetensors_weights(path: Path) -> dict[str, Weight]:
    """Return the tensors of a safetensors file, which stays mapped until they are read.

    Raises:
        MalformedError: If its header is none, or the tensors do not fill the file one after another.
        RefusedModelError: If a name is not allowed.
        OSError: If it cannot be read.
    """
    content = map_file(path)
    header, begin = parse_header(content)
    if len(header) > MAX_TENSORS:
        raise refused("E-TENSORS", path.name, f"at most {MAX_TENSORS} tensors by name", f"{len(header)}", "write it again")
    check_names(header, path.name)
    expected = {name: _said(path.name, name, record) for name, record in header.items()}
    entries = entries_of(header, begin, len(content), expected)
    return {
        name: Weight(dtype=DTYPES[entry.dtype], shape=entry.shape, read=lambda entry=entry: read_tensor(content, entry, None))
        for name, entry in entries.items()
    }


def check_names(names: Iterable[Any], field: str) -> None:
    """Refuse names that no module could have.

    Raises:
        RefusedModelError: If there are such.
    """
    for name in names:
        sound = isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()
        if not sound or any(not part or part.startswith("__") for part in name.split(".")):
            given = repr(str(name)[:80])
            raise refused("E-TENSORS", field, "names that parameters and buffers can have", given, "rename it")


def _said(field: str, name: str, record: Any) -> tuple[str, tuple[int, ...]]:
    """Return the type and shape that the header gives a tensor."""
    dtype = _BY_STORED_NAME.get(str(record.get("dtype"))) if isinstance(record, Mapping) else None
    shape = record.get("shape") if isinstance(record, Mapping) else None
    whole = isinstance(shape, list) and len(shape) <= MAX_RANK and all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
    if dtype is None or not whole or not can_be_shape(shape or ()):
        expected = f"a type of {sorted(_BY_STORED_NAME)} and a shape of at most {MAX_RANK} dimensions"
        raise refused("E-TENSORS", f"{field}: {name[:80]}", expected, str(record)[:100], "write the file again")
    assert isinstance(shape, list), "checked above"
    return dtype, tuple(shape)
