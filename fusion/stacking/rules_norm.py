"""Normalisation: statistics per member, over its channels, its features or its running buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import APART, Rule, StackMode
from fusion.stacking.rules_conv import channels_of, members_of
from fusion.stacking.rules_pointwise import aligned
from fusion.stacking.stacked_tensor import StackedTensor


def _over_channels(function: Callable[..., Tensor], switch: str, *, default: bool) -> Rule:
    """Make the rule of a norm over channels with running statistics: all members' channels side by side, with theirs."""

    def rule(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        x, *vectors_and_rest = _norm_arguments(func, args, kwargs, (switch, default), ("momentum", 0.1), ("eps", 1e-5))
        vectors, rest = tuple(vectors_and_rest[:4]), vectors_and_rest[4:]
        if type(x) is not StackedTensor or any(each is not None and type(each) is not StackedTensor for each in vectors):
            return mode.each(func, args, kwargs)
        if x.is_split:
            return _each_with_rows(mode, function, x, vectors, rest)
        out = function(channels_of(x.merged()), *map(_side_by_side, vectors), *rest)
        return StackedTensor.of(members_of(out, mode.num_members), is_relaid=x.is_relaid)

    return rule


def _norm_arguments(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any], *rest: tuple[str, Any]) -> tuple[Any, ...]:
    """Return input, mean, variance, weight, bias and the rest: ``torch`` and ATen take weight and bias first, ``F`` last."""
    is_functional = getattr(func, "__module__", None) == F.__name__ and not isinstance(func, OpOverload)
    order = (
        ("running_mean", "running_var", "weight", "bias")
        if is_functional
        else ("weight", "bias", "running_mean", "running_var")
    )
    found = {name: argument(args, kwargs, i + 1, name, default=None) for i, name in enumerate(order)}
    others = [argument(args, kwargs, 5 + i, name, default=default) for i, (name, default) in enumerate(rest)]
    return (args[0], *(found[name] for name in ("running_mean", "running_var", "weight", "bias")), *others)


def _side_by_side(vectors: StackedTensor | None) -> Tensor | None:
    """Return all members' vectors as one; a view of a buffer, so that running statistics are written where they are kept."""
    return None if vectors is None else vectors.merged().reshape(-1)


def _each_with_rows(
    mode: StackMode, function: Callable[..., Tensor], x: StackedTensor, vectors: tuple[Any, ...], rest: list[Any]
) -> StackedTensor:
    """Member by member; statistics are rows of the buffers, written where they are kept."""
    mode.ways["batch_norm", APART] += 1
    mean, variance, weight, bias = vectors
    statistics = [[None] * mode.num_members if each is None else [*each.merged()] for each in (mean, variance)]
    affine = [[None] * mode.num_members if each is None else each.parts() for each in (weight, bias)]
    parts = zip(x.parts(), *statistics, *affine, strict=True)
    return StackedTensor.of_parts([function(*each, *rest) for each in parts])


def _layer_norm(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Normalise without weights, then each member's own: its weights are the same for all its samples."""
    x, shape = args[0], argument(args, kwargs, 1, "normalized_shape")
    weight, bias = argument(args, kwargs, 2, "weight", default=None), argument(args, kwargs, 3, "bias", default=None)
    eps = argument(args, kwargs, 4, "eps", default=1e-5)
    if type(x) is not StackedTensor:
        return mode.each(func, args, kwargs)
    out = F.layer_norm(x.merged(), shape, eps=eps)
    return StackedTensor.of(_affine(out, weight, bias, x.dim()))


def _rms_norm(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    x, shape = args[0], argument(args, kwargs, 1, "normalized_shape")
    weight, eps = argument(args, kwargs, 2, "weight", default=None), argument(args, kwargs, 3, "eps", default=None)
    if type(x) is not StackedTensor:
        return mode.each(func, args, kwargs)
    return StackedTensor.of(_affine(F.rms_norm(x.merged(), shape, eps=eps), weight, None, x.dim()))


def _affine(out: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int) -> Tensor:
    if weight is not None and bias is not None:
        return torch.addcmul(aligned(bias, ndim), out, aligned(weight, ndim))
    if weight is not None:
        return out * aligned(weight, ndim)
    return out if bias is None else out + aligned(bias, ndim)


def _group_norm(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """G groups over a member's channels are members x G groups over all members'."""
    x, groups = args[0], argument(args, kwargs, 1, "num_groups")
    weight, bias = argument(args, kwargs, 2, "weight", default=None), argument(args, kwargs, 3, "bias", default=None)
    eps = argument(args, kwargs, 4, "eps", default=1e-5)
    are_own = all(each is None or type(each) is StackedTensor for each in (weight, bias))
    if type(x) is not StackedTensor or not are_own:
        return mode.each(func, args, kwargs)
    if x.is_split:
        return mode.each(func, args, kwargs, way=APART)
    out = F.group_norm(channels_of(x.merged()), groups * mode.num_members, _side_by_side(weight), _side_by_side(bias), eps)
    return StackedTensor.of(members_of(out, mode.num_members), is_relaid=x.is_relaid)


RULES: dict[str, Rule] = {
    "batch_norm": _over_channels(F.batch_norm, "training", default=False),
    "instance_norm": _over_channels(F.instance_norm, "use_input_stats", default=True),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
}
