"""Which tasks each neuron serves: the groups of PAM, as bits of a number (bit ``k`` for task number ``k``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INPUT = -1  #: origin of the input's channels, which are every task's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neurons:
    """The neurons of one space, in their order.

    Attributes:
        origin: int64 ``(n,)``, number of the task whose network a neuron came from; -1 in the input's space.
        index: int64 ``(n,)``, which channel or unit it was there.
        group: int64 ``(n,)``, bits of the tasks it serves; never 0.
    """

    origin: Tensor
    index: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.group)

    def take(self, positions: Tensor) -> Neurons:
        """Return the neurons at ``positions``."""
        return Neurons(origin=self.origin[positions], index=self.index[positions], group=self.group[positions])

    def of(self, bits: int) -> Tensor:
        """Return the positions of the neurons that serve any of the tasks ``bits``, ascending."""
        return (self.group & bits).nonzero().flatten()

    def sizes(self) -> dict[int, int]:
        """Return the number of neurons by group."""
        groups, counts = self.group.unique(return_counts=True)
        return dict(zip(groups.tolist(), counts.tolist(), strict=True))


def bits_of(names: Iterable[str], tasks: Sequence[str]) -> int:
    """Return the bits of some tasks.

    >>> bits_of(["c", "a"], ["a", "b", "c"])
    5
    """
    return sum(1 << tasks.index(name) for name in names)


def names_of(bits: int, tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks that bits stand for, in the order of ``tasks``.

    >>> names_of(5, ["a", "b", "c"])
    ('a', 'c')
    """
    return tuple(name for number, name in enumerate(tasks) if bits >> number & 1)


def subsets(num_tasks: int) -> range:
    """Return the bits of every subset but the empty one."""
    return range(1, 1 << num_tasks)


def group_order(group: int, num_tasks: int) -> tuple[int, ...]:
    """Return where a group comes among the groups of a space: A, AB, B for two tasks, so that what a task reads is one run.

    >>> sorted([1, 2, 3], key=lambda group: group_order(group, 2))
    [1, 3, 2]
    >>> sorted(range(1, 8), key=lambda group: group_order(group, 3))
    [1, 2, 4, 3, 5, 6, 7]
    """
    if num_tasks == 2:
        return ({1: 0, 3: 1, 2: 2}[group],)
    return (group.bit_count(), group)


def in_order(neurons: Neurons, num_tasks: int) -> Neurons:
    """Return the neurons group by group, within a group by origin and index."""
    return neurons.take(order_of(neurons, num_tasks))


def order_of(neurons: Neurons, num_tasks: int) -> Tensor:
    """Return the positions of the neurons group by group, within a group by origin and index."""
    keys = zip(neurons.group.tolist(), neurons.origin.tolist(), neurons.index.tolist(), strict=True)
    ranked = sorted((group_order(group, num_tasks), origin, index, place) for place, (group, origin, index) in enumerate(keys))
    return torch.tensor([place for *_, place in ranked], dtype=torch.int64)
