"""Plain attributes that a model changes while it runs, such as a count of its calls: one for all members of a stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_INTERNAL = frozenset(nn.Module().__dict__)
_SIMPLE = (bool, int, float, complex, str, bytes, type(None))


def copy_attributes(source: nn.Module, into: nn.Module) -> None:
    """Give a model the numbers and texts that another one of its architecture has in its attributes."""
    for where, name, value in _changed(source, into):
        where.__dict__[name] = value


def changed_attribute(one: nn.Module, other: nn.Module) -> str | None:
    """Name a number or text in which two models of one architecture differ; None if there is none."""
    return next((f"{name}={value!r}, not {where.__dict__[name]!r}" for where, name, value in _changed(one, other)), None)


def _changed(source: nn.Module, into: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for ours, theirs in zip(source.modules(), into.modules(), strict=True):
        for name, value in vars(ours).items():
            if name in _INTERNAL or not isinstance(value, _SIMPLE) or name not in vars(theirs):
                continue
            held = vars(theirs)[name]
            if isinstance(held, _SIMPLE) and (held != value or type(held) is not type(value)):
                yield theirs, name, value
