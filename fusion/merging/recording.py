"""What every neuron does on probe samples, where it is read: after its activation and pooling, in its own network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusion.merging.errors import MergeError
from fusion.merging.information import CONSTANT
from fusion.merging.merged import Step
from fusion.merging.reconnect import reconnect
from fusion.merging.union import Space, Union, unite

BATCH = 64
MAX_BYTES = 128 * 2**20  #: of the values that are kept of one space


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activity:
    """What the neurons of a space did, in the order of ``own_groups``.

    Attributes:
        values: ``(kept samples, neurons, positions)``, all features in which they are read side by side; 0 where a neuron's
            network has no such feature.
        dead: ``(neurons,)``, those that are 0 in all samples.
        constant: ``(neurons,)``, those that are not, but the same in all samples up to rounding.
        means: Of the constant ones, by node that is read: ``(neurons, positions)``.
        num_positions: Values of a neuron in a sample; ``values`` has fewer where they would take too much memory.
    """

    values: Tensor
    dead: Tensor
    constant: Tensor
    means: Mapping[int, Tensor]
    num_positions: int

    @property
    def live(self) -> Tensor:
        """Return which neurons vary, ``(neurons,)``."""
        return ~(self.dead | self.constant)


def record(
    union: Union, inputs: Tensor, spaces: Collection[int], *, keep: int, max_bytes: int = MAX_BYTES, seed: int = 0
) -> dict[int, Activity]:
    """Run the single networks and note what their neurons do.

    Args:
        union: The networks.
        inputs: Probe samples ``(N, …)``.
        spaces: Numbers of those to record.
        keep: Samples, from the first, whose values are kept; all of them tell which neurons vary.
        max_bytes: Of a space's values; beyond, positions are chosen at random, the same for all its neurons.
        seed: Of that choice.

    Raises:
        MergeError: Values are not finite; the message names the first such layer of each network.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {number: _Recorded(union, union.spaces[number], min(keep, len(inputs)), max_bytes, generator) for number in spaces}
    problems = [problem for task in union.tasks if (problem := _run(union, task, inputs, found)) is not None]
    if problems:
        raise MergeError("\n".join(problems))
    return {number: recorded.activity() for number, recorded in found.items()}


def _run(union: Union, task: str, inputs: Tensor, found: Mapping[int, _Recorded]) -> str | None:
    """Run one network on all samples; returns what is wrong with its values, if anything is."""
    single = unite([union.networks[task]])
    network = reconnect(single)
    places = {node.layers[task].name: position for position, node in enumerate(union.nodes) if task in node.layers}
    positions = {step.name: places[node.layers[task].name] for step, node in zip(network.steps, single.nodes, strict=True)}
    values: dict[int, Tensor] = {}

    def note(step: Step, value: Tensor) -> Tensor:
        values[positions[step.name]] = value
        return value

    for start in range(0, len(inputs), BATCH):
        with torch.no_grad():
            network(inputs[start : start + BATCH], gate=note)
        for position, value in values.items():
            if not bool(torch.isfinite(value).all()):
                layer = union.nodes[position].layers[task].name
                return f"{task}: layer {layer!r} has values that are not finite on the probe samples: mend network or inputs"
            number = union.nodes[position].space
            if number in found:
                found[number].add(task, position, start, value.reshape(len(value), union.spaces[number].widths[task], -1))
    return None


@dataclass(slots=True, eq=False)
class _Range:
    """Smallest and largest values at each position of a feature, ``(neurons, positions)``."""

    low: Tensor
    high: Tensor

    def widen(self, rows: slice, value: Tensor) -> None:
        self.low[rows] = torch.minimum(self.low[rows], value.amin(0))
        self.high[rows] = torch.maximum(self.high[rows], value.amax(0))


@dataclass(slots=True, eq=False)
class _Recorded:
    """What has been noted about a space so far."""

    union: Union
    space: Space
    keep: int
    max_bytes: int
    generator: torch.Generator
    values: Tensor = field(init=False)
    ranges: dict[int, _Range] = field(init=False)
    rows: dict[str, slice] = field(init=False)
    chosen: dict[int, tuple[Tensor, slice]] = field(init=False)  # positions kept of each feature, and where
    total: int = field(init=False)

    def __post_init__(self) -> None:
        widths = self.space.widths
        ends = torch.tensor([*widths.values()]).cumsum(0).tolist()
        self.rows = {task: slice(end - width, end) for (task, width), end in zip(widths.items(), ends, strict=True)}
        sizes = {position: self.union.nodes[position].layer.positions for position in self.space.readers}
        self.total, num_neurons = sum(sizes.values()), ends[-1]
        most = max(1, self.max_bytes // (4 * self.keep * num_neurons))
        kept = torch.randperm(self.total, generator=self.generator)[:most].sort().values
        device = next(iter(self.union.networks.values())).example.device
        self.values = torch.zeros(self.keep, num_neurons, len(kept), device=device)
        self.ranges, self.chosen, begin = {}, {}, 0
        for position, size in sizes.items():
            mine = ((kept >= begin) & (kept < begin + size)).nonzero().flatten().tolist()
            where = slice(mine[0], mine[-1] + 1) if mine else slice(0, 0)
            self.chosen[position] = (kept[where] - begin, where)
            empty = torch.full((num_neurons, size), torch.inf, device=device)
            self.ranges[position] = _Range(low=empty, high=-empty)
            begin += size

    def add(self, task: str, position: int, start: int, value: Tensor) -> None:
        rows = self.rows[task]
        self.ranges[position].widen(rows, value)
        part = value[: max(0, self.keep - start)]
        chosen, where = self.chosen[position]
        self.values[start : start + len(part), rows, where] = part[:, :, chosen.to(part.device)].float()

    def activity(self) -> Activity:
        def over_features(values: list[Tensor]) -> Tensor:
            return torch.stack([value.amax(1) for value in values]).amax(0)

        ranges = self.ranges.values()
        absent = [each.low > each.high for each in ranges]  # features that a neuron's network has not
        bounds = [torch.maximum(each.low.abs(), each.high.abs()) for each in ranges]
        largest = over_features([bound.masked_fill(no, 0.0) for bound, no in zip(bounds, absent, strict=True)])
        spread = over_features([(each.high - each.low).masked_fill(no, 0.0) for each, no in zip(ranges, absent, strict=True)])
        dead = largest == 0
        means = {position: (each.low + each.high) / 2 for position, each in self.ranges.items()}
        return Activity(
            values=self.values,
            dead=dead.cpu(),
            constant=((spread <= CONSTANT * largest) & ~dead).cpu(),
            means={position: mean.cpu() for position, mean in means.items()},
            num_positions=self.total,
        )
