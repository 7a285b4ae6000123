"""The abstract graph: which block of which model takes its input where, and what follows from that.

The models' blocks stand in a tree whose root is the input that all of them share. Where a block takes an input of another
shape than it was made for, an adapter stands between. A graph holds no weights and never changes; a mutation makes a new one.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 4.1.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from operator import itemgetter
from typing import Any

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature
from fusion.search.space import AdapterId, BlockId, BlockInfo, NodeId, Space, capacity_of, flops_of

__all__ = [
    "AdapterId",
    "BlockId",
    "BlockInfo",
    "Capacities",
    "Edge",
    "Facts",
    "Graph",
    "Node",
    "NodeId",
    "Space",
    "capacities",
    "capacity_of",
    "flops",
    "flops_of",
    "original",
]


_ROOT = BlockId(-1, -1)  # stands for the shared input where blocks are sorted or hashed


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a block takes its input: behind ``source`` (None: the shared input), through ``adapter`` if there is one."""

    source: BlockId | None
    adapter: AdapterId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the tree with everything that is known of it (Definition 1 of the paper).

    Attributes:
        id: Of the node; None for the root.
        op_type: Kind of a block, ``adapter`` or ``input``.
        input: The feature that it takes; the root takes the one that it makes.
        output: The feature that it makes; None for the last block of a task.
        capacity: Number of parameter elements.
        flops: Per sample.
        parent: The node before it; None for the root and what stands behind the root.
        children: The nodes behind it, sorted.
        tasks: The tasks that it serves.
    """

    id: NodeId
    op_type: str
    input: Feature
    output: Feature | None
    capacity: int
    flops: int
    parent: NodeId
    children: tuple[BlockId | AdapterId, ...]
    tasks: frozenset[int]


class Facts:
    """What follows from the edges of a graph, worked out once.

    Attributes:
        edges: Block -> its edge.
        place: Block -> its position among the sorted edges.
        children: Block or None -> the blocks that take what is behind it, sorted, with or without an adapter.
        order: All blocks, each after its source and before whatever is not behind it.
        served: Block -> the tasks that it serves.
    """

    __slots__ = ("_begin", "_end", "children", "edges", "order", "place", "served")

    def __init__(self, edges: tuple[tuple[BlockId, Edge], ...]) -> None:
        self.edges = dict(edges)
        self.place = {block: place for place, (block, _) in enumerate(edges)}
        self.children: dict[BlockId | None, list[BlockId]] = {None: []}
        for block, edge in edges:
            self.children.setdefault(edge.source, []).append(block)
        self.order: list[BlockId] = []
        stack = self.children[None][::-1]
        while stack:
            block = stack.pop()
            self.order.append(block)
            stack.extend(reversed(self.children.get(block, ())))
        self._begin = {block: number for number, block in enumerate(self.order)}
        self._end: dict[BlockId, int] = {}
        self.served: dict[BlockId, frozenset[int]] = {}
        for block in reversed(self.order):
            behind = self.children.get(block)
            self._end[block] = self._end[behind[-1]] if behind else self._begin[block] + 1
            if behind is None:
                self.served[block] = frozenset((block.task,))
            elif len(behind) == 1:
                self.served[block] = self.served[behind[0]]
            else:
                self.served[block] = frozenset().union(*(self.served[child] for child in behind))

    def is_before(self, one: BlockId, other: BlockId) -> bool:
        """Whether ``other`` is ``one`` or stands behind it."""
        return self._begin[one] <= self._begin[other] < self._end[one]


@dataclass(frozen=True, slots=True)
class Graph:
    """A tree of blocks in which every task has its last block and every block serves a task.

    Attributes:
        space: The blocks there are.
        edges: The blocks that are left, sorted, each with its edge.
    """

    space: Space
    edges: tuple[tuple[BlockId, Edge], ...]
    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def edge(self, block: BlockId) -> Edge:
        """Return where a block takes its input.

        Raises:
            KeyError: If the block is not in the graph.
        """
        place = bisect_left(self.edges, block, key=itemgetter(0))
        if self.edges[place : place + 1] and self.edges[place][0] == block:
            return self.edges[place][1]
        raise KeyError(block)

    def facts(self) -> Facts:
        """Return what follows from the edges, kept from the first call on."""
        if "facts" not in self._cache:
            self._cache["facts"] = Facts(self.edges)
        return self._cache["facts"]

    def blocks(self) -> tuple[BlockId, ...]:
        """Return the blocks that are left, sorted."""
        return tuple(block for block, _ in self.edges)

    def adapters(self) -> tuple[AdapterId, ...]:
        """Return the adapters, sorted, those behind the shared input first."""
        found = {edge.adapter for _, edge in self.edges if edge.adapter is not None}
        return tuple(sorted(found, key=_adapter_order))

    def tasks_of(self) -> dict[BlockId | AdapterId, frozenset[int]]:
        """Return the tasks that each block and adapter serves."""
        facts = self._transient()
        served: dict[BlockId | AdapterId, frozenset[int]] = {**facts.served}
        for block, edge in self.edges:
            if edge.adapter is not None:
                served[edge.adapter] = served.get(edge.adapter, frozenset()) | facts.served[block]
        return served

    def key(self) -> str:
        """Return the canonical hash: equal for two graphs of one space that are isomorphic with tasks, and only for those.

        No two blocks are alike, since each is of a task and has a number there, so a graph is told by which block stands
        behind which. Where adapters stand follows from that; what they are named after does not enter, nor does any counter.
        """
        if "key" not in self._cache:
            self._cache["key"] = _key(self.edges)
        return self._cache["key"]

    def nodes(self) -> tuple[Node, ...]:
        """Return the root, the adapters and the blocks, each after its parent."""
        return _nodes(self)

    def shape_dictionary(self) -> dict[Feature, tuple[BlockId, ...]]:
        """Return, for each feature, the blocks that take such a one by nature."""
        found: dict[Feature, list[BlockId]] = {}
        for block, _ in self.edges:
            found.setdefault(self.space.info(block).input, []).append(block)
        return {feature: tuple(blocks) for feature, blocks in found.items()}

    def to_json(self) -> list[list[Any]]:
        """Return the edges as plain values; the space is to be kept beside them."""
        return [[block, edge.source, edge.adapter and edge.adapter.target] for block, edge in self.edges]

    @classmethod
    def from_json(cls, space: Space, data: list[list[Any]]) -> Graph:
        """Return the graph that ``to_json`` wrote.

        Raises:
            FusionError: If it is no tree of blocks of this space.
        """
        edges = []
        for block, source, target in data:
            at = None if source is None else BlockId(*source)
            edges.append((BlockId(*block), Edge(at, None if target is None else AdapterId(at, BlockId(*target)))))
        graph = cls(space, tuple(sorted(edges, key=lambda entry: entry[0])))
        problems = [*_graph_problems(graph)]
        if problems:
            raise FusionError(f"the graph to read: {'; '.join(problems)}")
        return graph

    def _transient(self) -> Facts:
        # a search keeps thousands of graphs of which it only wants the key once: their facts are not kept
        return self._cache.get("facts") or Facts(self.edges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacities:
    """Number of parameters of a graph, adapters included (section 5.1 of the paper).

    Attributes:
        total: Of the whole graph.
        per_task: On the path of each task.
        specific: On the path of each task and of no other.
        by_set: Of the nodes that serve exactly these tasks, for each set of two or more tasks that occurs.
    """

    total: int
    per_task: tuple[int, ...]
    specific: tuple[int, ...]
    by_set: Mapping[frozenset[int], int]


def original(space: Space) -> Graph:
    """Return the graph in which nothing is shared but the input.

    Example:
        >>> from fusion.graph.feature import Layout
        >>> picture, vector = Feature((3, 8, 8), Layout.CHW), Feature((16,), Layout.VEC)
        >>> trunk = BlockInfo(name="trunk", op_type="conv", input=picture, output=vector, capacity=448, flops=0)
        >>> head = BlockInfo(name="head", op_type="linear", input=vector, output=None, capacity=34, flops=64)
        >>> graph = original(Space(tasks=("age", "mood"), blocks=((trunk, head), (trunk, head))))
        >>> [tuple(block) for block in graph.blocks()], capacities(graph).total
        ([(0, 0), (0, 1), (1, 0), (1, 1)], 964)
    """
    blocks = [BlockId(task, op) for task, infos in enumerate(space.blocks) for op in range(len(infos))]
    return Graph(space, tuple((block, Edge(BlockId(block.task, block.op - 1) if block.op else None)) for block in blocks))


def capacities(graph: Graph) -> Capacities:
    """Return the number of parameters, by who uses them."""
    by_set: dict[frozenset[int], int] = {}
    for node, tasks in graph.tasks_of().items():
        by_set[tasks] = by_set.get(tasks, 0) + capacity_of(graph.space, node)
    numbers = range(len(graph.space.tasks))
    return Capacities(
        total=sum(by_set.values()),
        per_task=tuple(sum(count for tasks, count in by_set.items() if task in tasks) for task in numbers),
        specific=tuple(by_set.get(frozenset((task,)), 0) for task in numbers),
        by_set={tasks: count for tasks, count in by_set.items() if len(tasks) > 1},
    )


def flops(graph: Graph) -> int:
    """Return the floating-point operations per sample."""
    return sum(flops_of(graph.space, node) for node in (*graph.blocks(), *graph.adapters()))


def _adapter_order(adapter: AdapterId) -> tuple[BlockId, BlockId]:
    return (_ROOT if adapter.source is None else adapter.source, adapter.target)


def _key(edges: tuple[tuple[BlockId, Edge], ...]) -> str:
    numbers: list[int] = []
    for block, edge in edges:
        numbers += block
        numbers += _ROOT if edge.source is None else edge.source
    return blake2b(struct.pack(f"<{len(numbers)}i", *numbers), digest_size=16).hexdigest()


def _nodes(graph: Graph) -> tuple[Node, ...]:
    space, facts, served = graph.space, Facts(graph.edges), graph.tasks_of()
    children: dict[NodeId, set[BlockId | AdapterId]] = {}
    order: dict[NodeId, NodeId] = {None: None}
    for block in facts.order:
        edge = facts.edges[block]
        parent: NodeId = edge.source if edge.adapter is None else edge.adapter
        if edge.adapter is not None:
            children.setdefault(edge.source, set()).add(edge.adapter)
            order[edge.adapter] = edge.source
        children.setdefault(parent, set()).add(block)
        order[block] = parent

    def node(entry: NodeId) -> Node:
        behind = children.get(entry, set())
        blocks, adapters = [n for n in behind if isinstance(n, BlockId)], [n for n in behind if isinstance(n, AdapterId)]
        takes, makes, kind = _features(space, entry)
        return Node(
            id=entry,
            op_type=kind,
            input=takes,
            output=makes,
            capacity=0 if entry is None else capacity_of(space, entry),
            flops=0 if entry is None else flops_of(space, entry),
            parent=order[entry],
            children=(*sorted(blocks), *sorted(adapters, key=_adapter_order)),
            tasks=frozenset(range(len(space.tasks))) if entry is None else served[entry],
        )

    return tuple(node(entry) for entry in order)


def _features(space: Space, node: NodeId) -> tuple[Feature, Feature | None, str]:
    if node is None:
        return space.root, space.root, "input"
    if isinstance(node, AdapterId):
        return space.boundary(node.source), space.info(node.target).input, "adapter"
    info = space.info(node)
    return info.input, info.output, info.op_type


def _graph_problems(graph: Graph) -> list[str]:
    """Return everything that is wrong with the edges."""
    space, facts = graph.space, graph.facts()
    known = {BlockId(task, op) for task, blocks in enumerate(space.blocks) for op in range(len(blocks))}
    if strange := [block for block in facts.edges if block not in known]:
        return [f"{block} is not in the space" for block in strange]
    lasts = {space.last(task) for task in range(len(space.tasks))}
    found = [f"{one} stands twice" for (one, _), (other, _) in pairwise(graph.edges) if one == other]
    found += [f"the output of task {space.tasks[last.task]!r} is missing" for last in sorted(lasts - facts.edges.keys())]
    found += [f"{block} cannot be reached from the input" for block in facts.edges if block not in facts.served]
    found += [f"{block} serves no task" for block in facts.order if block not in facts.children and block not in lasts]
    found += [f"{source} is the last of its task but has blocks behind it" for source in facts.children.keys() & lasts]
    return found or [
        f"{block} takes {space.info(block).input} behind {edge.source or 'the input'} through {edge.adapter or 'no adapter'}"
        for block, edge in graph.edges
        if not _is_sound(space, block, edge)
    ]


def _is_sound(space: Space, block: BlockId, edge: Edge) -> bool:
    needed = space.info(block).input
    if edge.adapter is None:
        return space.fits(edge.source, needed)
    target = edge.adapter.target
    is_known = target.task < len(space.tasks) and target.op < len(space.blocks[target.task])
    return is_known and edge.adapter.source == edge.source and space.info(target).input == needed
