"""The tensors of a ``.pt``: each checked against the bytes that there are, then copied out of the file; ties stay ties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unified.submission.pickle_machine import Global, Made, StorageRef
from unified.submission.refusal import RefusedModelError, refused
from unified.submission.umodel_format import MAX_RANK, MAX_TENSORS

_REMEDY = "save ordinary dense tensors of the CPU"

#: The classes of storages, as pickles name them, and the types of their elements.
_DTYPES = {
    Global("torch", name): dtype
    for name, dtype in {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }.items()
}
_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_MAX_NUMEL = 1 << 60
ORDERED_DICT = Global("collections", "OrderedDict")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where a tensor lies in its storage."""

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, int]:
        """The first byte that belongs to it, and the one behind its last."""
        if 0 in self.shape:
            return (0, 0)
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return (self.offset * self.dtype.itemsize, (self.offset + last + 1) * self.dtype.itemsize)


class StoredTensors:
    """Gives the tensors that a pickle describes; the same one for the same view of the same storage."""

    def __init__(self, storages: Mapping[str, memoryview]) -> None:
        self._storages = storages
        self._tensors: dict[View, Tensor] = {}
        self._fields: dict[View, str] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def tensor(self, field: str, described: Any) -> Tensor:
        """Return a tensor in memory of its own.

        Args:
            field: What it is called, for messages.
            described: What the pickle says of it; that of a parameter counts as its tensor's.

        Raises:
            RefusedModelError: If it is none, or not an ordinary dense one within the bytes of the file.
        """
        if is_parameter(described):
            described = parameter_data(field, described)[0]
        view = self._view(field, described)
        if view not in self._tensors:
            if len(self._tensors) >= MAX_TENSORS:
                raise _bad(field, f"at most {MAX_TENSORS} tensors", "more")
            self._fields[view] = field
            self._tensors[view] = _copy(self._storages[view.storage], view)
        return self._tensors[view]

    def check_overlaps(self) -> None:
        """Refuse tensors that share memory without being one: trained as separate tensors they would drift apart.

        Raises:
            RefusedModelError: If there are such.
        """
        by_place = sorted((view.storage, *view.extent, name) for view, name in self._fields.items() if 0 not in view.shape)
        for (storage, _, stop, name), (other_storage, start, _, other) in pairwise(by_place):
            if storage == other_storage and start < stop:
                given = f"{name!r} and {other!r}, which share memory but are not the same tensor"
                raise _bad(name, "tensors apart, or one under several names", given)

    def _view(self, field: str, made: Any) -> View:
        if not isinstance(made, Made) or made.maker != _TENSOR or made.is_new or made.state is not None:
            raise _bad(field, "an ordinary dense tensor", _named(made))
        if len(made.args) not in (6, 7) or not _is_empty_dict(made.args[5]):
            raise _bad(field, "a tensor without hooks", "one with hooks, or with too little said of it")
        if len(made.args) == 7 and made.args[6]:
            raise _bad(field, "a tensor without marks such as 'conjugated'", "one with such marks")
        storage, offset, shape, stride = made.args[:4]
        key, dtype = self._storage(field, storage)
        numbers = _sizes(offset, shape, stride)
        if numbers is None:
            raise _bad(field, f"sizes and strides of at most {MAX_RANK} dimensions", "others")
        view = View(storage=key, dtype=dtype, offset=numbers[0], shape=numbers[1], stride=numbers[2])
        if view.extent[1] > len(self._storages[key]):
            raise _bad(field, f"a tensor within its {len(self._storages[key])} bytes", f"one of shape {view.shape}")
        if not _is_apart(view):
            given = f"strides {view.stride} of shape {view.shape}: elements that lie on each other"
            raise _bad(field, "elements with a place of their own each", given, "save tensor.clone()")
        return view

    def _storage(self, field: str, ref: Any) -> tuple[str, torch.dtype]:
        """Return the key of a storage and the type of its elements."""
        args = ref.args if isinstance(ref, StorageRef) else ()
        if len(args) != 5 or args[0] != "storage" or not all(isinstance(part, str) for part in args[2:4]):
            raise _bad(field, "a storage in the file", _named(ref))
        _, kind, key, location, numel = args
        dtype = _DTYPES.get(kind) if isinstance(kind, Global) else None
        if dtype is None:
            raise _bad(field, f"a type of {sorted(map(str, _DTYPES.values()))}", _named(kind))
        if location == "meta" or key not in self._storages:
            raise _bad(field, "a storage whose data is in the file", f"one on {location[:50]!r} without data")
        size = len(self._storages[key])
        if type(numel) is not int or numel * dtype.itemsize != size or self._dtypes.setdefault(key, dtype) != dtype:
            count = numel if type(numel) is int else _named(numel)
            raise _bad(field, f"a storage of {size} bytes", f"{count} elements of {dtype}")
        return key, dtype


