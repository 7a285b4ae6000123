"""The searches in one space (*Pruning-Aware Merging*, Algorithms 2 and 3): each goes on from where it, or a like one, ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, takewhile

import torch
from torch import Tensor

from fusion.merging.config import EstimatorConfig, OnOverlap, Threshold
from fusion.merging.errors import MergeError
from fusion.merging.greedy import Trace, trace
from fusion.merging.labels import side_by_side
from fusion.merging.neurons import Neurons, names_of

LARGE_NULL = 0.5  #: of the labels' entropy: above, the estimate is mostly chance


class Search:
    """Looks for sets of neurons of one space that tell little about the labels of some tasks.

    Args:
        name: Of the space, for messages.
        values: ``(samples, neurons, positions)`` of the neurons that are searched.
        searched: Their positions in ``own_groups``.
        labels: By task, of the same samples.
        owners: The space's neurons as ``own_groups`` gives them.
        bits: Of the tasks that have the space.
        config: Options of the estimator.
    """

    def __init__(
        self,
        name: str,
        values: Tensor,
        searched: Sequence[int],
        labels: Mapping[str, Tensor],
        owners: Neurons,
        bits: int,
        config: EstimatorConfig,
    ) -> None:
        self.name = name
        self.tasks = tuple(labels)
        self.searched = tuple(searched)
        self.owners = owners
        self.bits = bits
        self._values = values
        self._labels = dict(labels)
        self._config = config
        self._traces: dict[tuple[int, frozenset[int]], Trace] = {}

    def trace(self, group: int, threshold: Threshold | None = None, among: frozenset[int] | None = None) -> Trace:
        """Return the order in which neurons enter the set of the tasks ``group``, at least until it exceeds a threshold.

        A search among fewer neurons begins like one among more of them, until that takes a neuron that it may not.

        Args:
            group: Bits of the tasks that the set is to serve; what it tells about the space's other tasks is measured.
            threshold: None for the whole order.
            among: Neurons that may enter, as numbers in :attr:`searched`; all by default. The trace has such numbers, too.

        Raises:
            MergeError: Labels or values that cannot be measured.
        """
        among = frozenset(range(len(self.searched))) if among is None else among
        found = self._known(group, among)
        if found is None or not _reaches(found, threshold):
            found = self._searched_on(group, threshold, among, found)
            self._traces[group, among] = found
        return found

    def select(self, group: int, threshold: Threshold, among: frozenset[int]) -> tuple[int, ...]:
        """Return the largest set for a threshold, in the order of entry; of an infinite one all, without a search."""
        if math.isinf(threshold.alpha):
            return tuple(sorted(among))
        return self.trace(group, threshold, among).prefix(threshold) if among else ()

    def _known(self, group: int, among: frozenset[int]) -> Trace | None:
        """Return the longest beginning that earlier searches have of this one."""
        best: Trace | None = None
        for (other, candidates), found in self._traces.items():
            if other == group and candidates >= among:
                steps = tuple(takewhile(lambda step: step.neuron in among, found.steps))
                if best is None or len(steps) > len(best.steps):
                    best = replace(found, steps=steps, num_candidates=len(among))
        return best

    def _searched_on(self, group: int, threshold: Threshold | None, among: frozenset[int], begun: Trace | None) -> Trace:
        others = names_of(self.bits & ~group, self.tasks)
        origins = self.owners.origin[list(self.searched)].tolist()
        try:
            labels = side_by_side([self._labels[task] for task in others], bins=self._config.bins)
            return trace(
                self._values, labels, self._config, origins=origins, candidates=sorted(among), ceiling=threshold, start=begun
            )
        except MergeError as error:
            raise MergeError(f"layer {self.name!r}, labels of {', '.join(others)}: {error}") from error


def _reaches(found: Trace, threshold: Threshold | None) -> bool:
    """Return whether a trace has all that a threshold asks for."""
    if found.is_complete:
        return True
    return threshold is not None and found.reached > threshold.nats(total=found.total, entropy=found.entropy)


def grow(search: Search, threshold: Threshold, max_subset: int) -> dict[int, tuple[int, ...]]:
    """Find the sets of Algorithm 3, by bits of the tasks they are to serve; with two tasks these are Algorithm 2's.

    Sets of equally many tasks are found independently among the same neurons; those of more tasks among what these leave.
    """
    left = frozenset(range(len(search.searched)))
    single = [1 << number for number in range(search.bits.bit_length()) if search.bits >> number & 1]
    found: dict[int, tuple[int, ...]] = {}
    for size in range(1, min(max_subset, len(single) - 1) + 1):
        level = {sum(tasks): search.select(sum(tasks), threshold, left) for tasks in combinations(single, size)}
        left -= {neuron for chosen in level.values() for neuron in chosen}
        found |= level
    return found


def doubts(search: Search, threshold: Threshold) -> list[str]:
    """Say where the estimator sees nothing in a layer, or chance, in the searches for single tasks (design 4)."""
    said = []
    for number, task in enumerate(search.tasks):
        if not search.searched or not search.bits >> number & 1:
            continue
        found = search.trace(1 << number, threshold)
        others = ", ".join(names_of(search.bits & ~(1 << number), search.tasks))
        if found.total <= 0:
            said.append(
                f"{search.name}: all neurons together tell no more about {others} than chance, so that all of them may serve "
                f"{task} alone: use more num_samples or a smaller gamma"
            )
        worst = max((step.null for step in found.steps), default=0.0)
        if worst > LARGE_NULL * found.entropy:
            said.append(
                f"{search.name}: chance alone tells {worst:.2g} nats about {others}, of {found.entropy:.2g} there are: "
                "use more num_samples or a smaller gamma"
            )
    return said


def resolve(search: Search, selected: Mapping[int, Sequence[int]], on_overlap: OnOverlap) -> Tensor:
    """Return the group of each neuron that is searched: its set's, all tasks' if it is in none; 0 if it is dropped."""
    groups = torch.full((len(search.searched),), search.bits)
    own = search.owners.group[list(search.searched)]
    times = torch.zeros_like(groups)
    for group, chosen in selected.items():
        times[list(chosen)] += 1
        groups[list(chosen)] = group
    several = times > 1
    groups[several] = {"origin": own, "drop": torch.zeros_like(own), "share": torch.full_like(own, search.bits)}[on_overlap][
        several
    ]
    return groups
