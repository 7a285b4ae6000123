"""Where two networks make neurons that may become one: the layers of a space, as each of the two sees them."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.merging.layers import MAKERS, Kind
from fusion.merging.matching import View
from fusion.merging.merged import MergedNetwork, edges
from fusion.merging.plan import Regrouping

Pairs = dict[int, tuple[Tensor, Tensor]]
"""By space, the positions of first and of second neurons, pair by pair."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """A layer that makes neurons of one space for both sides.

    Attributes:
        position: Of its step.
        norm: Position of the normalization that alone reads it; None if there is none.
        has_bias: Whether its neurons have one, by themselves or by the normalization.
        kernel: Size of a convolution's kernel; of a linear layer the positions of each neuron that it reads.
        target: Bits of the tasks that a zipped neuron serves here.
        columns: For each side the channels of its input that the side's neurons read, ascending.
        rows: For each side the neurons, as positions in the space, that may be paired, ascending.
        weight: Tasks for which the first side counts; the second counts for one.
    """

    position: int
    norm: int | None
    has_bias: bool
    kernel: tuple[int, ...]
    target: int
    columns: tuple[Tensor, Tensor]
    rows: tuple[Tensor, Tensor]
    weight: int

    @property
    def tail(self) -> int:
        """Values of each neuron that it reads."""
        return torch.Size(self.kernel).numel()

    @property
    def is_common(self) -> bool:
        """Whether both sides read the same."""
        return torch.equal(*self.columns)

    def views(self, merged: MergedNetwork, moments: tuple[Tensor, Tensor]) -> tuple[View, View]:
        """Return how both sides see the neurons that may be paired, given the second moment of each side's input."""
        weights, bias = self._weights(merged)
        channels = merged.channels(merged.steps[self.position])
        found = []
        for side, count in ((0, self.weight), (1, 1)):
            rows = torch.searchsorted(channels, self.rows[side])
            own = weights[rows][:, spread(self.columns[side], self.tail)]
            own = torch.cat([own, bias[rows, None]], 1) if self.has_bias else own
            found.append(View(weights=own, moment=moments[side] * count))
        return found[0], found[1]

    def _weights(self, merged: MergedNetwork) -> tuple[Tensor, Tensor]:
        """Return incoming weights and biases, normalization included."""
        part = merged.part(self.position)
        weight = part.masked().detach().double().flatten(1)
        bias = weight.new_zeros(len(weight)) if part.bias is None else part.bias.detach().double()
        if self.norm is None:
            return weight, bias
        scale, shift = affine(merged, self.norm)
        return weight * scale[:, None], bias * scale + shift

    def channels(self, merged: MergedNetwork, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the channels of its input that a zipped neuron may read: for each the first's and the second's."""
        source = merged.steps[merged.steps[self.position].inputs[0]]
        groups = merged.groups(source)
        common = ((self.target & ~groups) == 0).nonzero().flatten()
        if source.space not in pairs:
            return common, common
        channels = merged.channels(source)
        first, second = pairs[source.space]
        both = merged.neurons[source.space].group[first] | merged.neurons[source.space].group[second]
        here = torch.isin(first, channels) & torch.isin(second, channels) & ((self.target & ~both) == 0)
        first, second = (torch.searchsorted(channels, side[here]) for side in (first, second))
        return torch.cat([common, first]), torch.cat([common, second])

    def shared(self, merged: MergedNetwork, pairs: Pairs) -> tuple[Tensor, Tensor] | None:
        """Return the inputs that a zipped neuron may read, as each side numbers them; None if there are none."""
        found = self.channels(merged, pairs)
        if not len(found[0]):
            return None
        kept = []
        for columns, channels in zip(self.columns, found, strict=True):
            places = spread(torch.searchsorted(columns, channels), self.tail)
            end = torch.tensor([len(columns) * self.tail] if self.has_bias else [], dtype=torch.int64)
            kept.append(torch.cat([places, end]))
        return kept[0], kept[1]


def find_sites(merged: MergedNetwork, space: int, left: int, right: int, allowed: Tensor | None = None) -> list[Site]:
    """Return the layers that make neurons of a space for the task ``right`` and any of ``left`` (bits).

    Where ``allowed`` gives the tasks (bits) that each neuron may serve, only those that may serve all of both are paired.

    There are none where the neurons must stay as they are, or none can be paired.
    """
    steps = [(position, step) for position, step in enumerate(merged.steps) if step.space == space]
    left &= functools.reduce(operator.or_, (step.tasks for _, step in steps))
    if merged.frozen.get(space, 0) & (left | right):
        return []
    free = torch.ones(len(merged.neurons[space]), dtype=torch.bool)
    if allowed is not None:
        free = ((left | right) & ~allowed) == 0
    rows = [((merged.neurons[space].group == bits) & free).nonzero().flatten() for bits in (left, right)]
    if not all(map(len, rows)):
        return []
    found: list[Site] = []
    for position, step in steps:
        if step.kind not in MAKERS or not (step.tasks & left and step.tasks & right):
            continue
        part, source = merged.part(position), merged.steps[step.inputs[0]]
        assert part.weight is not None
        norm = _norm_after(merged, position)
        columns = [
            edges(torch.tensor([side & step.tasks]), merged.groups(source))[0].nonzero().flatten() for side in (left, right)
        ]
        site = Site(
            position=position,
            norm=norm,
            has_bias=part.bias is not None or norm is not None,
            kernel=(source.positions,) if step.kind is Kind.LINEAR else tuple(part.weight.shape[2:]),
            target=(left | right) & step.tasks,
            columns=(columns[0], columns[1]),
            rows=(rows[0], rows[1]),
            weight=(left & step.tasks).bit_count(),
        )
        found.append(site)
    return found


def may_share(merged: MergedNetwork, space: int, plan: Regrouping | None) -> Tensor | None:
    """Return the tasks (bits) that a plan lets each neuron of a space serve; None without a plan, which lets them all."""
    if plan is None:
        return None
    neurons = merged.neurons[space]
    if space not in plan.groups:
        return neurons.group
    planned = plan.groups[space]
    bits = dict(zip(zip(planned.origin.tolist(), planned.index.tolist(), strict=True), planned.group.tolist(), strict=True))
    own = zip(neurons.origin.tolist(), neurons.index.tolist(), strict=True)
    return torch.tensor([bits[key] for key in own], dtype=torch.int64)


def affine(merged: MergedNetwork, position: int) -> tuple[Tensor, Tensor]:
    """Return a normalization as float64 ``scale`` and ``shift`` of each neuron."""
    part, (_, eps) = merged.part(position), merged.steps[position].args
    assert part.running_mean is not None
    assert part.running_var is not None
    scale = (part.running_var.double() + eps).rsqrt()
    if part.weight is not None:
        scale = scale * part.weight.detach().double()
    shift = -part.running_mean.double() * scale
    return scale, shift if part.bias is None else shift + part.bias.detach().double()


def _norm_after(merged: MergedNetwork, position: int) -> int | None:
    """Return the normalization that alone reads a step, for all its tasks; None if there is none."""
    readers = [number for number, other in enumerate(merged.steps) if position in other.inputs]
    is_norm = len(readers) == 1 and merged.steps[readers[0]].kind is Kind.NORM
    return readers[0] if is_norm and merged.steps[readers[0]].tasks == merged.steps[position].tasks else None


def spread(channels: Tensor, count: int) -> Tensor:
    """Return the places of all ``count`` values of some channels."""
    return (channels[:, None] * count + torch.arange(count)).flatten()
