"""What a search is compared with: nothing shared, everything identical shared, trees of common layers (paper section 6.1).

Random sharing, the fourth baseline, is the policy ``random`` of :mod:`fusion.search.policy`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusion.search.absgraph import BlockId, Graph, Space, original
from fusion.search.mutation import Pair, Sharing, mutation_pass
from fusion.search.policy import Known, Proposal, Snapshot

MAX_LAYOUTS = 5000
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the common layers, at which pairs of tasks are measured


def common_prefix(space: Space, tasks: Iterable[int]) -> int:
    """Return how many first blocks are of one architecture in all of ``tasks``; the last block of a task never counts."""
    rows = [space.blocks[task][:-1] for task in tasks]
    count = 0
    for blocks in zip(*rows, strict=False):
        if len({(block.op_type, block.input, block.output, block.capacity, block.flops, block.needs) for block in blocks}) > 1:
            break
        count += 1
    return count


def all_shared(space: Space) -> Graph:
    """Return the graph in which the longest common prefix of identical blocks is shared by all tasks.

    With different architectures that is little or nothing: then it is the original.
    """
    tasks = tuple(range(len(space.tasks)))
    return layout_graph(space, Layout(depth=common_prefix(space, tasks), groups=tuple(Layout.leaf(task) for task in tasks)))


@dataclass(frozen=True, slots=True)
class Layout:
    """A tree of tasks: ``groups`` share the first ``depth`` blocks; a leaf is one task and has no groups."""

    depth: int
    groups: tuple[Layout, ...]
    task: int = -1

    @classmethod
    def leaf(cls, task: int) -> Layout:
        """Return the layout of one task alone."""
        return cls(depth=0, groups=(), task=task)

    @property
    def tasks(self) -> tuple[int, ...]:
        """All tasks in it, ascending."""
        inner = [task for group in self.groups for task in group.tasks]
        return tuple(sorted(inner)) if self.groups else (self.task,)

    def shared(self) -> Iterator[tuple[int, int, int]]:
        """Yield, for each pair of tasks, (task, other, number of blocks that they share)."""
        for one, other in itertools.combinations(self.groups, 2):
            yield from ((min(a, b), max(a, b), self.depth) for a in one.tasks for b in other.tasks)
        for group in self.groups:
            yield from group.shared()


def layout_graph(space: Space, layout: Layout) -> Graph:
    """Return the graph of a layout: in each group the first task's blocks serve all."""
    graph = mutation_pass(original(space), list(_pairs(layout)), sharing=Sharing.EXACT, barred=frozenset())
    return original(space) if graph is None else graph


def _pairs(layout: Layout) -> Iterator[Pair]:
    for group in layout.groups:
        yield from _pairs(group)
    host = layout.tasks[0]
    for group in layout.groups:
        guest = group.tasks[0]
        if guest != host and layout.depth > 0:
            yield Pair(BlockId(host, layout.depth), BlockId(guest, layout.depth))


