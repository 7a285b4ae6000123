"""Neurons that are constant but not zero: what they add to the layers that read them goes into these layers' biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fusion.merging.information import CONSTANT
from fusion.merging.layers import MAKERS, Kind, Layer
from fusion.merging.merged import MergedNetwork
from fusion.merging.plan import Fold
from fusion.merging.recording import Activity
from fusion.merging.union import Node, Union


def foldable(union: Union, space: int, activity: Activity) -> Tensor:
    """Return which constant neurons of a space can be replaced by biases exactly, ``(neurons,)``.

    Every layer that reads them must have a bias. A convolution must not pad, or its borders would miss the constant, and
    the constant must be the same at all positions.
    """
    found = activity.constant.clone()
    begin = 0
    for task, width in union.spaces[space].widths.items():
        mine = slice(begin, begin + width)
        for _, node in _readers(union, space, task):
            found[mine] &= _takes(node.layers[task], activity.means[node.inputs[0]][mine])
        begin += width
    return found


def _readers(union: Union, space: int, task: str) -> Iterator[tuple[int, Node]]:
    """Yield the nodes of a task that read a space to make other neurons, with their positions."""
    for position, node in enumerate(union.nodes):
        if task in node.layers and node.kind in MAKERS and union.nodes[node.inputs[0]].space == space:
            yield position, node


def _takes(layer: Layer, means: Tensor) -> Tensor:
    """Return which of the constants, ``(neurons, positions)``, a layer's bias can stand for."""
    if "bias" not in layer.tensors:
        return torch.zeros(len(means), dtype=torch.bool)
    if layer.kind is Kind.LINEAR:
        return torch.ones(len(means), dtype=torch.bool)
    padding = layer.args[1] if len(layer.args) > 1 else (0, 0)
    pads = padding == "same" or (padding != "valid" and any(padding))
    even = means.amax(1) - means.amin(1) <= CONSTANT * means.abs().amax(1)
    return even & (not pads)


def fold(merged: MergedNetwork, union: Union, folds: Sequence[tuple[int, Fold]]) -> None:
    """Add to the biases of a merged network what neurons that were left out would have added.

    Args:
        merged: As ``reconnect`` has made it of ``union``, not resized; changed in place.
        union: The networks.
        folds: With the space of each.
    """
    for space, each in folds:
        task = union.tasks[each.origin]
        for position, node in _readers(union, space, task):
            _add(merged, position, node, each, task)


def _add(merged: MergedNetwork, position: int, node: Node, each: Fold, task: str) -> None:
    weight = node.layers[task].tensors["weight"].detach()
    values = each.values[node.inputs[0]].to(weight)
    if node.kind is Kind.LINEAR:
        added = weight.view(len(weight), -1, len(values))[:, each.index] @ values
    else:
        added = weight[:, each.index].sum((1, 2)) * values[0]
    step = merged.steps[position]
    neurons = merged.neurons[step.space].take(merged.channels(step))
    rows = (neurons.origin == each.origin).nonzero().flatten()
    bias = merged.part(position).bias
    assert bias is not None
    with torch.no_grad():
        bias[rows.to(bias.device)] += added[neurons.index[rows].to(added.device)]
