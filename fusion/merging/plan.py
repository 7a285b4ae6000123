"""What a regrouping has decided: which tasks each neuron is to serve, what was left out, and why; nothing is changed by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fusion.merging.config import OnOverlap, Threshold
from fusion.merging.neurons import Neurons, group_order, names_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """A constant neuron that is left out, its constant to go into the biases of what reads it.

    Attributes:
        origin: Number of the task whose network it came from.
        index: Which channel or unit it was there.
        values: By node that is read, ``(positions,)``.
    """

    origin: int
    index: int
    values: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpacePlan:
    """What is decided for one space.

    Attributes:
        space: Its number in the union.
        name: Of the layer that makes its neurons.
        tasks: That have it; it is regrouped if they are several and nothing holds its neurons in place.
        is_regrouped: Whether it was; otherwise every neuron stays its own task's alone.
        neurons: Those that stay.
        selected: By bits of a task set, what was found for it before overlaps and guards: positions in ``own_groups``.
        dead: Neurons left out because they are 0 on all probe samples.
        folded: Neurons left out because they are constant.
        dropped: Neurons left out because several sets had them, with ``on_overlap="drop"``.
    """

    space: int
    name: str
    tasks: tuple[str, ...]
    is_regrouped: bool
    neurons: Neurons
    selected: Mapping[int, tuple[int, ...]]
    dead: Neurons
    folded: tuple[Fold, ...]
    dropped: Neurons

    @property
    def num_shared(self) -> int:
        """Neurons that serve several tasks."""
        return sum(count for group, count in self.neurons.sizes().items() if group.bit_count() > 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regrouping:
    """The groups of all neurons of a union; ``str()`` of it is a table.

    Attributes:
        tasks: Bit ``k`` of a group is task number ``k``.
        threshold: Alpha, in its unit.
        on_overlap: What became of neurons in several sets.
        max_subset: Largest task set that neurons were searched for, all tasks apart.
        spaces: Of hidden layers, in their order.
        notes: What the guards and the limits of the method did, in plain words.
    """

    tasks: tuple[str, ...]
    threshold: Threshold
    on_overlap: OnOverlap
    max_subset: int
    spaces: tuple[SpacePlan, ...]
    notes: tuple[str, ...]

    @property
    def groups(self) -> dict[int, Neurons]:
        """The neurons of each space, as ``reconnect`` takes them."""
        return {space.space: space.neurons for space in self.spaces}

    def apart(self) -> Regrouping:
        """Return the same with every neuron its own task's alone: the networks as they were, without those left out."""
        spaces = []
        for space in self.spaces:
            neurons = space.neurons
            alone = Neurons(origin=neurons.origin, index=neurons.index, group=1 << neurons.origin)
            spaces.append(replace(space, neurons=alone))
        return replace(self, spaces=tuple(spaces))

    def __str__(self) -> str:
        used = sorted({group for space in self.spaces for group in space.neurons.sizes()}, key=self._order)
        head = ["layer", "before", *(self._named(group) for group in used), "dead", "constant", "dropped"]
        rows = [self._row(space, used) for space in self.spaces]
        unit = {"layer": " of what a layer tells", "entropy": " of the labels' entropy", "nats": " nats"}[self.threshold.unit]
        said = f"alpha {self.threshold.alpha:g}{unit}; neurons in several sets: {self.on_overlap}"
        return "\n".join([said, *_table([head, *rows]), *self.notes])

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON data."""
        return {
            "tasks": list(self.tasks),
            "alpha": str(self.threshold.alpha) if self.threshold.alpha == float("inf") else self.threshold.alpha,
            "alpha_unit": self.threshold.unit,
            "on_overlap": self.on_overlap,
            "max_subset": self.max_subset,
            "spaces": [self._space(space) for space in self.spaces],
            "notes": list(self.notes),
        }

    def _space(self, space: SpacePlan) -> dict[str, Any]:
        return {
            "space": space.space,
            "name": space.name,
            "tasks": list(space.tasks),
            "is_regrouped": space.is_regrouped,
            "sizes": {self._named(group): count for group, count in space.neurons.sizes().items()},
            "neurons": self._listed(space.neurons),
            "selected": {self._named(bits): list(found) for bits, found in space.selected.items()},
            "dead": self._listed(space.dead),
            "constant": [[self.tasks[fold.origin], fold.index] for fold in space.folded],
            "dropped": self._listed(space.dropped),
        }

    def _listed(self, neurons: Neurons) -> list[list[Any]]:
        """Return neurons as network, index there, and group."""
        each = zip(neurons.origin.tolist(), neurons.index.tolist(), neurons.group.tolist(), strict=True)
        return [[self.tasks[origin], index, self._named(group)] for origin, index, group in each]

    def _row(self, space: SpacePlan, used: Sequence[int]) -> list[str]:
        sizes = space.neurons.sizes()
        left_out = [len(space.dead), len(space.folded), len(space.dropped)]
        before = len(space.neurons) + sum(left_out)
        return [space.name, str(before), *(str(sizes.get(group, 0)) for group in used), *map(str, left_out)]

    def _named(self, group: int) -> str:
        return "+".join(names_of(group, self.tasks)) or "none"

    def _order(self, group: int) -> tuple[int, ...]:
        return group_order(group, len(self.tasks))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with columns of equal width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return ["  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)) for row in rows]
