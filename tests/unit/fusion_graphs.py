"""Spaces and graphs for the tests of the fusion search, and a plain second telling of what a mutation does."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from fusion.graph.feature import Feature, Layout, can_rescale
from fusion.search.absgraph import AdapterId, BlockId, BlockInfo, Graph, Space, original
from fusion.search.mutation import Pair, Sharing, mutate, pairs

SIZES = (  # what a boundary may hold; the first is the shared input of `a_space`
    Feature((3, 16, 16), Layout.CHW),
    Feature((8, 16, 16), Layout.CHW),
    Feature((8, 8, 8), Layout.CHW),
    Feature((16, 8, 8), Layout.CHW),
    Feature((65, 8), Layout.TOK),
    Feature((4, 4, 16), Layout.HWC),
    Feature((24,), Layout.VEC),
)


def a_task(features: Sequence[Feature], *, seed: int = 0, op_types: Sequence[str] | None = None) -> tuple[BlockInfo, ...]:
    """A model whose block k takes ``features[k]``; capacities and FLOPs differ from block to block."""
    outputs = [*features[1:], None]
    return tuple(
        BlockInfo(
            name=f"layer{number}",
            op_type=op_types[number] if op_types else "conv",
            input=taken,
            output=made,
            capacity=100 + 7 * number + 31 * seed,
            flops=1000 + 13 * number + 17 * seed,
        )
        for number, (taken, made) in enumerate(zip(features, outputs, strict=True))
    )


def a_space(*lengths: int, features: Sequence[Feature] | None = None) -> Space:
    """Models of so many blocks, all over the same run of features."""
    run = features or [SIZES[0], *(SIZES[1 + number % 3] for number in range(max(lengths)))]
    blocks = tuple(a_task(run[:length], seed=task) for task, length in enumerate(lengths))
    return Space(tasks=tuple(f"task{task}" for task in range(len(lengths))), blocks=blocks)


def equal_space(num_tasks: int, num_blocks: int) -> Space:
    """Models that take one feature throughout, so that every block fits everywhere."""
    return a_space(*[num_blocks] * num_tasks, features=[SIZES[1]] * num_blocks)


def wander(graph: Graph, rng: random.Random, steps: int, sharing: Sharing = Sharing.ANY) -> tuple[Graph, list[Pair]]:
    """Mutate a graph so many times at random."""
    done = []
    for _ in range(steps):
        legal = pairs(graph, sharing=sharing)
        if not legal:
            break
        done.append(rng.choice(legal))
        graph = mutate(graph, done[-1])
    return graph, done


@st.composite
def spaces(draw: st.DrawFn, max_tasks: int = 8, max_blocks: int = 5) -> Space:
    """Models of different lengths and features."""
    lengths = draw(st.lists(st.integers(1, max_blocks), min_size=2, max_size=max_tasks))
    blocks = []
    for task, length in enumerate(lengths):
        inner = draw(st.lists(st.sampled_from(SIZES), min_size=length - 1, max_size=length - 1))
        blocks.append(a_task([SIZES[0], *inner], seed=task))
    return Space(tasks=tuple(f"task{task}" for task in range(len(lengths))), blocks=tuple(blocks))


@st.composite
def graphs(draw: st.DrawFn, max_tasks: int = 8, max_steps: int = 8) -> Graph:
    """Graphs that random mutations make."""
    space = draw(spaces(max_tasks))
    rng = random.Random(draw(st.integers(0, 2**32)))
    return wander(original(space), rng, draw(st.integers(0, max_steps)))[0]


Parents = Mapping[BlockId, BlockId | None]


def parents_of(graph: Graph) -> dict[BlockId, BlockId | None]:
    """Which block stands before which, adapters left out."""
    return {block: edge.source for block, edge in graph.edges}


def plainly_mutated(parents: Parents, pair: Pair, outputs: frozenset[BlockId]) -> dict[BlockId, BlockId | None]:
    """The rule word by word: hang the guest where the host hangs, then drop leaves that are no output until there is none."""
    moved = {**parents, pair.guest: parents[pair.host]}
    while dead := [block for block in moved if block not in outputs and block not in moved.values()]:
        for block in dead:
            del moved[block]
    return moved


def plainly_legal(space: Space, parents: Parents, pair: Pair, sharing: Sharing) -> bool:
    """Whether a pair is legal, told from the definition."""
    if parents[pair.host] == parents[pair.guest] or pair.guest in (pair.host, *plain_ancestors(parents, pair.host)):
        return False
    source = parents[pair.host]
    shared = space.root if source is None else space.info(source).output
    host, guest = space.info(pair.host).input, space.info(pair.guest).input
    assert shared is not None
    if not (shared.is_float and guest.is_float):
        return False
    match sharing:
        case Sharing.EXACT:
            return host == guest
        case Sharing.ANY:
            return shared == guest or can_rescale(shared, guest)
    raise NotImplementedError(sharing)


def plain_ancestors(parents: Parents, block: BlockId) -> list[BlockId]:
    """The blocks before a block, the nearest first."""
    found = []
    at = parents[block]
    while at is not None:
        found.append(at)
        at = parents[at]
    return found


def unfolded(graph: Graph) -> object:
    """The tree as nested sets of what can be told of each node, with no names for adapters: equal exactly if isomorphic."""
    nodes = {node.id: node for node in graph.nodes()}

    def tell(node_id: BlockId | AdapterId | None) -> object:
        node = nodes[node_id]
        name = (node.input, node.output) if isinstance(node_id, AdapterId) else node_id
        return (type(node_id).__name__, name, frozenset(tell(child) for child in node.children))

    return tell(None)
