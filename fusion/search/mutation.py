"""Mutations: let a block take the input of another one, and drop what nobody needs any more.

One rule covers the five mutations of the paper: the guest takes its input where the host does, with an adapter if it was made
for another feature, and every block from which no task's output can be reached is deleted. What still serves another task
stays, and the guest takes all that stands behind it along.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, sections 4.1 (Definition 2) and 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from fusion.graph.errors import FusionError
from fusion.graph.feature import PREFIX_LENGTHS, Feature, Layout, can_rescale
from fusion.search.absgraph import AdapterId, BlockId, Edge, Facts, Graph, Space

_NO_TYPES: frozenset[str] = frozenset()


class Sharing(StrEnum):
    """Whose inputs may be shared.

    ``exact``: equal features; ``partial``: one equal dimension at least; ``any``: all that an adapter can bring together.
    """

    EXACT = "exact"
    PARTIAL = "partial"
    ANY = "any"


class Pair(NamedTuple):
    """``guest`` is to take the input of ``host``."""

    host: BlockId
    guest: BlockId


def pairs(graph: Graph, *, sharing: Sharing = Sharing.PARTIAL, barred: frozenset[str] = _NO_TYPES) -> list[Pair]:
    """Return all pairs that change a graph legally, sorted.

    Args:
        graph: What is to be mutated.
        sharing: Which features count as alike.
        barred: Kinds of block that are neither host nor guest.
    """
    may_join = _rule(graph, sharing, barred)
    blocks = graph.blocks()
    return [Pair(host, guest) for host in blocks for guest in blocks if may_join(host, guest)]


def is_legal(graph: Graph, pair: Pair, *, sharing: Sharing = Sharing.PARTIAL, barred: frozenset[str] = _NO_TYPES) -> bool:
    """Whether a pair changes a graph legally.

    Both blocks are there, the guest does not stand before the host, they do not take their input behind the same block
    already, neither is of a barred kind, and what the host takes is a float feature that the guest may share.
    """
    edges = graph.facts().edges
    return pair.host in edges and pair.guest in edges and _rule(graph, sharing, barred)(*pair)


def mutate(graph: Graph, pair: Pair) -> Graph:
    """Return the graph in which the guest takes the input of the host.

    Where an adapter from there to the guest's feature is in place it serves the guest too, whatever it is named after.

    Raises:
        FusionError: If one of the blocks is not in the graph, the guest stands before the host, or nothing would change.

    Example:
        >>> from fusion.search.absgraph import BlockInfo, original
        >>> picture, vector = Feature((3, 8, 8), Layout.CHW), Feature((16,), Layout.VEC)
        >>> trunk = BlockInfo(name="trunk", op_type="conv", input=picture, output=vector, capacity=448, flops=0)
        >>> head = BlockInfo(name="head", op_type="linear", input=vector, output=None, capacity=34, flops=64)
        >>> graph = original(Space(tasks=("age", "mood"), blocks=((trunk, head), (trunk, head))))
        >>> shared = mutate(graph, Pair(host=BlockId(0, 1), guest=BlockId(1, 1)))
        >>> [(tuple(block), edge.source and tuple(edge.source)) for block, edge in shared.edges]
        [((0, 0), None), ((0, 1), (0, 0)), ((1, 1), (0, 0))]
    """
    facts = graph.facts()
    if problem := _problem(facts, pair):
        raise FusionError(f"expected a pair that changes the graph, got {pair}: {problem}")
    guest, source, left = pair.guest, facts.edges[pair.host].source, facts.edges[pair.guest].source
    dead: set[BlockId] = set()
    # upwards from where the guest stood, as long as it was the only one behind
    while left is not None and left != source and len(facts.children[left]) == 1:
        dead.add(left)
        left = facts.edges[left].source
    edges = list(graph.edges)
    edges[facts.place[guest]] = (guest, _new_edge(graph, source, guest))
    for place in sorted((facts.place[block] for block in dead), reverse=True):
        del edges[place]
    return Graph(graph.space, tuple(edges))


def label(graph: Graph, pair: Pair) -> int:
    """Return which of the five mutations of the paper a pair is, by the positions before it.

    1: the host stands before the guest. Otherwise they stand on two branches; branches are ordered by the first task that they
    serve. 2 and 3: the guest has the same or a smaller number in its model than the host, whose branch is the left one in 2
    and the right one in 3. 4 and 5: the guest has a larger number; the host is left in 4, right in 5.

    Raises:
        FusionError: As :func:`mutate`.
    """
    facts = graph.facts()
    if problem := _problem(facts, pair):
        raise FusionError(f"expected a pair that changes the graph, got {pair}: {problem}")
    if facts.is_before(pair.host, pair.guest):
        return 1
    host_side, guest_side = _fork(facts, pair)
    is_left = min(facts.served[host_side]) < min(facts.served[guest_side])
    return (2 if is_left else 3) + (2 if pair.guest.op > pair.host.op else 0)


def mutation_pass(
    graph: Graph, pairs: Sequence[Pair], *, sharing: Sharing = Sharing.PARTIAL, barred: frozenset[str] = _NO_TYPES
) -> Graph | None:
    """Apply pairs one after the other, leaving out what is not legal when its turn comes.

    Returns:
        The last graph; None if it shares no more and no less than the first one.
    """
    current = graph
    for pair in pairs:
        if is_legal(current, pair, sharing=sharing, barred=barred):
            current = mutate(current, pair)
    return None if current is graph or current.key() == graph.key() else current


def single_mutations(
    graph: Graph, *, sharing: Sharing = Sharing.PARTIAL, barred: frozenset[str] = _NO_TYPES
) -> list[tuple[Pair, Graph]]:
    """Return every graph that one mutation makes, once each, with the first pair that makes it."""
    edges = graph.facts().edges
    first: dict[tuple[BlockId, BlockId | None], Pair] = {}
    for pair in pairs(graph, sharing=sharing, barred=barred):
        # who moved and to where is all that tells two results apart: adapters follow from the features
        first.setdefault((pair.guest, edges[pair.host].source), pair)
    return [(pair, mutate(graph, pair)) for pair in sorted(first.values())]


def may_share(host: Feature, guest: Feature, sharing: Sharing) -> bool:
    """Whether a block that takes ``guest`` may take what a block that takes ``host`` does (Definition 2 of the paper).

    Example:
        >>> wide, deep = Feature((64, 32, 32), Layout.CHW), Feature((128, 32, 32), Layout.CHW)
        >>> may_share(wide, deep, Sharing.PARTIAL), may_share(wide, deep, Sharing.EXACT)
        (True, False)
    """
    if host == guest:
        return True
    if sharing is Sharing.EXACT or Layout.OTHER in (host.layout, guest.layout):
        return False
    return sharing is Sharing.ANY or _have_equal_dimension(host, guest)


def _rule(graph: Graph, sharing: Sharing, barred: frozenset[str]) -> Callable[[BlockId, BlockId], bool]:
    """Return the function that tells whether two blocks of a graph may be joined; it remembers what it found for features."""
    space, facts = graph.space, graph.facts()
    numbers: dict[Feature, int] = {}
    feature_of = {block: numbers.setdefault(space.info(block).input, len(numbers)) for block in facts.edges}
    features = list(numbers)
    source_of = {block: edge.source for block, edge in graph.edges}
    free = {block for block in facts.edges if space.info(block).op_type not in barred}
    known: dict[tuple[int, int, BlockId | None], bool] = {}

    def may_join(host: BlockId, guest: BlockId) -> bool:
        source = source_of[host]
        if source == source_of[guest] or facts.is_before(guest, host) or host not in free or guest not in free:
            return False
        asked = (feature_of[host], feature_of[guest], source)
        if asked not in known:
            known[asked] = _features_allow(space, features[asked[0]], features[asked[1]], source, sharing)
        return known[asked]

    return may_join


def _features_allow(space: Space, host: Feature, guest: Feature, source: BlockId | None, sharing: Sharing) -> bool:
    if not (guest.is_float and may_share(host, guest, sharing)):
        return False
    return space.fits(source, guest) or can_rescale(space.boundary(source), guest)


def _have_equal_dimension(one: Feature, other: Feature) -> bool:
    if one.layout is other.layout:
        return any(a == b for a, b in zip(one.shape, other.shape, strict=False))
    if one.channels == other.channels:
        return True
    here, there = _grid(one), _grid(other)
    if len(here) == len(there):
        return any(a == b for a, b in zip(here, there, strict=True))
    # a map beside a sequence: as many tokens as the map has places, with or without a prefix
    few, many = sorted((here, there), key=len)
    return len(few) == 1 and len(many) == 2 and few[0] - many[0] * many[1] in PREFIX_LENGTHS


def _grid(feature: Feature) -> tuple[int, ...]:
    """Return the sizes of a feature without its channels."""
    match feature.layout:
        case Layout.CHW:
            return feature.shape[1:]
        case Layout.HWC | Layout.TOK:
            return feature.shape[:-1]
    return ()


def _problem(facts: Facts, pair: Pair) -> str | None:
    for block in pair:
        if block not in facts.edges:
            return f"{block} is not in it"
    if facts.is_before(pair.guest, pair.host):
        return "the guest stands before the host"
    if facts.edges[pair.host].source == facts.edges[pair.guest].source:
        return "both take their input there already"
    return None


def _new_edge(graph: Graph, source: BlockId | None, guest: BlockId) -> Edge:
    space, facts = graph.space, graph.facts()
    needed = space.info(guest).input
    language = _language(space, source, guest)
    if space.fits(source, needed) and language is None:
        return Edge(source)
    for child in facts.children[source]:
        adapter = facts.edges[child].adapter
        # who shares an adapter must not depend on who came first
        if adapter and space.info(adapter.target).input == needed and _language(space, source, adapter.target) == language:
            return Edge(source, adapter)
    return Edge(source, AdapterId(source, guest))


def _language(space: Space, source: BlockId | None, guest: BlockId) -> int | None:
    """Return the task whose coordinates an adapter has to speak; None if its guests can take any."""
    return guest.task if space.is_stitched(source, guest) else None


def _fork(facts: Facts, pair: Pair) -> tuple[BlockId, BlockId]:
    """Return the two blocks at which the branches of host and guest part, or a side itself where it stands at the fork."""
    host_path, guest_path = _path(facts, pair.host), _path(facts, pair.guest)
    for one, other in zip(host_path, guest_path, strict=False):
        if one != other:
            return one, other
    raise AssertionError("neither stands before the other, so their paths part")


def _path(facts: Facts, block: BlockId) -> list[BlockId]:
    """Return the blocks from the root to ``block``."""
    path, at = [], block
    while at is not None:
        path.append(at)
        at = facts.edges[at].source
    return path[::-1]
