"""Convolutions and pooling over channels: member by member, or grouped, whichever was measured fastest for the shape.

A convolution of g groups becomes one of members x g groups over the members' channels side by side, ``(batch, members x
channels, ...)`` (NetFuse); in PyTorch's default memory format or channels-last. Where all members get one and the same input,
their filters lie side by side instead and the input is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion.stacking.arguments import argument
from fusion.stacking.choices import Variant
from fusion.stacking.dispatch import APART, Rule, StackMode, name_of
from fusion.stacking.stacked_tensor import StackedTensor

LOOP, CHANNELS_LAST = "loop", "grouped, channels-last"

Parts = Tensor | Sequence[Tensor]


def channels_of(merged: Tensor) -> Tensor:
    """Return ``(members, batch, channels, ...)`` as ``(batch, members x channels, ...)``: a view if memory lies so already."""
    M, B, C = merged.shape[:3]  # noqa: N806 - members, batch, channels
    return merged.transpose(0, 1).reshape(B, M * C, *merged.shape[3:])


def members_of(channels: Tensor, num_members: int) -> Tensor:
    """Return ``(batch, members x channels, ...)`` as ``(members, batch, channels, ...)``, a view."""
    B, MC = channels.shape[:2]  # noqa: N806
    return channels.view(B, num_members, MC // num_members, *channels.shape[2:]).transpose(0, 1)


def lies_in_channels(merged: Tensor) -> bool:
    """Whether :func:`channels_of` would be a view."""
    M, B, C = merged.shape[:3]  # noqa: N806
    return B == 1 or M == 1 or merged.stride(0) == C * merged.stride(2)


def _convolution(num_dims: int, *, is_transposed: bool) -> Rule:
    """Make the rule of a convolution over ``num_dims`` dimensions."""
    apply: Callable[..., Tensor] = getattr(torch, f"conv_transpose{num_dims}d" if is_transposed else f"conv{num_dims}d")
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    names = names if is_transposed else ("stride", "padding", "dilation", "groups")
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}

    def rule(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        x, weight = args[0], argument(args, kwargs, 1, "weight")
        bias = argument(args, kwargs, 2, "bias", default=None)
        settings = {name: argument(args, kwargs, 3 + i, name, default=defaults[name]) for i, name in enumerate(names)}
        are_own = type(weight) is StackedTensor and (bias is None or type(bias) is StackedTensor)
        if not are_own or x.dim() != num_dims + 2:
            return mode.each(func, args, kwargs)
        variants = _variants(apply, mode.num_members, settings, num_dims, is_shared=type(x) is not StackedTensor)
        return _chosen(mode, func, variants, (x, weight, bias), tuple(map(str, settings.values())))

    return rule


def _chosen(
    mode: StackMode,
    func: Callable[..., Any],
    variants: dict[str, Variant],
    operands: tuple[Any, ...],
    settings: tuple[str, ...],
) -> StackedTensor:
    """Compute the fastest variant; its result lies in one tensor or apart, as the variant leaves it."""
    x, name = operands[0], name_of(func)
    if type(x) is StackedTensor and x.is_split and LOOP in variants:
        # measured with values in one tensor, the loop would look slower than it is here
        example = torch.empty((mode.num_members, *x.shape), dtype=x.dtype, device=x.device, requires_grad=x.requires_grad)
        settings = (*settings, "apart")
    else:
        example = x.merged() if type(x) is StackedTensor else x
    rest = [None if each is None else each.merged() for each in operands[1:]]
    way = mode.choices.pick(name, variants, [example, *rest], settings)
    mode.ways[name, way] += 1
    if way == LOOP:
        parts = x.parts() if type(x) is StackedTensor else [x] * mode.num_members
        own = [None if each is None else each.parts() for each in operands[1:]]
        return StackedTensor.of_parts(variants[LOOP](parts, *own))  # type: ignore[arg-type]
    result = variants[way](x.merged() if type(x) is StackedTensor else x, *rest)
    is_relaid = way == CHANNELS_LAST or (type(x) is StackedTensor and x.is_relaid)
    return StackedTensor.of(result, is_relaid=is_relaid)  # type: ignore[arg-type]


def _rows(values: Parts) -> Sequence[Tensor]:
    return values.unbind(0) if isinstance(values, Tensor) else values


def _variants(
    apply: Callable[..., Tensor], num_members: int, settings: dict[str, Any], num_dims: int, *, is_shared: bool
) -> dict[str, Variant]:
    grouped = {**settings, "groups": settings["groups"] * num_members}

    def flat(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.reshape(-1, *values.shape[2:])

    def loop(x: Parts, weight: Parts, bias: Parts | None) -> list[Tensor]:
        inputs = [x] * num_members if is_shared and isinstance(x, Tensor) else _rows(x)
        biases = [None] * num_members if bias is None else _rows(bias)
        return [apply(*each, **settings) for each in zip(inputs, _rows(weight), biases, strict=True)]

    def merged(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return members_of(apply(channels_of(x), flat(weight), flat(bias), **grouped), num_members)

    def channels_last(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        last = channels_of(x).contiguous(memory_format=torch.channels_last)
        return members_of(apply(last, flat(weight), flat(bias), **grouped), num_members)

    def side_by_side(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return members_of(apply(x, flat(weight), flat(bias), **settings), num_members)

    if is_shared:
        has_one_group = settings["groups"] == 1 and "output_padding" not in settings
        shared: dict[str, Variant] = {"filters side by side": side_by_side} if has_one_group else {}
        return {**shared, LOOP: loop}
    variants: dict[str, Variant] = {"grouped": merged, LOOP: loop}
    return {**variants, CHANNELS_LAST: channels_last} if num_dims == 2 else variants


def _over_channels(num_dims: int) -> Rule:
    """Make the rule of an operator that treats each channel alike and alone: pooling, upsampling."""

    def rule(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if type(x) is not StackedTensor or x.is_split or x.dim() not in (num_dims + 1, num_dims + 2):
            return mode.each(func, args, kwargs, way=APART)
        merged = x.merged()
        if x.dim() == num_dims + 1:
            return _wrapped(func(merged, *args[1:], **kwargs))  # no batch dimension: the members are the batch
        if lies_in_channels(merged):
            back = functools.partial(members_of, num_members=mode.num_members)
            return _wrapped(func(channels_of(merged), *args[1:], **kwargs), back, is_relaid=x.is_relaid)
        return _folded(func, merged, args[1:], kwargs)

    return rule


def folded(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operator that treats each sample alike and alone: the members' samples are one batch."""
    x = args[0]
    if type(x) is not StackedTensor or x.is_split or x.dim() < 2:
        return mode.each(func, args, kwargs, way=APART)
    return _folded(func, x.merged(), args[1:], kwargs)


