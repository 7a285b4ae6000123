"""Take neurons out of a merged network, or tasks from neurons, in place; tensors and the optimizer's state are sliced along."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, Kind
from fusion.merging.merged import MergedNetwork, Part, Step
from fusion.merging.neurons import Neurons, names_of


def resize(
    merged: MergedNetwork,
    kept: Mapping[int, Tensor],
    groups: Mapping[int, Tensor] | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Keep only some neurons.

    Args:
        merged: Changed in place; its parameters stay the same objects, with other shapes and without gradients.
            What was computed before and still has its graph must be let go before the next backward pass.
        kept: By space the positions of the neurons that stay, int64, ascending; other spaces stay whole.
        groups: By space the new bits of the neurons that stay, each within its old ones; edges that this forbids are cut.
        optimizer: Of its parameters, or None.

    Raises:
        MergeError: If a task would be left without neurons in a space that it needs, or a neuron with a task that it had not.
    """
    kept = {space: kept.get(space, torch.arange(len(neurons))) for space, neurons in merged.neurons.items()}
    new = {space: _taken(merged, space, positions, groups) for space, positions in kept.items()}
    _check_alive(merged, new)
    before = [merged.channels(step) for step in merged.steps]
    old, merged.neurons = merged.neurons, new
    for position, step in enumerate(merged.steps):
        if str(position) not in merged.parts:
            continue
        rows = _places(before[position], kept[step.space][merged.channels(step)])
        part = merged.part(position)
        if len(rows) < len(before[position]):
            _slice(part, rows, optimizer)
        if step.kind in MAKERS:
            source = merged.steps[step.inputs[0]]
            read = _places(before[step.inputs[0]], kept[source.space][merged.channels(source)])
            if len(read) < len(before[step.inputs[0]]):
                _slice_columns(part, read, step, source, optimizer)
    del old
    merged.set_masks()


def _taken(merged: MergedNetwork, space: int, positions: Tensor, groups: Mapping[int, Tensor] | None) -> Neurons:
    neurons = merged.neurons[space].take(positions)
    if groups is None or space not in groups:
        return neurons
    if bool((groups[space] & ~neurons.group).any()) or bool((groups[space] == 0).any()):
        raise MergeError(f"space {space}: a neuron may lose tasks but not gain any, and must keep one")
    return Neurons(origin=neurons.origin, index=neurons.index, group=groups[space])


def _check_alive(merged: MergedNetwork, neurons: Mapping[int, Neurons]) -> None:
    for step in merged.steps:
        for number in range(len(merged.tasks)):
            if step.tasks >> number & 1 and not len(neurons[step.space].of(1 << number)):
                (task,) = names_of(1 << number, merged.tasks)
                raise MergeError(f"{task} would have no neuron left in {step.name!r}")


def _places(before: Tensor, wanted: Tensor) -> Tensor:
    """Return where the neurons ``wanted`` are among those that a tensor had rows for; both ascending."""
    return torch.searchsorted(before, wanted)


def _slice(part: Part, rows: Tensor, optimizer: Optimizer | None) -> None:
    for parameter in part.parameters(recurse=False):
        keep(parameter, rows, 0, optimizer)
    for name in ("running_mean", "running_var"):
        value = getattr(part, name)
        if value is not None:
            setattr(part, name, value[rows.to(value.device)])


def _slice_columns(part: Part, read: Tensor, step: Step, source: Step, optimizer: Optimizer | None) -> None:
    if step.kind is Kind.LINEAR and source.positions > 1:
        read = (read[:, None] * source.positions + torch.arange(source.positions)).flatten()
    assert part.weight is not None
    keep(part.weight, read, 1, optimizer)


def keep(parameter: nn.Parameter, index: Tensor, dim: int, optimizer: Optimizer | None) -> None:
    """Keep only some rows (``dim=0``) or columns of a parameter, and of what the optimizer holds for it."""
    index = index.to(parameter.device)
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            state[name] = value.index_select(dim, index)
    parameter.data = parameter.data.index_select(dim, index)
    parameter.grad = None
