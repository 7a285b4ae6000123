"""Operators along given dimensions: sums, softmax, sorting, gathering. The dimensions are counted after the members'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from fusion.stacking.arguments import argument, shifted
from fusion.stacking.dispatch import APART, Rule, StackMode
from fusion.stacking.rules_pointwise import aligned
from fusion.stacking.stacked_tensor import StackedTensor

ALL = object()


def _along(position: int, default: Any = ALL, name: str = "dim") -> Rule:
    """Make the rule of an operator whose dimensions are argument ``position``; ``default`` as PyTorch has it."""

    def rule(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if type(x) is not StackedTensor:
            return mode.each(func, args, kwargs)
        if x.is_split:
            return mode.each(func, args, kwargs, way=APART)
        dim = argument(args, kwargs, position, name, "axis", default=None if default is ALL else default)
        if dim is None and default is not ALL:
            return mode.each(func, args, kwargs)
        if isinstance(dim, bool) or (not isinstance(dim, int | tuple | list | None)):
            return mode.each(func, args, kwargs)  # e.g. max(a, b)
        if dim is None or dim in ((), []):
            if x.dim() == 0:
                return mode.each(func, args, kwargs)
            dim = tuple(range(x.dim()))
            func = func.overloadpacket if isinstance(func, OpOverload) else func  # another overload takes dimensions
        if x.dim() == 0:
            return mode.each(func, args, kwargs)
        rest = {key: _merged(value, x) for key, value in kwargs.items() if key not in {name, "axis"}}
        before = (x.merged(), *(_merged(value, x) for value in args[1:position]))
        after = tuple(_merged(value, x) for value in args[position + 1 :])
        if after:
            return _wrapped(func(*before, shifted(dim), *after, **rest))
        moved = shifted(dim)
        return _wrapped(func(*before, **{name: (moved,) if name == "dims" and isinstance(moved, int) else moved}, **rest))

    return rule


def _total(name_of_one: str) -> Rule:
    """Make the rule of an operator that takes one dimension or none: without one it goes over all, flattened."""
    along = _along(1, default=0)

    def rule(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        x = args[0]
        has_dim = len(args) > 1 or "dim" in kwargs
        if type(x) is not StackedTensor or x.is_split or (len(args) > 1 and isinstance(args[1], Tensor)):
            return (
                _two(mode, func, args, kwargs)
                if len(args) > 1 and isinstance(args[1], Tensor)
                else _split(mode, func, args, kwargs)
            )
        if has_dim:
            return along(mode, func, args, kwargs)
        flat = x.merged().reshape(mode.num_members, -1)
        result = getattr(flat, name_of_one)(1, **kwargs)
        return _wrapped(result if isinstance(result, Tensor) else result[0])

    return rule


def _split(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return mode.each(func, args, kwargs, way=APART)


def _two(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``max(a, b)``: elementwise after all."""
    ndim = max(args[0].dim(), args[1].dim())
    return StackedTensor.of(func(aligned(args[0], ndim), aligned(args[1], ndim), **kwargs))


def _merged(value: Any, like: StackedTensor) -> Any:
    """Return an argument beside ``like``: an index or a source of the same number of dimensions."""
    if type(value) is StackedTensor:
        return aligned(value, like.dim())
    if isinstance(value, Tensor) and value.dim() == like.dim() and value.dim() > 0:
        return value.unsqueeze(0).expand(like.num_members, *value.shape)
    return value


def _wrapped(result: Any) -> Any:
    if isinstance(result, Tensor):
        return StackedTensor.of(result)
    items = [StackedTensor.of(item) for item in result]
    kind = type(result)
    return kind(items) if hasattr(kind, "n_fields") else tuple(items)


def _index_select(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    x, dim, index = args[0], argument(args, kwargs, 1, "dim"), argument(args, kwargs, 2, "index")
    if type(x) is not StackedTensor or type(index) is StackedTensor or x.is_split:
        return mode.each(func, args, kwargs)
    return StackedTensor.of(x.merged().index_select(shifted(dim), index))


def _diagonal(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``tril`` and ``triu`` work on the last two dimensions anyway."""
    return StackedTensor.of(func(args[0].merged(), *args[1:], **kwargs))


#: operator -> position and default of its dimensions
_DIMS: dict[str, tuple[int, Any]] = {
    "sum": (1, ALL), "mean": (1, ALL), "nansum": (1, ALL), "nanmean": (1, ALL), "amax": (1, ALL), "amin": (1, ALL),
    "std": (1, ALL), "var": (1, ALL), "std_mean": (1, ALL), "var_mean": (1, ALL), "logsumexp": (1, ALL),
    "count_nonzero": (1, ALL), "linalg_vector_norm": (2, ALL),
    "softmax": (1, 0), "log_softmax": (1, 0), "softmin": (1, 0), "_softmax": (1, 0), "_log_softmax": (1, 0),
    "_safe_softmax": (1, 0),
    "cumsum": (1, 0), "cumprod": (1, 0), "logcumsumexp": (1, 0), "glu": (1, -1), "flip": (1, 0), "sort": (1, -1),
    "argsort": (1, -1), "topk": (2, -1), "kthvalue": (2, -1), "roll": (2, None), "gather": (1, 0), "take_along_dim": (2, None),
    "scatter": (1, 0), "scatter_add": (1, 0), "cummax": (1, 0), "cummin": (1, 0),
}  # fmt: skip

RULES: dict[str, Rule] = (
    {
        name: _along(position, default, "dims" if name in {"flip", "roll"} else "dim")
        for name, (position, default) in _DIMS.items()
    }
    | {name: _total(name) for name in ("max", "min", "argmax", "argmin", "prod", "all", "any", "median", "nanmedian")}
    | {"index_select": _index_select, "tril": _diagonal, "triu": _diagonal}
)
