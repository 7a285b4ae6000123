"""Mutations: one rule, five cases, and what may be paired."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout
from fusion.search.absgraph import (
    AdapterId,
    BlockId,
    Edge,
    Graph,
    Space,
    capacities,
    capacity_of,
    flops,
    flops_of,
    original,
)
from fusion.search.mutation import (
    Pair,
    Sharing,
    is_legal,
    label,
    may_share,
    mutate,
    mutation_pass,
    pairs,
    single_mutations,
)
from tests.unit.fusion_graphs import (
    SIZES,
    a_space,
    a_task,
    equal_space,
    graphs,
    parents_of,
    plainly_legal,
    plainly_mutated,
    spaces,
    unfolded,
    wander,
)

B = BlockId


def names(graph: Graph) -> dict[str, str | None]:
    """Which block stands behind which, as in 'a2'."""
    return {name(block): edge.source and name(edge.source) for block, edge in graph.edges}


def name(block: BlockId) -> str:
    return f"{'abcdefgh'[block.task]}{block.op}"


def block(text: str) -> BlockId:
    return B("abcdefgh".index(text[0]), int(text[1:]))


def pair(host: str, guest: str) -> Pair:
    return Pair(block(host), block(guest))


def fused(graph: Graph, *chosen: tuple[str, str]) -> Graph:
    for host, guest in chosen:
        graph = mutate(graph, pair(host, guest))
    return graph


TWO = equal_space(2, 4)
THREE = equal_space(3, 4)


def test_mutation_1_skips_blocks_of_one_branch():
    graph = original(TWO)
    assert label(graph, pair("a1", "a3")) == 1
    assert names(fused(graph, ("a1", "a3"))) == {
        "a0": None, "a3": "a0", "b0": None, "b1": "b0", "b2": "b1", "b3": "b2"
    }  # fmt: skip


def test_mutation_2_joins_the_left_branch_at_the_same_or_a_later_number():
    graph = original(TWO)
    assert label(graph, pair("a2", "b2")) == label(graph, pair("a3", "b2")) == 2
    assert names(fused(graph, ("a2", "b2"))) == {"a0": None, "a1": "a0", "a2": "a1", "a3": "a2", "b2": "a1", "b3": "b2"}
    assert names(fused(graph, ("a3", "b2")))["b2"] == "a2"


def test_mutation_3_joins_the_right_branch_at_the_same_or_a_later_number():
    graph = original(TWO)
    assert label(graph, pair("b2", "a2")) == label(graph, pair("b2", "a1")) == 3
    assert names(fused(graph, ("b2", "a1"))) == {
        "a1": "b1", "a2": "a1", "a3": "a2", "b0": None, "b1": "b0", "b2": "b1", "b3": "b2"
    }  # fmt: skip


def test_mutation_4_joins_the_left_branch_at_an_earlier_number():
    graph = original(TWO)
    assert label(graph, pair("a2", "b3")) == 4
    assert names(fused(graph, ("a2", "b3"))) == {"a0": None, "a1": "a0", "a2": "a1", "a3": "a2", "b3": "a1"}


def test_mutation_5_joins_the_right_branch_at_an_earlier_number():
    graph = original(TWO)
    assert label(graph, pair("b1", "a3")) == 5
    assert names(fused(graph, ("b1", "a3"))) == {"a3": "b0", "b0": None, "b1": "b0", "b2": "b1", "b3": "b2"}


def test_left_and_right_follow_the_tasks_that_branches_serve():
    # a's tail hangs in c's branch: seen from b, that branch now begins with task a, so b's is the right one
    graph = fused(original(THREE), ("c2", "a2"))
    assert label(graph, pair("c1", "b1")) == 2
    assert label(graph, pair("b1", "c1")) == 3


def test_pass_of_the_papers_figure_6():
    # the middle branch joins the left one, then the right one takes the input of the block that moved
    graph = mutation_pass(original(THREE), [pair("a2", "b2"), pair("b3", "c3")], sharing=Sharing.EXACT)
    assert graph is not None
    assert names(graph) == {
        "a0": None, "a1": "a0", "a2": "a1", "a3": "a2", "b2": "a1", "b3": "b2", "c3": "b2"
    }  # fmt: skip


def test_blocks_that_serve_another_task_stay():
    graph = fused(original(THREE), ("b3", "c3"), ("a1", "b3"))
    assert names(graph) == {
        "a0": None, "a1": "a0", "a2": "a1", "a3": "a2", "b0": None, "b1": "b0", "b2": "b1", "b3": "a0", "c3": "b2"
    }  # fmt: skip
    assert graph.tasks_of()[B(1, 2)] == {2}


def test_a_moved_block_takes_everything_behind_it_along():
    graph = fused(original(THREE), ("b3", "c3"), ("a1", "b1"))
    assert names(graph) == {
        "a0": None, "a1": "a0", "a2": "a1", "a3": "a2", "b1": "a0", "b2": "b1", "b3": "b2", "c3": "b2"
    }  # fmt: skip
    assert graph.tasks_of()[B(1, 1)] == {1, 2}
    assert graph.tasks_of()[B(0, 0)] == {0, 1, 2}


def test_a_last_block_can_be_host_and_guest():
    graph = fused(original(TWO), ("a3", "b3"))
    assert names(graph) == {"a0": None, "a1": "a0", "a2": "a1", "a3": "a2", "b3": "a2"}
    assert {pair.host for pair in pairs(original(TWO))} == set(original(TWO).blocks())
    assert {pair.guest for pair in pairs(original(TWO))} == set(original(TWO).blocks())


def test_guest_takes_the_hosts_adapter_where_that_fits():
    graph = original(a_space(4, 4, 4))  # blocks 1, 2 and 3 take different features
    joined = fused(graph, ("a1", "b2"), ("b2", "c2"))
    adapter = AdapterId(B(0, 0), B(1, 2))
    assert joined.edge(B(1, 2)) == joined.edge(B(2, 2)) == Edge(B(0, 0), adapter)
    assert joined.adapters() == (adapter,)
    assert joined.tasks_of()[adapter] == {1, 2}


def test_guest_takes_what_is_before_the_hosts_adapter_where_that_does_not_fit():
    graph = fused(original(a_space(4, 4, 4)), ("a1", "b2"))
    assert fused(graph, ("b2", "c1")).edge(B(2, 1)) == Edge(B(0, 0), None)
    assert fused(graph, ("b2", "c3")).edge(B(2, 3)) == Edge(B(0, 0), AdapterId(B(0, 0), B(2, 3)))


def test_an_adapter_keeps_its_name_when_the_block_it_was_made_for_leaves():
    graph = fused(original(a_space(4, 4, 4)), ("a1", "b2"), ("b2", "c2"))
    left = fused(graph, ("a3", "b2"))
    assert left.edge(B(2, 2)) == Edge(B(0, 0), AdapterId(B(0, 0), B(1, 2)))
    assert Graph.from_json(left.space, left.to_json()) == left


def test_adapter_of_a_skipped_block_goes_on_to_serve_the_one_behind_it():
    feature = [SIZES[0], SIZES[1], SIZES[2], SIZES[1], SIZES[2]]
    graph = fused(original(a_space(5, 5, features=feature)), ("a1", "b2"))
    adapter = AdapterId(B(0, 0), B(1, 2))
    assert fused(graph, ("b2", "b4")).edge(B(1, 4)) == Edge(B(0, 0), adapter)


@settings(max_examples=80, deadline=None)
@given(spaces(), st.integers(0, 2**32), st.integers(1, 8))
def test_random_trees_up_to_8_tasks_match_reference(space: Space, seed: int, steps: int):
    graph, done = wander(original(space), random.Random(seed), steps)
    outputs = frozenset(space.last(task) for task in range(len(space.tasks)))
    expected = parents_of(original(space))
    for chosen in done:
        expected = plainly_mutated(expected, chosen, outputs)
    assert parents_of(graph) == expected
    assert Graph.from_json(space, graph.to_json()) == graph  # reading checks every edge


@settings(max_examples=40, deadline=None)
@given(graphs(max_tasks=5), st.sampled_from([Sharing.EXACT, Sharing.ANY]))
def test_pairs_are_all_that_the_definition_allows(graph: Graph, sharing: Sharing):
    parents = parents_of(graph)
    expected = [
        Pair(host, guest)
        for host in graph.blocks()
        for guest in graph.blocks()
        if plainly_legal(graph.space, parents, Pair(host, guest), sharing)
    ]
    assert pairs(graph, sharing=sharing) == expected
    assert all(is_legal(graph, chosen, sharing=sharing) for chosen in expected[:10])


@settings(max_examples=40, deadline=None)
@given(graphs(max_tasks=5))
def test_sharing_widens_from_exact_over_partial_to_any(graph: Graph):
    exact, partial, anything = (set(pairs(graph, sharing=sharing)) for sharing in Sharing)
    assert exact <= partial <= anything
    for chosen in anything:
        features = (graph.space.info(chosen.host).input, graph.space.info(chosen.guest).input)
        assert (chosen in partial) == may_share(*features, Sharing.PARTIAL)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_every_pair_has_an_effect_one_of_five_labels_and_never_costs_more_than_its_adapters(graph: Graph):
    before = [(measure(graph), of) for measure, of in [(flops, flops_of), (lambda g: capacities(g).total, capacity_of)]]
    for chosen in pairs(graph, sharing=Sharing.ANY)[::7]:
        new = mutate(graph, chosen)
        assert new.key() != graph.key()
        assert label(graph, chosen) in (1, 2, 3, 4, 5)
        fresh = [adapter for adapter in new.adapters() if adapter not in graph.adapters()]
        assert len(fresh) <= 1
        after = (flops(new), capacities(new).total)
        for (base, of), cost in zip(before, after, strict=True):
            assert cost <= base + sum(of(graph.space, adapter) for adapter in fresh)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_labels_follow_position_and_number(graph: Graph):
    parents = parents_of(graph)
    for chosen in pairs(graph, sharing=Sharing.ANY)[::5]:
        found = label(graph, chosen)
        at, stands_before = parents[chosen.guest], False
        while at is not None:
            stands_before = stands_before or at == chosen.host
            at = parents[at]
        assert (found == 1) == stands_before
        if found > 1:
            assert (found in (4, 5)) == (chosen.guest.op > chosen.host.op)
            back = Pair(chosen.guest, chosen.host)
            assert (found in (2, 4)) == (label(graph, back) in (3, 5))


@settings(max_examples=25, deadline=None)
@given(graphs(max_tasks=4))
def test_single_mutations_are_all_there_and_none_twice(graph: Graph):
    found = single_mutations(graph, sharing=Sharing.ANY)
    told = [unfolded(new) for _, new in found]
    assert len(set(told)) == len(told)
    assert set(told) == {unfolded(mutate(graph, chosen)) for chosen in pairs(graph, sharing=Sharing.ANY)}
    assert [chosen for chosen, _ in found] == sorted(chosen for chosen, _ in found)
    assert all(mutate(graph, chosen) == new for chosen, new in found)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (("a1", "a1"), "stands before"),
        (("a3", "a1"), "stands before"),
        (("a0", "b0"), "there already"),
        (("a0", "b9"), "is not in it"),
    ],
)
def test_pairs_without_sense_are_refused(chosen: tuple[str, str], reason: str):
    graph = original(TWO)
    for ask in (mutate, label):
        with pytest.raises(FusionError, match=reason):
            ask(graph, pair(*chosen))
    assert not is_legal(graph, pair(*chosen), sharing=Sharing.ANY)


def test_pair_that_would_only_take_another_adapter_is_not_legal():
    graph = fused(original(a_space(4, 4, 4)), ("a1", "b2"), ("a1", "c3"))
    assert graph.edge(B(1, 2)).adapter != graph.edge(B(2, 3)).adapter
    assert not is_legal(graph, pair("b2", "c3"), sharing=Sharing.ANY)
    assert not is_legal(graph, pair("a1", "b2"), sharing=Sharing.ANY)


def test_barred_kinds_are_neither_host_nor_guest():
    kinds = ["conv", "attention", "conv", "linear"]
    run = [SIZES[1]] * 4
    space = Space(tasks=("a", "b"), blocks=tuple(a_task(run, op_types=kinds) for _ in range(2)))
    graph = original(space)
    found = pairs(graph, barred=frozenset({"attention"}))
    assert found == [p for p in pairs(graph) if 1 not in (p.host.op, p.guest.op)]
    assert not is_legal(graph, pair("a2", "b1"), barred=frozenset({"attention"}))
    assert mutation_pass(graph, [pair("a2", "b1")], barred=frozenset({"attention"})) is None


def test_token_ids_are_no_source():
    ids, hidden = Feature((12,), Layout.OTHER, "int64"), Feature((12, 32), Layout.TOK)
    space = Space(tasks=("a", "b"), blocks=(a_task([ids, hidden, hidden]), a_task([ids, hidden, hidden])))
    found = pairs(original(space), sharing=Sharing.ANY)
    assert found
    assert all(0 not in (p.host.op, p.guest.op) for p in found)
    fusion = mutate(original(space), pair("a1", "b2"))
    assert all(fusion.edge(p.host).source is not None for p in pairs(fusion, sharing=Sharing.ANY))


def test_unknown_layouts_are_shared_only_between_equals():
    odd, other = Feature((5, 6, 7, 8), Layout.OTHER), Feature((5, 6, 7), Layout.OTHER)
    run = [SIZES[1], odd, other, SIZES[2]]
    graph = original(a_space(4, 4, features=run))
    for p in pairs(graph, sharing=Sharing.ANY):
        taken = graph.space.info(p.host).input, graph.space.info(p.guest).input
        assert taken[0] == taken[1] or Layout.OTHER not in (taken[0].layout, taken[1].layout)
    assert is_legal(graph, pair("a1", "b1"), sharing=Sharing.EXACT)


def test_what_no_adapter_can_bring_together_is_not_shared():
    clip, longer = Feature((8, 4, 6, 6), Layout.CHW), Feature((8, 2, 6, 6), Layout.CHW)  # pictures in a row
    graph = original(a_space(4, 4, features=[SIZES[0], clip, longer, clip]))
    for sharing in (Sharing.PARTIAL, Sharing.ANY):
        assert is_legal(graph, pair("a1", "b3"), sharing=sharing)
        assert not is_legal(graph, pair("a1", "b2"), sharing=sharing)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Feature((64, 8, 8), Layout.CHW), Feature((64, 4, 4), Layout.CHW), True),  # channels
        (Feature((64, 8, 4), Layout.CHW), Feature((32, 2, 4), Layout.CHW), True),  # width
        (Feature((64, 8, 8), Layout.CHW), Feature((32, 4, 4), Layout.CHW), False),
        (Feature((64, 8, 8), Layout.CHW), Feature((8, 64, 32), Layout.CHW), False),  # equal numbers of other dimensions
        (Feature((64, 8, 8), Layout.CHW), Feature((8, 4, 32), Layout.HWC), True),  # height, in another layout
        (Feature((64, 8, 8), Layout.CHW), Feature((4, 4, 64), Layout.HWC), True),  # channels, in another layout
        (Feature((64, 8, 8), Layout.CHW), Feature((64, 4, 32), Layout.HWC), False),
        (Feature((197, 192), Layout.TOK), Feature((64, 14, 14), Layout.CHW), True),  # class token + 14 * 14
        (Feature((197, 192), Layout.TOK), Feature((64, 16, 16), Layout.CHW), False),
        (Feature((197, 192), Layout.TOK), Feature((198, 192), Layout.TOK), True),
        (Feature((197, 192), Layout.TOK), Feature((198, 384), Layout.TOK), False),
        (Feature((192,), Layout.VEC), Feature((197, 192), Layout.TOK), True),
        (Feature((192,), Layout.VEC), Feature((191,), Layout.VEC), False),
        (Feature((64, 30), Layout.CHW), Feature((30, 128), Layout.TOK), True),  # a signal and a text of one length
    ],
)
def test_partial_sharing_wants_one_equal_dimension(one: Feature, other: Feature, expected: bool):
    assert may_share(one, other, Sharing.PARTIAL) is may_share(other, one, Sharing.PARTIAL) is expected
    assert may_share(one, other, Sharing.ANY)
    assert not may_share(one, other, Sharing.EXACT)


def test_pass_checks_each_pair_on_the_graph_of_its_turn():
    graph = original(TWO)
    # after the first pair block a1 is gone, so that the second has no effect
    assert mutation_pass(graph, [pair("b2", "a2"), pair("b2", "a1")]) == fused(graph, ("b2", "a2"))


def test_noop_pass_is_no_candidate():
    graph = original(THREE)
    assert mutation_pass(graph, []) is None
    assert mutation_pass(graph, [pair("a0", "b0"), pair("a2", "a1")]) is None
    # there and back again: c3 holds b's blocks in place while b3 is away
    start = fused(graph, ("b3", "c3"))
    assert mutation_pass(start, [pair("a3", "b3"), pair("c3", "b3")]) is None


def test_no_hidden_pair_limit():
    graph = original(equal_space(3, 12))
    # any two of 36 blocks that do not take the same input, the guest not before the host
    expected = 36 * 35 - 6 - 3 * (12 * 11 // 2)
    assert len(pairs(graph, sharing=Sharing.EXACT)) == expected > 200
    mixed = original(a_space(12, 12, 12))
    assert len(pairs(mixed, sharing=Sharing.EXACT)) > 200
    assert len(pairs(mixed, sharing=Sharing.PARTIAL)) > len(pairs(mixed, sharing=Sharing.EXACT))
