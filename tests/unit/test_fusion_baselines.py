"""What a search is compared with: the common prefix of all models, and trees of common layers, enumerated and ranked."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping

import pytest

from fusion.graph.feature import Feature, Layout
from fusion.search.absgraph import BlockId, Graph, Space, capacities, flops, original
from fusion.search.baselines import (
    FixedPolicy,
    TreePolicy,
    all_shared,
    common_prefix,
    layout_graph,
    layouts,
)
from fusion.search.baselines import Layout as TaskLayout
from fusion.search.mutation import Sharing
from fusion.search.policy import Known, Snapshot
from fusion.search.space import BlockInfo
from tests.unit.fusion_graphs import SIZES, parents_of

Matrix = dict[tuple[int, int], int]


def model(*kinds: str, capacity: int = 100) -> tuple[BlockInfo, ...]:
    """Blocks over one feature; equal letters are blocks of one architecture. The last makes the answer."""
    return tuple(
        BlockInfo(
            name=f"layer{number}",
            op_type=kind,
            input=SIZES[1],
            output=None if number == len(kinds) - 1 else SIZES[1],
            capacity=capacity + ord(kind[0]),
            flops=1000,
        )
        for number, kind in enumerate(kinds)
    )


def space(*models: tuple[BlockInfo, ...]) -> Space:
    return Space(tasks=tuple(f"t{number}" for number in range(len(models))), blocks=models)


def alike(num_tasks: int, num_blocks: int) -> Space:
    return space(*[model(*"abcdefghi"[:num_blocks]) for _ in range(num_tasks)])


def drawn_as(graph: Graph) -> dict[tuple[int, int], tuple[int, int] | None]:
    return {tuple(block): source and tuple(source) for block, source in parents_of(graph).items()}


def prefix_of(where: Space) -> Matrix:
    return {pair: common_prefix(where, pair) for pair in itertools.combinations(range(len(where.tasks)), 2)}


def matrix(layout: TaskLayout) -> Matrix:
    return {(one, other): depth for one, other, depth in layout.shared()}


def shared_prefix(graph: Graph, one: int, other: int) -> int:
    """How many blocks stand before both tasks' answers, told from the graph."""
    ways = []
    for task in (one, other):
        way, at = [], graph.space.last(task)
        while at is not None:
            way.append(at)
            at = graph.edge(at).source
        ways.append(way[::-1])
    return sum(a == b for a, b in zip(*ways, strict=False))


def test_of_equal_models_everything_but_the_heads_is_shared():
    graph = all_shared(alike(3, 3))
    assert drawn_as(graph) == {(0, 0): None, (0, 1): (0, 0), (0, 2): (0, 1), (1, 2): (0, 1), (2, 2): (0, 1)}
    assert graph.adapters() == ()


def test_of_unequal_models_the_longest_common_prefix_is_shared():
    where = space(model(*"abcd"), model(*"abxd"), model(*"abcde"))
    assert drawn_as(all_shared(where)) == {
        (0, 0): None, (0, 1): (0, 0),
        (0, 2): (0, 1), (0, 3): (0, 2),
        (1, 2): (0, 1), (1, 3): (1, 2),
        (2, 2): (0, 1), (2, 3): (2, 2), (2, 4): (2, 3),
    }  # fmt: skip
    assert common_prefix(where, (0, 2)) == 3
    assert common_prefix(where, (0, 1)) == 2


@pytest.mark.parametrize(
    "other",
    [model(*"xbc"), model(*"abc", capacity=90), model("a"), model("aa", "b", "c")],
    ids=["first block differs", "other widths", "a head alone", "other operators"],
)
def test_where_no_first_block_is_equal_all_shared_is_the_original(other):
    where = space(model(*"abc"), other)
    assert all_shared(where).key() == original(where).key()


def test_needs_and_features_and_flops_count_for_equality():
    block = model(*"ab")[0]
    assert common_prefix(space((block, model(*"b")[0]), (block, model(*"b")[0])), (0, 1)) == 1
    for change in ({"needs": (0,)}, {"flops": 1}, {"output": Feature((8, 4, 4), Layout.CHW)}):
        other = BlockInfo(**({name: getattr(block, name) for name in BlockInfo.__slots__} | change))
        head = BlockInfo(name="head", op_type="b", input=other.output, output=None, capacity=1, flops=1)
        assert common_prefix(space((block, model(*"b")[0]), (other, head)), (0, 1)) == 0


