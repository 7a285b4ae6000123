"""Floating-point operations of every subset of tasks (design 10): two for each multiply-add of a live edge."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from fusion.merging.layers import MAKERS, Kind
from fusion.merging.merged import MergedNetwork, Step, edges


def flops(merged: MergedNetwork, tasks: Collection[str] | None = None) -> int:
    """Return the operations for one sample when some tasks are run; all if None.

    Convolutions and linear layers count, by the edges that the mask lets live; biases, normalization, pooling and activations
    do not. Edges that started at zero count.
    """
    wanted = merged.bits(tasks)
    return sum(step_flops(merged, position, wanted) for position in range(len(merged.steps)))


def step_flops(merged: MergedNetwork, position: int, wanted: int) -> int:
    """Return the operations of one step when the tasks ``wanted`` (bits) are run."""
    step = merged.steps[position]
    rows = merged.groups(step)
    rows = rows[(rows & wanted) != 0]
    if step.kind is Kind.DEPTHWISE:
        return 2 * len(rows) * cost_of_edge(merged, position)
    if step.kind not in MAKERS or not len(rows):
        return 0
    return 2 * cost_of_edge(merged, position) * int(_num_edges(rows, merged.groups(merged.steps[step.inputs[0]])))


def cost_of_edge(merged: MergedNetwork, position: int) -> int:
    """Return the multiply-adds of one edge of a step: its kernel at every position."""
    step, weight = merged.steps[position], merged.part(position).weight
    assert weight is not None
    if step.kind is Kind.LINEAR:
        return merged.steps[step.inputs[0]].positions
    return step.positions * weight[0, 0].numel()


def _num_edges(rows: Tensor, columns: Tensor) -> Tensor:
    return edges(rows, columns).sum()


def makers(merged: MergedNetwork) -> list[tuple[int, Step]]:
    """Return the steps that make neurons, with their positions."""
    return [(position, step) for position, step in enumerate(merged.steps) if step.kind in MAKERS]