def is_parameter(described: Any) -> bool:
    """Return whether the pickle makes a parameter of this."""
    return isinstance(described, Made) and described.maker == _PARAMETER and not described.is_new


def parameter_data(field: str, made: Made) -> tuple[Any, bool]:
    """Return the description of a parameter's tensor, and whether it is trained.

    Raises:
        RefusedModelError: If it has hooks or attributes of its own.
    """
    args = made.args
    plain = len(args) == 3 and type(args[1]) is bool and _is_empty_dict(args[2]) and made.state is None and not made.items
    if not plain:
        raise _bad(field, "a plain parameter", "one with hooks or attributes of its own")
    return args[0], args[1]


def check_finite(field: str, tensor: Tensor) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        RefusedModelError: If there are such.
    """
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.aminmax(tensor.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            given = "NaN among them" if torch.isnan(low) else f"values from {low:g} to {high:g}"
            remedy = "save the weights of a model that has not diverged"
            raise refused("E-FINITE", field, "finite weights", given, remedy)


def can_be_shape(shape: Sequence[int]) -> bool:
    """Return whether PyTorch can count the elements: it multiplies the sizes though one of them be 0."""
    return math.prod(max(size, 1) for size in shape) <= _MAX_NUMEL


def _copy(storage: memoryview, view: View) -> Tensor:
    if 0 in view.shape:
        return torch.empty(view.shape, dtype=view.dtype)
    start, stop = view.extent
    source = torch.frombuffer(storage[start:stop], dtype=torch.uint8)
    count = (stop - start) // view.dtype.itemsize
    if count > math.prod(view.shape):  # with gaps: becomes contiguous, as nn.Module.to() would make it
        return source.clone().view(view.dtype).as_strided(view.shape, view.stride).clone()
    tensor = torch.empty_strided(view.shape, view.stride, dtype=view.dtype)
    tensor.as_strided((count,), (1,)).view(torch.uint8).copy_(source)
    return tensor


def _sizes(offset: Any, shape: Any, stride: Any) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride) or len(shape) > MAX_RANK:
        return None
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *stride)) or not can_be_shape(shape):
        return None
    return offset, shape, stride


def _is_apart(view: View) -> bool:
    """Return whether no two elements have one place: each stride leads over everything that is counted by smaller ones."""
    if 0 in view.shape:
        return True
    reach = 1
    for stride, size in sorted((stride, size) for size, stride in zip(view.shape, view.stride, strict=True) if size > 1):
        if stride < reach:
            return False
        reach += (size - 1) * stride
    return True


def _is_empty_dict(value: Any) -> bool:
    return isinstance(value, Made) and value.maker == ORDERED_DICT and not (value.args or value.items or value.state)


def _named(value: Any) -> str:
    if isinstance(value, Global):
        return str(value)
    return f"a {value.maker}" if isinstance(value, Made) else f"a {type(value).__name__}"


def _bad(field: str, expected: str, given: str, remedy: str = _REMEDY) -> RefusedModelError:
    return refused("E-TENSORS", field[:200], expected, given, remedy)