def brute_force(prefix: Mapping[tuple[int, int], int], num_tasks: int) -> set[tuple[int, ...]]:
    """Every table of shared depths that a tree can have: of three tasks, the two smallest depths are equal."""
    names = list(itertools.combinations(range(num_tasks), 2))
    found = set()
    for depths in itertools.product(*(range(prefix[name] + 1) for name in names)):
        table = dict(zip(names, depths, strict=True))
        triples = itertools.combinations(range(num_tasks), 3)
        lows = [sorted((table[a, b], table[a, c], table[b, c])) for a, b, c in triples]
        if all(low[0] == low[1] for low in lows):
            found.add(depths)
    return found


SPACES = {
    "two": alike(2, 5),
    "three": alike(3, 4),
    "four": alike(4, 3),
    "three, one odd": space(model(*"abcd"), model(*"abcd"), model(*"axcd")),
    "four in two families": space(model(*"abcd"), model(*"abxd"), model(*"pqr"), model(*"pqr")),
}


@pytest.mark.parametrize("where", SPACES.values(), ids=SPACES)
def test_every_tree_of_common_layers_is_there_once(where):
    prefix, num_tasks = prefix_of(where), len(where.tasks)
    found = [*layouts(tuple(range(num_tasks)), prefix)]
    tables = [tuple(matrix(layout)[pair] for pair in prefix) for layout in found]
    assert len(set(tables)) == len(tables)
    assert set(tables) == brute_force(prefix, num_tasks)
    graphs = [layout_graph(where, layout) for layout in found]
    assert len({graph.key() for graph in graphs}) == len(graphs)
    for graph, layout in zip(graphs, found, strict=True):
        assert {pair: shared_prefix(graph, *pair) for pair in prefix} == matrix(layout)
        assert graph.adapters() == ()
        assert flops(graph) <= flops(original(where))


def test_the_number_of_trees_is_known_for_small_cases():
    assert sum(1 for _ in layouts((0, 1), {(0, 1): 4})) == 5  # depths 0 to 4
    three = dict.fromkeys(itertools.combinations(range(3), 2), 1)
    assert sum(1 for _ in layouts((0, 1, 2), three)) == 5  # Bell number: with one layer a tree is a partition
    four = dict.fromkeys(itertools.combinations(range(4), 2), 1)
    assert sum(1 for _ in layouts((0, 1, 2, 3), four)) == 15


def test_many_tasks_are_enumerated_one_at_a_time():
    odd = {pair: 0 if 7 in pair else 20 for pair in itertools.combinations(range(8), 2)}
    first = [*itertools.islice(layouts(tuple(range(8)), odd), 50)]  # there are far more than could be held
    assert len({tuple(sorted(matrix(layout).items())) for layout in first}) == 50


def snapshot(start: Graph, known: dict[str, Known], threshold: float = 0.02) -> Snapshot:
    return Snapshot(
        iteration=0,
        original=start,
        original_cost=float(flops(start)),
        elites=(),
        known=known,
        last_drop=0.0,
        thresholds=(threshold / 2, threshold),
        best_cost={threshold: float(flops(start))},
        predict=lambda graph: float(flops(graph)),
        similarity=lambda host, guest: 0.5,
        sharing=Sharing.PARTIAL,
        barred=frozenset(),
    )


def judged(graph: Graph, drop: float, expected: float = math.nan) -> Known:
    return Known(
        key=graph.key(), graph=graph, drop=drop, expected_drop=expected, cost=float(flops(graph)),
        parameters=capacities(graph).total, status="failed",
    )  # fmt: skip


def taken(policy: TreePolicy, start: Graph, drop_of: Callable[[Graph], float], count: int = 3) -> list[Graph]:
    """All graphs that a policy proposes, in order, each judged at once."""
    known: dict[str, Known] = {}
    order: list[Graph] = []
    while proposals := policy.propose(snapshot(start, known), random.Random(0), count):
        assert len(proposals) <= count
        for proposal in proposals:
            assert proposal.graph.key() not in known
            assert proposal.base is None
            order.append(proposal.graph)
            known[proposal.graph.key()] = judged(proposal.graph, drop_of(proposal.graph))
    return order