def _folded(func: Callable[..., Any], merged: Tensor, rest: tuple, kwargs: dict[str, Any]) -> Any:
    M, B = merged.shape[:2]  # noqa: N806
    result = func(merged.reshape(M * B, *merged.shape[2:]), *rest, **kwargs)
    return _wrapped(result, lambda out: out.view(M, B, *out.shape[1:]) if out.is_contiguous() else out.unflatten(0, (M, B)))


def _grid_sampler(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Each member's samples at its own places, all of them one batch."""
    both = [
        each.merged() if type(each) is StackedTensor else each.unsqueeze(0).expand(mode.num_members, *each.shape)
        for each in args[:2]
    ]
    result = func(*(each.flatten(0, 1) for each in both), *args[2:], **kwargs)
    return StackedTensor.of(result.unflatten(0, (mode.num_members, -1)))


def _wrapped(result: Any, back: Callable[[Tensor], Tensor] = lambda out: out, *, is_relaid: bool = False) -> Any:
    if isinstance(result, Tensor):
        return StackedTensor.of(back(result), is_relaid=is_relaid)
    return tuple(StackedTensor.of(back(each), is_relaid=is_relaid) for each in result)


def _pad(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Constant padding counts dimensions from the end, where the members' is not."""
    x = args[0]
    kind = argument(args, kwargs, 2, "mode", default="constant")
    if type(x) is not StackedTensor or x.is_split:
        return mode.each(func, args, kwargs, way=APART)
    if kind == "constant" or not isinstance(kind, str):
        return StackedTensor.of(func(x.merged(), *args[1:], **kwargs))
    return folded(mode, func, args, kwargs)


_POOLS = (
    "max_pool{}d",
    "max_pool{}d_with_indices",
    "avg_pool{}d",
    "adaptive_avg_pool{}d",
    "adaptive_max_pool{}d",
    "lp_pool{}d",
)
_UPSAMPLINGS = {
    1: ("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d"),
    2: ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d"),
    3: ("upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact3d"),
}

RULES: dict[str, Rule] = (
    {f"conv{n}d": _convolution(n, is_transposed=False) for n in (1, 2, 3)}
    | {f"conv_transpose{n}d": _convolution(n, is_transposed=True) for n in (1, 2, 3)}
    | {name.format(n): _over_channels(n) for n in (1, 2, 3) for name in _POOLS}
    | {name: _over_channels(n) for n, names in _UPSAMPLINGS.items() for name in names}
    | dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im", "channel_shuffle"), folded)
    | {"grid_sampler": _grid_sampler, "grid_sampler_2d": _grid_sampler, "grid_sampler_3d": _grid_sampler}
    | {"pad": _pad, "constant_pad_nd": _pad}
)
