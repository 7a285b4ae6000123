"""Reading an operator's arguments, whether they came by position or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MISSING: Any = object()


def argument(args: tuple, kwargs: dict[str, Any], position: int, *names: str, default: Any = MISSING) -> Any:
    """Return an argument by position or by one of its names.

    Raises:
        TypeError: If it is not there and has no default.
    """
    if len(args) > position:
        return args[position]
    for name in names:
        if name in kwargs:
            return kwargs[name]
    if default is MISSING:
        raise TypeError(f"missing argument {names[0]!r}")
    return default


def spread(args: tuple, kwargs: dict[str, Any], position: int, *names: str) -> tuple:
    """Return sizes or dimensions that may be given as one sequence or one by one: ``view(2, 3)``, ``view((2, 3))``."""
    if len(args) > position:
        first = args[position]
        return tuple(first) if isinstance(first, Sequence) else tuple(args[position:])
    given = argument(args, kwargs, position, *names)
    return tuple(given) if isinstance(given, Sequence) else (given,)


def shifted(dim: Any) -> Any:
    """Return a dimension (or several) of a member's tensor as one of all members' values: counted from the end it stays."""
    if dim is None:
        return None
    if isinstance(dim, tuple | list):
        return tuple(map(shifted, dim))
    return dim + 1 if dim >= 0 else dim
