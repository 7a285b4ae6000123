"""Arguments of operators as JSON and back, checked on the way in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

#: What stands in JSON for a value of the graph, by its kind: the index of a node or input, the name of a tensor, the device.
REFERENCES = frozenset({"node", "input", "tensor", "device"})
_DEVICE = "input"  # programs run where their first input is

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
_SYMBOLS: Mapping[str, Mapping[str, Any]] = {
    "dtype": _DTYPES,
    "layout": {"strided": torch.strided},
    "memory_format": {
        "contiguous_format": torch.contiguous_format,
        "preserve_format": torch.preserve_format,
        "channels_last": torch.channels_last,
    },
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
}
_LARGEST = 1 << 63
_DEEPEST = 4
_LONGEST = 200  # characters of a string: modes and equations


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that is known only when a program runs."""

    kind: str
    target: int | str


def encode(value: Any, refer: Callable[[fx.Node], dict[str, Any]]) -> Any:
    """Return a node's argument as JSON.

    Args:
        value: The argument.
        refer: Gives what stands for another node.

    Raises:
        ValueError: If it has no spelling.
    """
    if isinstance(value, fx.Node):
        return refer(value)
    if isinstance(value, list | tuple):
        return [encode(item, refer) for item in value]
    if value is None or isinstance(value, bool | str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return {"float": str(value)}
    if isinstance(value, torch.device):
        return {"device": _DEVICE}
    for kind, spellings in _SYMBOLS.items():
        for name, known in spellings.items():
            if type(value) is type(known) and value == known:
                return {kind: name}
    raise ValueError(f"an argument {value!r} cannot be stored")


def decode(value: Any, depth: int = 0) -> Any:
    """Return an argument with a :class:`Reference` for each value that is known only when the program runs.

    Raises:
        ValueError: If it is none of what :func:`encode` gives.
    """
    if depth > _DEEPEST:
        raise ValueError("lists are too deep")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return _decode_symbol(value)
    if isinstance(value, str) and len(value) > _LONGEST:
        raise ValueError("a string is too long")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"a number is too large: {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"unknown argument {value!r}")


def references(value: Any) -> Iterator[Reference]:
    """Yield the references in a decoded argument."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def _decode_symbol(value: dict[str, Any]) -> Any:
    if len(value) != 1:
        raise ValueError(f"expected one entry in {value!r}")
    ((kind, target),) = value.items()
    if kind in REFERENCES:
        wanted = int if kind in ("node", "input") else str
        if type(target) is not wanted or (kind == "device" and target != _DEVICE):
            raise ValueError(f"unknown {kind} {target!r}")
        return Reference(kind, target)
    if kind not in _SYMBOLS or not isinstance(target, str) or target not in _SYMBOLS[kind]:
        raise ValueError(f"unknown argument {value!r}")
    return _SYMBOLS[kind][target]
