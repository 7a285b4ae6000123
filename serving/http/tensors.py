"""Tensors as clients write them: in JSON, flat or nested, or as raw bytes; and the other way round.

Nothing is modelled in pydantic: 3,136 numbers take 0.1 ms to parse as JSON, 0.1 ms to check and convert, and 2 us as bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serving.http.problems import bad_request, shown
from serving.records import DTYPES, TensorSpec

#: Types of JSON numbers that make an element, by the kind of NumPy's dtype.
_ELEMENTS = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}
_WORDS = {"b": "true or false", "u": "whole numbers from 0", "i": "whole numbers", "f": "numbers"}


def dtype_of(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of one of OIP's names; little-endian, as its bytes are sent."""
    return np.dtype(DTYPES[name]).newbyteorder("<")


def num_bytes(spec: TensorSpec, rows: int) -> int:
    """Return how many raw bytes some rows take."""
    return rows * math.prod(spec.shape) * dtype_of(spec.dtype).itemsize


def tensor_from_json(data: object, spec: TensorSpec, rows: int) -> Tensor:
    """Return ``(rows, *spec.shape)`` from JSON's numbers, row-major: one flat list, or lists nested as the shape says.

    Raises:
        Refused: If it is not that many numbers of that datatype.
    """
    shape, dtype = (rows, *spec.shape), dtype_of(spec.dtype)
    if not isinstance(data, list):
        raise bad_request("data", f"input {spec.name!r}: expected data as a list of numbers, got {shown(data)}")
    flat, kinds = _flattened(data, spec.name, shape)
    if len(flat) != math.prod(shape):
        raise bad_request(
            "data", f"input {spec.name!r}: expected {math.prod(shape)} elements for shape {list(shape)}, got {len(flat)}"
        )
    if not kinds <= _ELEMENTS[dtype.kind]:
        names = ", ".join(sorted(kind.__name__ for kind in kinds - _ELEMENTS[dtype.kind]))
        raise bad_request(
            "data", f"input {spec.name!r}: expected {_WORDS[dtype.kind]} for {spec.dtype}, got elements of JSON as: {names}"
        )
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        raise bad_request("data", f"input {spec.name!r}: expected numbers that {spec.dtype} can hold, got one beyond") from None
    return _checked(array, spec).reshape(shape)


def tensor_from_bytes(raw: memoryview, spec: TensorSpec, rows: int) -> Tensor:
    """Return ``(rows, *spec.shape)`` from exactly its bytes, little-endian and row-major; they are copied.

    Raises:
        Refused: If a value is not finite, or neither of the two bytes that are a BOOL.
    """
    dtype = dtype_of(spec.dtype)
    if dtype.kind == "b" and bool((np.frombuffer(raw, np.uint8) > 1).any()):
        raise bad_request("data", f"input {spec.name!r}: expected the bytes 0 and 1 for BOOL, got others")
    return _checked(np.array(np.frombuffer(raw, dtype)), spec).reshape((rows, *spec.shape))


def json_values(tensor: Tensor) -> list[Any]:
    """Return the elements of a tensor as one flat list; reading the numbers back gives the same tensor."""
    return tensor.reshape(-1).tolist()


def raw_bytes(tensor: Tensor) -> bytes:
    """Return the elements of a tensor as bytes, little-endian and row-major."""
    array = tensor.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def datatype(tensor: Tensor) -> str:
    """Return OIP's name of a tensor's dtype."""
    return _NAMES[str(tensor.dtype).removeprefix("torch.")]


_NAMES = {torch_name: name for name, torch_name in DTYPES.items()}


def _flattened(data: list[Any], name: str, shape: Sequence[int]) -> tuple[list[Any], set[type]]:
    """Return all elements and their types; the nesting, where there is any, must be the shape's."""
    kinds = set(map(type, data))
    if kinds != {list}:
        return data, kinds
    wrong = bad_request("data", f"input {name!r}: expected a flat list, or lists nested as the shape {list(shape)}")
    if len(data) != shape[0]:
        raise wrong
    for size in shape[1:]:
        if kinds != {list} or set(map(len, data)) != {size}:
            raise wrong
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    if list in kinds:
        raise wrong
    return data, kinds


def _checked(array: np.ndarray[Any, Any], spec: TensorSpec) -> Tensor:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise bad_request("data", f"input {spec.name!r}: expected finite numbers that {spec.dtype} can hold, got others")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
