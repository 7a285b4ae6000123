"""The abstract graph: what follows from which block stands behind which."""

from __future__ import annotations

import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout, adapter_capacity, adapter_flops
from fusion.search.absgraph import (
    AdapterId,
    BlockId,
    BlockInfo,
    Edge,
    Graph,
    Space,
    capacities,
    flops,
    original,
)
from fusion.search.mutation import Pair, Sharing, mutate, pairs
from tests.unit.fusion_graphs import SIZES, a_space, a_task, equal_space, graphs, unfolded, wander

B = BlockId


def test_original_shares_nothing_but_the_input():
    graph = original(a_space(3, 2))
    assert graph.edges == (
        (B(0, 0), Edge(None)),
        (B(0, 1), Edge(B(0, 0))),
        (B(0, 2), Edge(B(0, 1))),
        (B(1, 0), Edge(None)),
        (B(1, 1), Edge(B(1, 0))),
    )
    assert graph.adapters() == ()
    assert graph.tasks_of() == {block: frozenset((block.task,)) for block in graph.blocks()}


def test_nodes_tell_parent_children_and_cost_of_root_blocks_and_adapters():
    space = a_space(3, 3)
    graph = mutate(original(space), Pair(B(0, 1), B(1, 2)))
    adapter = AdapterId(B(0, 0), B(1, 2))
    nodes = {node.id: node for node in graph.nodes()}
    assert list(nodes) == [None, B(0, 0), B(0, 1), B(0, 2), adapter, B(1, 2)]
    assert (nodes[None].op_type, nodes[None].input, nodes[None].children) == ("input", space.root, (B(0, 0),))
    assert nodes[B(0, 0)].children == (B(0, 1), adapter)
    assert nodes[B(0, 0)].tasks == {0, 1}
    assert (nodes[adapter].parent, nodes[adapter].children, nodes[adapter].tasks) == (B(0, 0), (B(1, 2),), {1})
    assert (nodes[adapter].input, nodes[adapter].output) == (SIZES[1], SIZES[2])
    assert nodes[adapter].capacity == adapter_capacity(SIZES[1], SIZES[2]) == 9 * 8
    assert nodes[adapter].flops == adapter_flops(SIZES[1], SIZES[2])
    assert (nodes[B(1, 2)].parent, nodes[B(1, 2)].output) == (adapter, None)


def test_edge_of_a_block_that_is_gone_is_a_key_error():
    graph = mutate(original(a_space(3, 3)), Pair(B(0, 1), B(1, 2)))
    assert [graph.edge(block) for block in graph.blocks()] == [edge for _, edge in graph.edges]
    for gone in (B(1, 0), B(7, 0), B(0, -1)):
        with pytest.raises(KeyError):
            graph.edge(gone)


def test_shape_dictionary_names_the_blocks_that_take_a_feature():
    graph = mutate(original(a_space(3, 3)), Pair(B(0, 1), B(1, 2)))
    assert graph.shape_dictionary() == {SIZES[0]: (B(0, 0),), SIZES[1]: (B(0, 1),), SIZES[2]: (B(0, 2), B(1, 2))}


