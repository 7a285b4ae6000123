"""What each neuron costs when some tasks are run: the operations that would be saved without it."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.merging.flops import cost_of_edge, makers
from fusion.merging.merged import MergedNetwork, edges


def neuron_costs(merged: MergedNetwork, bits: int) -> dict[int, Tensor]:
    """Return the floating-point operations of all edges into and out of each neuron.

    Args:
        merged: The network.
        bits: Of the tasks that are run.

    Returns:
        By space ``(n,)`` float64. Two neurons with an edge between them both count it.
    """
    costs = {space: torch.zeros(len(neurons), dtype=torch.float64) for space, neurons in merged.neurons.items()}
    for position, step in makers(merged):
        source = merged.steps[step.inputs[0]]
        rows = merged.groups(step)
        live = (
            (edges(rows, merged.groups(source)) & ((rows & bits) != 0)[:, None]).double() * 2 * cost_of_edge(merged, position)
        )
        costs[step.space][merged.channels(step)] += live.sum(1)
        costs[source.space][merged.channels(source)] += live.sum(0)
    return costs
