"""Elementwise operators: once over all members' values, in whatever layout these are."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import APART, Rule, StackMode, mark_aliases, name_of
from fusion.stacking.stacked_tensor import StackedTensor

#: What PyTorch does not tag as elementwise and is, for our purposes.
ALSO_POINTWISE = (
    "to", "float", "double", "half", "bfloat16", "int", "long", "short", "bool", "type", "type_as", "cpu", "cuda", "_to_copy",
    "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "requires_grad_", "zeros_like", "ones_like", "full_like",
    "empty_like", "copy_", "fill_", "zero_", "masked_fill", "masked_fill_", "where", "rdiv", "rpow",
    "positive", "nan_to_num", "clamp", "clip", "clamp_", "true_divide", "multiply", "divide", "subtract", "square", "absolute",
    "negative", "isnan", "isfinite", "isinf", "float_power", "hardtanh", "hardtanh_", "relu6", "selu", "celu",
    "threshold",
    "logsigmoid", "softsign", "tanhshrink", "hardshrink", "softshrink", "silu", "mish", "hardswish", "hardsigmoid", "gelu",
    "softplus", "pow", "addcmul", "addcdiv", "lerp", "conj", "resolve_conj", "resolve_neg", "imag", "real",
    "data", "logical_not", "get data", "get real", "maximum", "minimum", "fmax", "fmin", "dequantize",
    "relu", "relu_",
)  # fmt: skip


#: Among them those whose result may lie in the memory of their input.
MAY_BE_VIEWS = frozenset({
    "to", "float", "double", "half", "bfloat16", "int", "long", "short", "bool", "type", "type_as", "cpu", "cuda", "detach",
    "alias", "lift_fresh", "positive", "conj", "resolve_conj", "resolve_neg", "imag", "real", "data", "get data", "get real",
    "get imag",
})  # fmt: skip


def pointwise(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Compute an elementwise operator."""
    name = name_of(func)
    if name.endswith("_") and not name.endswith("__"):
        return _in_place(mode, func, args, kwargs)
    if _inplace_flag(func, args, kwargs):
        args, kwargs = _without_flag(func, args, kwargs)
        result = pointwise(mode, func, args, kwargs)
        return overwrite(args[0], result)
    return _computed(mode, func, args, kwargs)