def depths(graph: Graph) -> list[int]:
    pairs = itertools.combinations(range(len(graph.space.tasks)), 2)
    return [depth for pair in pairs if (depth := shared_prefix(graph, *pair))]


def test_pairs_are_probed_first_and_then_trees_within_the_loosest_threshold_the_cheapest_first():
    where = alike(3, 5)
    start = original(where)
    costs = {1: 0.004, 2: 0.01, 3: 0.018, 4: 0.05}  # what a pair of tasks loses by the depth that it shares
    order = taken(TreePolicy(where), start, lambda graph: max(costs[depth] for depth in depths(graph)))
    probes, trees = order[:12], order[12:]
    assert all(len(depths(graph)) == 1 for graph in probes)
    assert sorted(depths(graph)[0] for graph in probes) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert trees
    assert all(max(depths(graph)) <= 3 for graph in trees)
    assert [flops(graph) for graph in trees] == sorted(flops(graph) for graph in trees)
    assert depths(trees[0]) == [3, 3, 3]
    wanted = {table for table in brute_force(prefix_of(where), 3) if max(table) <= 3 and sum(map(bool, table)) > 1}
    assert {tuple(shared_prefix(graph, *pair) for pair in prefix_of(where)) for graph in trees} == wanted


def test_between_probes_the_drop_is_linear_and_what_failed_altogether_is_never_a_part():
    where = alike(3, 9)  # probed at 2, 4, 6 and 8 common layers
    start = original(where)
    losses = {2: 0.01, 4: 0.03, 6: math.nan, 8: math.nan}
    order = taken(TreePolicy(where), start, lambda graph: losses.get(max(depths(graph)), 0.0))
    trees = order[12:]
    assert max(max(depths(graph)) for graph in trees) == 3  # 0.02 at three layers


def test_what_a_probe_would_have_lost_after_its_training_counts_rather_than_where_it_was_ended():
    where = alike(2, 5)
    policy, start = TreePolicy(where), original(where)
    probes = policy.propose(snapshot(start, {}), random.Random(0), 100)
    ended = {p.graph.key(): judged(p.graph, 0.5, expected=0.001) for p in probes}
    assert policy.propose(snapshot(start, ended), random.Random(0), 100) == []  # with two tasks the probes are the trees
    where = alike(3, 5)
    policy, start = TreePolicy(where), original(where)
    probes = policy.propose(snapshot(start, {}), random.Random(0), 100)
    ended = {p.graph.key(): judged(p.graph, 0.5, expected=0.001) for p in probes}
    trees = policy.propose(snapshot(start, ended), random.Random(0), 100)
    assert depths(trees[0].graph) == [4, 4, 4]


def test_models_with_nothing_in_common_have_no_tree():
    where = space(model(*"abc"), model(*"xyz"))
    assert TreePolicy(where).propose(snapshot(original(where), {}), random.Random(0), 5) == []


def test_given_graphs_are_proposed_once_and_never_the_original():
    where = alike(2, 4)
    start, shared = original(where), all_shared(alike(2, 4))
    policy = FixedPolicy([start, shared, shared])
    assert [p.graph.key() for p in policy.propose(snapshot(start, {}), random.Random(0), 5)] == [shared.key()]
    assert policy.propose(snapshot(start, {shared.key(): judged(shared, 0.0)}), random.Random(0), 5) == []


def test_the_parts_of_a_layout_know_their_tasks():
    leaf = TaskLayout.leaf
    pair = TaskLayout(depth=2, groups=(leaf(1), leaf(3)))
    whole = TaskLayout(depth=1, groups=(leaf(0), pair))
    assert (leaf(4).tasks, pair.tasks, whole.tasks) == ((4,), (1, 3), (0, 1, 3))
    assert matrix(whole) == {(0, 1): 1, (0, 3): 1, (1, 3): 2}
    graph = layout_graph(alike(4, 4), whole)
    assert graph.facts().served[BlockId(0, 0)] == {0, 1, 3}
    assert graph.facts().served[BlockId(1, 1)] == {1, 3}
    assert graph.facts().served[BlockId(2, 0)] == {2}