def test_capacity_counts_adapters():
    narrow, wide, picture = (Feature((count, 4, 4), Layout.CHW) for count in (8, 16, 3))
    one = BlockInfo(name="a", op_type="conv", input=picture, output=narrow, capacity=1000, flops=10)
    two = BlockInfo(name="b", op_type="conv", input=narrow, output=None, capacity=200, flops=20)
    other = BlockInfo(name="c", op_type="conv", input=picture, output=wide, capacity=3000, flops=30)
    last = BlockInfo(name="d", op_type="conv", input=wide, output=None, capacity=400, flops=40)
    graph = original(Space(tasks=("x", "y"), blocks=((one, two), (other, last))))
    before = capacities(graph)
    assert (before.total, before.per_task, before.specific, dict(before.by_set)) == (4600, (1200, 3400), (1200, 3400), {})
    fused = mutate(graph, Pair(B(0, 1), B(1, 1)))
    after = capacities(fused)  # the adapter from 8 to 16 channels has (8 + 1) * 16 = 144 parameters
    assert after.total == 1000 + 200 + 144 + 400
    assert after.per_task == (1200, 1000 + 144 + 400)
    assert after.specific == (200, 144 + 400)
    assert after.by_set == {frozenset((0, 1)): 1000}
    assert flops(fused) == 10 + 20 + 40 + adapter_flops(narrow, wide)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_capacities_are_those_of_the_paths(graph: Graph):
    nodes = {node.id: node for node in graph.nodes()}
    paths = []
    for task in range(len(graph.space.tasks)):
        path, at = {}, graph.space.last(task)
        while at is not None:
            path[at] = nodes[at].capacity
            at = nodes[at].parent
        paths.append(path)
    found = capacities(graph)
    assert found.total == sum(node.capacity for node in nodes.values())
    assert found.per_task == tuple(sum(path.values()) for path in paths)
    for task, path in enumerate(paths):
        others = set().union(*(other for number, other in enumerate(paths) if number != task))
        assert found.specific[task] == sum(count for node, count in path.items() if node not in others)
    assert found.total == sum(found.specific) + sum(found.by_set.values())
    assert all(len(tasks) > 1 for tasks in found.by_set)
    assert flops(graph) == sum(node.flops for node in nodes.values())


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_task_has_one_output_and_every_node_serves_a_task(graph: Graph):
    nodes = {node.id: node for node in graph.nodes()}
    outputs = [node.id for node in nodes.values() if not node.children]
    assert sorted(outputs) == [graph.space.last(task) for task in range(len(graph.space.tasks))]
    for node in nodes.values():
        served = set(node.children)
        expected = frozenset().union(*(nodes[child].tasks for child in served)) if served else {node.id.task}
        assert node.tasks == expected
        assert node.tasks
        assert all(nodes[child].parent == node.id for child in node.children)
    seen = set()
    for node in graph.nodes():
        assert node.id is None or node.parent in seen
        seen.add(node.id)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_block_gets_what_it_takes(graph: Graph):
    nodes = {node.id: node for node in graph.nodes()}
    for node in nodes.values():
        if node.id is not None:
            assert nodes[node.parent].output == node.input
    adapters = graph.adapters()
    features = [(adapter.source, graph.space.info(adapter.target).input) for adapter in adapters]
    assert len(set(features)) == len(features), "two equal adapters stand behind one block"


@settings(max_examples=60, deadline=None)
@given(graphs(max_tasks=4, max_steps=3), st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 3))
def test_keys_are_equal_exactly_for_isomorphic_graphs(graph: Graph, seed: int, steps: int, other_steps: int):
    rng = random.Random(seed)
    start = original(graph.space)
    family = [graph, wander(graph, rng, steps)[0], wander(start, rng, other_steps)[0], wander(start, rng, 1)[0], start]
    for one in family:
        for other in family:
            assert (one.key() == other.key()) == (unfolded(one) == unfolded(other))


def test_all_graphs_of_a_small_space_have_keys_of_their_own():
    found, fresh = {}, [original(a_space(3, 2))]
    while fresh:
        graph = fresh.pop()
        told = unfolded(graph)
        if told not in found:
            found[told] = graph.key()
            fresh += [mutate(graph, pair) for pair in pairs(graph, sharing=Sharing.ANY)]
        assert found[told] == graph.key()
    assert len(set(found.values())) == len(found) > 10


def test_order_of_independent_mutations_does_not_change_the_key():
    graph = original(a_space(4, 4, 4))
    one, two = Pair(B(0, 2), B(1, 2)), Pair(B(0, 3), B(2, 3))
    assert mutate(mutate(graph, one), two).key() == mutate(mutate(graph, two), one).key()


def test_what_an_adapter_is_named_after_does_not_enter_the_key():
    graph = original(equal_and_deep())
    first, second = Pair(B(0, 1), B(1, 2)), Pair(B(0, 1), B(2, 2))
    one, other = mutate(mutate(graph, first), second), mutate(mutate(graph, second), first)
    assert one.adapters() != other.adapters()
    assert one.key() == other.key()


