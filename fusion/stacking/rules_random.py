"""Dropout: each member's mask drawn from its own generator, at the shape it would have alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import MEMBER_DRAWS, Rule, StackMode
from fusion.stacking.rules_pointwise import overwrite
from fusion.stacking.stacked_tensor import StackedTensor


def masks(mode: StackMode, row: Tensor, p: float, shape: Sequence[int] | None = None) -> Tensor:
    """Return what ``F.dropout`` would multiply with, 0 with probability ``p``, else 1 / (1 - p), ``(members, *shape)``.

    On a CPU these are bit for bit the masks that ``F.dropout`` draws for each member alone. It fills them in the order in which
    its input lies in memory.

    Args:
        mode: Whose members draw.
        row: One member's input, for its dtype and its order in memory.
        p: The probability.
        shape: Of a mask, if it is not that of ``row``: then it is filled in the order of its dimensions.
    """
    mode.drew = True
    order = range(row.dim()) if shape is not None else sorted(range(row.dim()), key=lambda dim: -row.stride(dim))
    sizes = [row.shape[dim] for dim in order] if shape is None else shape
    drawn = torch.empty((mode.num_members, *sizes), dtype=row.dtype, device=row.device)
    for each, generator in zip(drawn.unbind(0), mode.random.on(row.device), strict=True):
        each.bernoulli_(1 - p, generator=generator)
    drawn.div_(1 - p)
    if shape is not None or list(order) == list(range(row.dim())):
        return drawn
    back = sorted(range(row.dim()), key=list(order).__getitem__)
    return drawn.permute(0, *(dim + 1 for dim in back))


def _dropout(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return _dropped(mode, func, args, kwargs, lambda x: None)


def _feature_dropout(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Whole channels: one draw for each sample and channel."""
    return _dropped(mode, func, args, kwargs, lambda x: (*x.shape[:2], *[1] * (x.dim() - 2)))


def _dropped(
    mode: StackMode,
    func: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    shape_of: Callable[[StackedTensor], tuple[int, ...] | None],
) -> Any:
    x, p = args[0], argument(args, kwargs, 1, "p", default=0.5)
    is_training = argument(args, kwargs, 2, "training", "train", default=True)
    is_in_place = argument(args, kwargs, 3, "inplace", default=False)
    if type(x) is not StackedTensor:
        if not is_training or p == 0:
            return x
        x = mode.made_own(x, func) if is_in_place else StackedTensor.of(x.unsqueeze(0).repeat(mode.num_members, *[1] * x.dim()))
        args = (x, *args[1:])
    if not is_training or p == 0 or x.shape.numel() == 0:
        return x
    if p == 1 or x.device.type != "cpu":
        # a GPU's kernel draws in an order of its own, which only itself can repeat
        return mode.each(func, args, kwargs, way=MEMBER_DRAWS)
    if x.is_split:
        drawn = masks(mode, x.parts()[0], p, shape_of(x)).unbind(0)
        result = StackedTensor.of_parts([part * mask for part, mask in zip(x.parts(), drawn, strict=True)])
    else:
        if x.is_relaid:  # gaps alone do not matter: a mask has none
            x.close_up()
        result = StackedTensor.of(x.merged() * masks(mode, x.merged()[0], p, shape_of(x)))
    return overwrite(x, result) if is_in_place else result


RULES: dict[str, Rule] = {"dropout": _dropout, "feature_dropout": _feature_dropout}