class FixedPolicy:
    """Proposes given graphs, each once."""

    def __init__(self, graphs: Iterable[Graph]) -> None:
        self._graphs = tuple(graphs)

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return those that are not known yet."""
        del rng
        left = {graph.key(): graph for graph in self._graphs if graph.key() not in snapshot.known}
        left.pop(snapshot.original.key(), None)
        return [Proposal(graph=graph, base=None, pairs=()) for graph in itertools.islice(left.values(), count)]


class TreePolicy:
    """Multi-task learning's way: trees of common layers, ranked by what pairs of tasks lost (idea of TreeMTL).

    First each pair of tasks is trained with some of its common layers shared. The drop of a tree is taken to be the largest of
    its pairs, linear between the depths that were measured. Then trees are tried, the cheapest first of those that are
    predicted to be within the loosest threshold. Trees share layers of one architecture only, and skip none.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        numbers = range(len(space.tasks))
        self._prefix = {pair: common_prefix(space, pair) for pair in itertools.combinations(numbers, 2)}
        self._probes = [
            (pair, depth)
            for pair, prefix in self._prefix.items()
            for depth in sorted({round(share * prefix) for share in _SHARES} - {0})
        ]

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return probes of pairs until all are known, then trees; see :class:`~fusion.search.policy.Policy`."""
        del rng
        done = {snapshot.original.key(), *snapshot.known}  # where nothing can be shared there is nothing to be probed
        open_probes = [graph for graph in map(self._probe, self._probes) if graph.key() not in done]
        graphs = open_probes or self._ranked(snapshot)
        return FixedPolicy(graphs).propose(snapshot, random.Random(0), count)

    def _probe(self, probe: tuple[tuple[int, int], int]) -> Graph:
        (one, other), depth = probe
        return layout_graph(self._space, Layout(depth=depth, groups=(Layout.leaf(one), Layout.leaf(other))))

    def _ranked(self, snapshot: Snapshot) -> list[Graph]:
        measured: dict[tuple[int, int], dict[int, float]] = {pair: {0: 0.0} for pair in self._prefix}
        for pair, depth in self._probes:
            known = snapshot.known.get(self._probe((pair, depth)).key())
            if known is not None:
                measured[pair][depth] = _lost(known)
        limit = max(snapshot.thresholds)
        found: dict[str, tuple[float, float, Graph]] = {}
        tasks = tuple(range(len(self._space.tasks)))
        for layout in itertools.islice(layouts(tasks, self._prefix), MAX_LAYOUTS):
            drop = max((_between(measured[one, other], depth) for one, other, depth in layout.shared()), default=0.0)
            if drop <= limit:
                graph = layout_graph(self._space, layout)
                found.setdefault(graph.key(), (snapshot.predict(graph), drop, graph))
        return [graph for _, _, graph in sorted(found.values(), key=lambda entry: entry[:2])]


def layouts(tasks: tuple[int, ...], prefix: Mapping[tuple[int, int], int], least: int = 0) -> Iterator[Layout]:
    """Yield every tree of tasks that shares common layers only, deepest sharing first.

    Args:
        tasks: Ascending.
        prefix: Number of common layers of each pair of tasks.
        least: Layers that all of them share already.
    """
    if len(tasks) == 1:
        yield Layout.leaf(tasks[0])
        return
    deepest = min(prefix[pair] for pair in itertools.combinations(tasks, 2))
    for depth in range(deepest, least - 1, -1):
        for parts in _partitions(tasks):
            if len(parts) > 1:
                yield from (Layout(depth=depth, groups=groups) for groups in _choices(parts, prefix, depth + 1))


def _choices(
    parts: Sequence[tuple[int, ...]], prefix: Mapping[tuple[int, int], int], least: int
) -> Iterator[tuple[Layout, ...]]:
    """Yield every choice of a layout for each part; nothing is kept, since there may be very many."""
    if not parts:
        yield ()
        return
    for layout in layouts(parts[0], prefix, least):
        yield from ((layout, *others) for others in _choices(parts[1:], prefix, least))


def _partitions(items: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every way to put ``items`` into groups."""
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for size in range(len(rest), -1, -1):
        for others in itertools.combinations(rest, size):
            left = tuple(item for item in rest if item not in others)
            yield from (((first, *others), *parts) for parts in _partitions(left))


def _lost(known: Known) -> float:
    """Return the drop of a probe with its full training, as far as can be said; all of it if it could not be trained."""
    drop = known.drop if math.isnan(known.expected_drop) else known.expected_drop
    return 1.0 if math.isnan(drop) else drop


def _between(points: Mapping[int, float], depth: int) -> float:
    """Return the drop at a depth, linear between the depths that were measured."""
    below = max(at for at in points if at <= depth)
    above = min((at for at in points if at >= depth), default=below)
    if above == below:
        return points[below]
    share = (depth - below) / (above - below)
    return points[below] + share * (points[above] - points[below])
