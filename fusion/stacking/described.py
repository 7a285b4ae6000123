"""Texts of plain attributes that are equal if, and as far as one can tell only if, the attributes are."""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_MAX_DEPTH = 8
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Description:
    """Describes attributes of a model's modules.

    Args:
        model: Its modules and tensors are described by their names, wherever they are met; others by their contents.

    Attributes:
        held: Names of the model's tensors that were met in attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.held: list[str] = []
        self._modules = {id(module): name or "the model" for name, module in model.named_modules()}
        self._tensors = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}

    def of(self, value: Any, depth: int = 0) -> str:
        """Return a text of numbers, names, containers, tensors by content, functions by code, objects by attributes."""
        if value is None or isinstance(value, _PLAIN):
            return repr(value)
        if depth > _MAX_DEPTH:
            return type(value).__qualname__
        if isinstance(value, Tensor | nn.Module):
            return self._tensor(value) if isinstance(value, Tensor) else self._module(value, depth)
        if isinstance(value, Mapping):
            return (
                "{" + ", ".join(f"{self.of(key, depth + 1)}: {self.of(item, depth + 1)}" for key, item in value.items()) + "}"
            )
        if isinstance(value, set | frozenset):
            return "{" + ", ".join(sorted(self.of(item, depth + 1) for item in value)) + "}"
        if isinstance(value, tuple | list):
            return "[" + ", ".join(self.of(item, depth + 1) for item in value) + "]"
        return self._callable(value, depth) or self._object(value, depth)

    def _tensor(self, value: Tensor) -> str:
        if id(value) in self._tensors:
            self.held.append(self._tensors[id(value)])
            return f"the tensor {self._tensors[id(value)]}"
        content = value.detach().cpu().contiguous().flatten()
        text = content.view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"tensor {tuple(value.shape)} {value.dtype} {hashlib.sha256(text).hexdigest()}"

    def _module(self, value: nn.Module, depth: int) -> str:
        """A module that is no submodule has no weights of the stack's: it is described by its contents."""
        if id(value) in self._modules:
            return f"the module {self._modules[id(value)]}"
        own = {key: item for key, item in vars(value).items() if key not in {"_parameters", "_buffers", "_modules"}}
        inner = (dict(value._parameters), dict(value._buffers), dict(value._modules))
        return f"{_name(type(value))}{self.of(own, depth + 1)}{self.of(inner, depth + 1)}"

    def _callable(self, value: Any, depth: int) -> str:
        """A function by its code and what it closes over, a method by its object, too; empty for what is none."""
        if isinstance(value, functools.partial):
            return f"partial {self.of((value.func, value.args, value.keywords), depth + 1)}"
        if isinstance(value, types.MethodType):
            return f"method {_name(value.__func__)} of {self.of(value.__self__, depth + 1)}"
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
            inside = (value.__defaults__, value.__kwdefaults__, cells)
            code = hashlib.sha256(_code(value.__code__)).hexdigest()[:16]
            return f"{_name(value)} {code}{self.of(inside, depth + 1) if any(inside) else ''}"
        return _name(value) if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")) else ""

    def _object(self, value: Any, depth: int) -> str:
        slots = {key: getattr(value, key) for kind in type(value).__mro__ for key in _slots(kind) if hasattr(value, key)}
        attributes = {**getattr(value, "__dict__", {}), **slots}
        if attributes:
            return _name(type(value)) + self.of(attributes, depth + 1)
        try:
            parts = value.__reduce_ex__(4)
        except TypeError:  # it cannot be pickled
            return _name(type(value)) + _ADDRESS.sub("", repr(value))
        inside = (
            [part if isinstance(part, tuple | dict) else list(part or ()) for part in parts[1:5]] if parts is not str else []
        )
        return _name(type(value)) + self.of(inside, depth + 1)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _code(code: types.CodeType) -> bytes:
    """Return what a function does, wherever it is written."""
    constants = [_code(each) if isinstance(each, types.CodeType) else repr(each).encode() for each in code.co_consts]
    return code.co_code + repr((code.co_names, code.co_freevars)).encode() + b"|".join(constants)