def test_same_pass_twice_same_hash():
    graph = original(a_space(4, 4, 4))
    chosen = (Pair(B(0, 2), B(1, 3)), Pair(B(1, 3), B(2, 2)))

    def key_of_pass() -> str:
        return mutate(mutate(graph, chosen[0]), chosen[1]).key()

    before = key_of_pass()
    rng, made = random.Random(3), 0
    while made <= 512:
        made += len(wander(graph, rng, 3)[0].adapters())
    assert key_of_pass() == before


def test_sharing_12_23_13_hash_differently():
    graph = original(equal_space(3, 3))
    keys = {mutate(graph, Pair(B(host, 2), B(guest, 2))).key() for host, guest in [(0, 1), (1, 2), (0, 2)]}
    assert len(keys) == 3


def test_key_does_not_depend_on_the_process():
    # a literal, so that histories of one version can be read by the next
    assert original(a_space(2, 2)).key() == "ae6183e4146d5fb9a84bfc9b42b56542"


def test_graph_and_space_survive_json_and_pickle():
    space = a_space(4, 3, 4)
    for seed in range(20):
        graph, _ = wander(original(space), random.Random(seed), 4)
        again = Space.from_json(json.loads(json.dumps(space.to_json())))
        assert again == space
        assert Graph.from_json(again, json.loads(json.dumps(graph.to_json()))) == graph
        assert pickle.loads(pickle.dumps(graph)).key() == graph.key()


@pytest.mark.parametrize(
    ("edges", "problem"),
    [
        ([[[0, 0], None, None], [[0, 1], [0, 0], None]], "the output of task 'task1' is missing"),
        ([[[0, 1], None, [0, 1]], [[1, 0], None, None], [[1, 1], [0, 0], None]], "cannot be reached from the input"),
        ([[[0, 1], None, [0, 1]], [[1, 0], None, None], [[1, 1], None, [1, 1]]], "BlockId(task=1, op=0) serves no task"),
        ([[[0, 0], None, None], [[0, 1], [0, 0], None], [[1, 7], [0, 0], None]], "BlockId(task=1, op=7) is not in the space"),
        ([[[0, 1], None, None], [[1, 1], None, [1, 1]]], "through no adapter"),
        ([[[0, 1], None, [0, 1]], [[1, 1], [0, 1], None]], "the last of its task but has blocks behind it"),
        ([[[0, 1], None, [0, 1]], [[0, 1], None, [0, 1]], [[1, 1], None, [0, 1]]], "stands twice"),
    ],
)
def test_reading_a_graph_that_is_none_says_what_is_wrong(edges, problem: str):
    with pytest.raises(FusionError) as caught:
        Graph.from_json(a_space(2, 2), edges)
    assert problem in str(caught.value)


def test_space_refuses_blocks_that_do_not_meet():
    good, bad = a_task(SIZES[:3]), a_task(SIZES[:3])
    with pytest.raises(FusionError, match="'b': block 0 makes"):
        Space(tasks=("a", "b"), blocks=(good, (bad[0], bad[2])))
    with pytest.raises(FusionError, match="'b' takes an input of shape"):
        Space(tasks=("a", "b"), blocks=(good, a_task(SIZES[1:3])))
    with pytest.raises(FusionError, match="'b' has no block"):
        Space(tasks=("a", "b"), blocks=(good, ()))
    with pytest.raises(FusionError, match="expected blocks for each of 1 tasks"):
        Space(tasks=("a",), blocks=(good, good))


def test_nothing_stands_behind_a_last_block():
    space = a_space(2, 2)
    with pytest.raises(FusionError, match="the last of 'task1'"):
        space.boundary(B(1, 1))


def test_first_blocks_that_read_one_input_differently_need_no_adapter():
    seen_as = [Feature((8, 8, 8), Layout.CHW), Feature((8, 8, 8), Layout.HWC)]
    space = Space(tasks=("a", "b"), blocks=tuple(a_task([seen, SIZES[3], seen]) for seen in seen_as))
    graph = original(space)
    assert Graph.from_json(space, graph.to_json()) == graph
    fused = mutate(graph, Pair(B(0, 0), B(1, 2)))  # the last block of b takes what its first one takes
    assert fused.edge(B(1, 2)) == Edge(None)


def equal_and_deep() -> Space:
    """Three like models whose blocks 1 and 2 take different features."""
    return a_space(4, 4, 4)
