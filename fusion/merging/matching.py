"""Which neurons of two networks are most alike, and the neuron that best stands for both (MTZ, section 3.2).

A neuron is seen as its incoming weights. Replacing weights ``w_t`` by ``w`` changes what the neuron gets by a squared error
``(w - w_t)' H_t (w - w_t)``, with ``H_t`` the second moment of the layer's input as task ``t`` sees it. The neuron for both is
the minimiser of half the sum over the two, and the least sum is their distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.merging.layers import Kind
from fusion.merging.merged import Step, conv_arguments

DAMPING = 1e-3  #: added to the diagonal of a second moment, as a share of its mean; inputs that are always zero need some
NUM_POSITIONS = 64  #: of a map, drawn anew for each batch: the second moment of patches does not need them all


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A layer as one side sees it; ``n`` neurons with ``d`` inputs.

    Attributes:
        weights: float64 ``(n, d)``, incoming weights; the last is the bias, whose input is 1, where there is one.
        moment: float64 ``(d, d)``, mean of the outer product of the input with itself.
    """

    weights: Tensor
    moment: Tensor


def patches(value: Tensor, step: Step, kernel: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return what a layer's neurons read, one row for each time they read: ``(rows, neurons read, values of each)``.

    Args:
        value: The layer's input ``(N, C, H, W)`` or ``(N, C * positions)``.
        step: The layer.
        kernel: Size of a convolution's kernel; of a linear layer the positions of each neuron that it reads.
        generator: Draws up to :data:`NUM_POSITIONS` places of a map.
    """
    if step.kind is Kind.LINEAR:
        return value.reshape(len(value), -1, *kernel)
    stride, padding, dilation = conv_arguments(step)
    unfolded = F.unfold(value, kernel, dilation=dilation, padding=padding, stride=stride)
    places = torch.randperm(unfolded.shape[2], generator=generator)[:NUM_POSITIONS].to(value.device)
    rows = unfolded[:, :, places].transpose(1, 2)
    return rows.reshape(-1, value.shape[1], torch.Size(kernel).numel())


def restricted(view: View, kept: Tensor) -> tuple[View, Tensor]:
    """Return a layer that may read only some of its inputs: what it told from the others is regressed on those.

    Returns:
        The layer of the inputs ``kept``, and float64 ``(n,)`` how much of each neuron is lost: half the squared error.
    """
    moment, weights = _damped(view.moment), view.weights
    others = torch.ones(len(moment), dtype=torch.bool, device=moment.device)
    others[kept] = False
    inner = moment[kept[:, None], kept]
    if not bool(others.any()):
        return View(weights=weights[:, kept], moment=view.moment[kept[:, None], kept]), weights.new_zeros(len(weights))
    cut = weights[:, others]
    cross = moment[kept][:, others] @ cut.T
    told = torch.linalg.solve(inner, cross)
    lost = ((cut @ moment[others][:, others]) * cut).sum(1) - (cross * told).sum(0)
    return View(weights=weights[:, kept] + told.T, moment=view.moment[kept[:, None], kept]), lost.clamp_min(0) / 2


def distances(first: View, second: View) -> Tensor:
    """Return float64 ``(n, m)``: half of ``(w_i - w_j)' (H_A^-1 + H_B^-1)^-1 (w_i - w_j)``, MTZ's equation 7.

    The matrix is ``H_A (H_A + H_B)^-1 H_B``, which needs no inverse of either.
    """
    one, other = _damped(first.moment), _damped(second.moment)
    both = torch.cat([first.weights, second.weights])
    scaled = both @ other @ torch.linalg.solve(one + other, one)  # rows w' Q; Q is symmetric
    own = (scaled * both).sum(1)
    split = len(first.weights)
    return ((own[:split, None] + own[None, split:]) / 2 - scaled[:split] @ second.weights.T).clamp_min(0)


def cheapest_pairs(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return pairs of row and column, cheapest first, each row and each column at most once, until one side is used up."""
    rows, columns = set(range(cost.shape[0])), set(range(cost.shape[1]))
    found: list[tuple[int, int]] = []
    for place in cost.flatten().argsort(stable=True).tolist():
        row, column = divmod(place, cost.shape[1])
        if row in rows and column in columns:
            rows.discard(row)
            columns.discard(column)
            found.append((row, column))
            if not rows or not columns:
                break
    pairs = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def shared_weights(first: View, second: View) -> Tensor:
    """Return ``(H_A + H_B)^-1 (H_A w_i + H_B w_j)`` for neurons paired row by row: float64 ``(n, d)``."""
    one, other = _damped(first.moment), _damped(second.moment)
    return torch.linalg.solve(one + other, one @ first.weights.T + other @ second.weights.T).T


def _damped(moment: Tensor) -> Tensor:
    damping = DAMPING * moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    return moment + damping * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