def _computed(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    stacked = [value for value in _flat(args, kwargs) if type(value) is StackedTensor]
    if _belongs_apart(stacked):
        return mode.each(func, args, kwargs, way=APART)
    if name_of(func) in MAY_BE_VIEWS:
        for value in stacked:
            value.close_up()
    ndim = max(value.dim() for value in _flat(args, kwargs))
    args = tuple(aligned(value, ndim) if isinstance(value, Tensor) else value for value in args)
    if kwargs:
        kwargs = {key: aligned(value, ndim) if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    result = func(*args, **kwargs)
    is_relaid = any(value.is_relaid for value in stacked)
    if not isinstance(result, Tensor):
        return tuple(map(StackedTensor.of, result))
    made = StackedTensor.of(result, is_relaid=is_relaid)
    if name_of(func) in MAY_BE_VIEWS:
        mark_aliases(made, stacked)
    return made


def aligned(value: Tensor, ndim: int) -> Tensor:
    """Return all members' values with as many dimensions as ``ndim`` asks of one member, to be broadcast against others."""
    if type(value) is not StackedTensor:
        return value
    merged = value.merged()
    missing = ndim + 1 - merged.dim()
    if missing <= 0:
        return merged
    return merged.reshape(merged.shape[0], *[1] * missing, *merged.shape[1:])


def _belongs_apart(stacked: Sequence[StackedTensor]) -> bool:
    """Whether the biggest operand lies apart."""
    if not any(value.is_split for value in stacked):
        return False
    return max(stacked, key=lambda value: math.prod(value.shape)).is_split  # Size.numel would fix a batch size that is traced


def _in_place(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """A write in place: the tensor stands for the new values from now on, and where others see its memory, that is written."""
    target = args[0]
    outer = _outer(func)
    if not must_be_written(target) and outer is not None:
        return overwrite(target, _computed(mode, outer, args, kwargs))
    if target.is_split:
        return mode.each(func, args, kwargs, way=APART)
    ndim = target.dim()
    func(*(aligned(value, ndim) if isinstance(value, Tensor) else value for value in args), **kwargs)
    return target.become(target.merged(), is_relaid=target.is_relaid)


def must_be_written(target: StackedTensor) -> bool:
    """Whether other values will not do: others see the memory, or the history of gradients is to stay as it is."""
    return target.is_aliased or (target.requires_grad and not torch.is_grad_enabled())


def overwrite(target: Any, result: StackedTensor) -> Any:
    """Let ``target`` stand for ``result``."""
    if must_be_written(target) or target.dtype != result.dtype or target.shape != result.shape:
        _true_copy(target, result)
        return target
    return (
        target.become_parts(result.parts()) if result.is_split else target.become(result.merged(), is_relaid=result.is_relaid)
    )


def _true_copy(target: StackedTensor, result: StackedTensor) -> None:
    if target.is_split:
        for into, value in zip(target.parts(), result.parts(), strict=True):
            into.copy_(value)
        target.become_parts(target.parts())
    else:
        target.become(target.merged().copy_(result.merged()), is_relaid=target.is_relaid)


@functools.lru_cache(maxsize=1024)
def _outer(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the operator that gives as a new tensor what ``func`` writes in place; None if there is none."""
    name = name_of(func).removesuffix("_")
    if name in {"copy", "fill", "zero", "requires_grad"}:
        return None
    if isinstance(func, OpOverload):
        return _outer_overload(func, name)
    return getattr(torch.Tensor, name, None)


def _outer_overload(func: OpOverload, name: str) -> OpOverload | None:
    """Return the overload of ``name`` that takes what ``func`` takes; its own name may be another."""
    packet = getattr(torch.ops.aten, name, None)
    wanted = [str(each.type) for each in func._schema.arguments]
    for overload in packet.overloads() if packet is not None else ():
        found: OpOverload = getattr(packet, overload)
        if [str(each.type) for each in found._schema.arguments] == wanted:
            return found
    return None


@functools.lru_cache(maxsize=1024)
def _flag_position(func: Callable[..., Any]) -> int | None:
    if isinstance(func, OpOverload) or not isinstance(func, types.FunctionType):
        return None
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    return names.index("inplace") if "inplace" in names else None


def _inplace_flag(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> bool:
    position = _flag_position(func)
    if position is None:
        return False
    return bool(args[position] if len(args) > position else kwargs.get("inplace", False))


def _without_flag(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    position = _flag_position(func)
    assert position is not None, "only asked where there is a flag"
    if len(args) > position:
        args = (*args[:position], False, *args[position + 1 :])
    return args, {key: value for key, value in kwargs.items() if key != "inplace"}


def _flat(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _contiguous(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Nothing, or a copy whose memory is in the order that it would have alone."""
    x = args[0]
    if x.is_split or len(args) > 1 or kwargs:
        return mode.each(func, args, kwargs, way=APART)
    x.close_up()
    return x if x.any_part().is_contiguous() else StackedTensor.of(x.merged().contiguous())


def _converted(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``to`` and ``clone``: elementwise, unless they ask for another order in memory."""
    if kwargs.get("memory_format", torch.preserve_format) is torch.preserve_format:
        return pointwise(mode, func, args, kwargs)
    return mode.each(func, args, kwargs, way=APART)


def _masked_fill(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``masked_fill`` takes a number, which may be each member's own."""
    x, mask, value = args[0], argument(args, kwargs, 1, "mask"), argument(args, kwargs, 2, "value")
    if type(value) is not StackedTensor:
        return pointwise(mode, func, args, kwargs)
    filled = _computed(mode, torch.where, (mask, value.to(x.dtype) if value.dtype != x.dtype else value, x), {})
    return overwrite(x, filled) if name_of(func) == "masked_fill_" else filled


RULES: dict[str, Rule] = {
    **dict.fromkeys((*ALSO_POINTWISE, "pointwise"), pointwise),
    **dict.fromkeys(("to", "clone", "_to_copy"), _converted),
    **dict.fromkeys(("masked_fill", "masked_fill_"), _masked_fill),
    "contiguous": _contiguous,
}
