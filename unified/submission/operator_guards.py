"""Operators that are not called as PyTorch has them, and why.

Some ask PyTorch at run time what a stored graph cannot know. The others end the whole process, and with it every member of a
hybrid, on arguments that they ought to refuse: they are given those checks here. ``python -m tests.hostile.operators`` looks
for such operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any) -> Tensor:
    # F's functions ask PyTorch at run time whether cuDNN may be used, and refuse a batch of one value, as the eager model does
    return F.batch_norm(x, mean, variance, weight, bias, training, *rest[:2])


def _instance_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, use_input: bool, *rest: Any) -> Tensor:
    return F.instance_norm(x, mean, variance, weight, bias, use_input, *rest[:2])


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, _cudnn: bool = True) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, _cudnn: bool = True
) -> Tensor:
    return torch.layer_norm(x, shape, weight, bias, eps, torch.backends.cudnn.enabled)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    # the internal operator does not look whether there are any tensors
    return torch.stack(list(tensors), dim)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    last = v.ndim - 1
    _require(v.numel() > 0 and v.is_floating_point() and v.dtype == g.dtype, "weight norm of two equal floating types")
    _require(dim in (-1, 0, last), "weight norm over the first or the last dimension, or all")
    expected = [size if index == dim else 1 for index, size in enumerate(v.shape)]
    _require(list(g.shape) == expected or (dim == -1 and g.numel() == 1), "one norm for each slice")
    return torch._weight_norm(v, g, dim)


def _pdist(x: Tensor, p: float = 2) -> Tensor:
    _require(x.ndim == 2 and x.numel() > 0, "distances of at least one point")
    return torch.pdist(x, p)


# with targets of another shape, these give back memory that they did not fill


def _binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    _require(x.shape == target.shape and reduction in (0, 1, 2), "a target for each value, and a known reduction")
    return torch.ops.aten.binary_cross_entropy.default(x, target, weight, reduction)


def _soft_margin_loss(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    _require(x.shape == target.shape and reduction in (0, 1, 2), "a target for each value, and a known reduction")
    return torch.ops.aten.soft_margin_loss.default(x, target, reduction)


def _grid_sampler(x: Tensor, grid: Tensor, interpolation: int, padding: int, align_corners: bool) -> Tensor:
    # in a mode that there is not, it gives back memory that it did not fill
    _require(interpolation in (0, 1, 2) and padding in (0, 1, 2), "a known interpolation and padding")
    return torch.grid_sampler(x, grid, interpolation, padding, align_corners)


def _replicated(name: str) -> Callable[..., Tensor]:
    """Check the amounts of a padding that repeats the border: by too large ones, it reads beyond its input."""
    function = getattr(torch.ops.aten, name).default

    def checked(x: Tensor, amounts: Sequence[int]) -> Tensor:
        _check_amounts(x, amounts)
        return function(x, amounts)

    return checked


def _pad(x: Tensor, amounts: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    if mode == "replicate":
        _check_amounts(x, amounts)
    return torch.ops.aten.pad.default(x, amounts, mode, value)


def _check_amounts(x: Tensor, amounts: Sequence[int]) -> None:
    """Check amounts of padding, (before, after) of the last dimension first."""
    _require(len(amounts) <= 2 * x.ndim, "at most two amounts for each dimension")
    for index, amount in enumerate(amounts):
        extent = x.shape[-1 - index // 2]
        _require(-extent < amount < 1 << 31, "amounts of padding that leave something and are no more than 2^31")


def _embedding_bag(weight: Tensor, indices: Tensor, offsets: Tensor, scale: bool = False, mode: int = 0, *rest: Any) -> Any:
    whole = (torch.int32, torch.int64)
    _require(weight.ndim == 2 and indices.ndim == 1 and offsets.ndim == 1, "a table, a row of indices and a row of offsets")
    _require(indices.dtype in whole and offsets.dtype in whole and mode in (0, 1, 2), "whole numbers and a known mode")
    # it reads wherever they lead; those that are in order stay as they are, and nobody waits for a GPU to tell
    offsets = offsets.clamp(0, len(indices)).cummax(0).values
    return torch.embedding_bag(weight, indices, offsets, scale, mode, *rest)


def _resized_smoothly(name: str) -> Callable[..., Tensor]:
    """Check that an antialiased resize is given factors that lead to its output's size: it reads beyond its input by others."""
    function = getattr(torch.ops.aten, name).default

    def checked(x: Tensor, size: Sequence[int], align_corners: bool, *factors: float | None) -> Tensor:
        for extent, length, factor in zip(x.shape[2:], size, factors, strict=False):
            _require(factor is None or math.floor(extent * factor) == length, "factors that lead to the output's size")
        return function(x, size, align_corners, *factors)

    return checked


def _recurrent(name: str) -> Callable[..., Any]:
    """Check a recurrent layer over padded sequences: as many parameters as its layers need, all of the input's type."""
    function = getattr(torch, name)

    def checked(x: Tensor, hidden: Any, weights: Sequence[Tensor], biases: bool, num_layers: int, *rest: Any) -> Any:
        _check_cells(name, [x, *_states(hidden)], weights, biases, num_layers, rest[2])
        return function(x, hidden, weights, biases, num_layers, *rest)

    return checked


def _states(hidden: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [hidden] if isinstance(hidden, Tensor) else list(hidden)


def _check_cells(
    name: str, values: list[Tensor], weights: Sequence[Tensor], biases: bool, num_layers: int, bidirectional: bool
) -> None:
    x, *states = values
    _require(len(states) == (2 if name == "lstm" else 1), f"the states that {name} has")
    cells = num_layers * (2 if bidirectional else 1)
    projected = name == "lstm" and states[0].shape[-1:] != states[1].shape[-1:]
    each = (4 if biases else 2) + projected
    _require(0 < num_layers <= 1000 and len(weights) == cells * each, f"{each} parameters for each of {num_layers} layers")
    _require(x.ndim in (2, 3) and x.numel() > 0 and x.is_floating_point(), "a batch of sequences")
    _require(all(s.ndim == 3 and len(s) == cells and s.dtype == x.dtype for s in states), "a state for each layer")
    _require(all(w.dtype == x.dtype and w.ndim in (1, 2) and w.numel() > 0 for w in weights), "parameters of the input's type")


def _require(fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"expected {expected}")


#: What is called in an operator's place, by the operator's name; each takes the operator's own arguments.
GUARDED: dict[str, Callable[..., Any]] = {
    "aten.batch_norm.default": _batch_norm,
    "aten.instance_norm.default": _instance_norm,
    "aten.group_norm.default": _group_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten._stack.default": _stack,
    "aten._weight_norm.default": _weight_norm,
    "aten.pdist.default": _pdist,
    "aten.binary_cross_entropy.default": _binary_cross_entropy,
    "aten.soft_margin_loss.default": _soft_margin_loss,
    "aten.grid_sampler.default": _grid_sampler,
    "aten.pad.default": _pad,
    **{f"aten.{name}.default": _replicated(name) for name in ("replication_pad1d", "replication_pad2d", "replication_pad3d")},
    "aten.embedding_bag.default": _embedding_bag,
    "aten.embedding_bag.padding_idx": _embedding_bag,
    **{f"aten.{name}.default": _resized_smoothly(name) for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")},
    **{f"aten.{name}.input": _recurrent(name) for name in _RECURRENT},
}
