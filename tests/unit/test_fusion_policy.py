"""Policies and elites: what is tried next, and what later candidates may start from."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.search.absgraph import Graph, capacities, flops, original
from fusion.search.elites import keep_best, keep_newest
from fusion.search.exhaustive import ExhaustivePolicy
from fusion.search.mutation import Sharing, mutation_pass, pairs, single_mutations
from fusion.search.policy import AnnealingPolicy, Known, Policy, Proposal, RandomPolicy, Snapshot, elite_probability
from tests.unit.fusion_graphs import a_space, equal_space, spaces, unfolded, wander

POLICIES: dict[str, Callable[[], Policy]] = {
    "annealing": AnnealingPolicy,
    "paper": lambda: AnnealingPolicy(num_pairs=2),
    "printed": lambda: AnnealingPolicy(printed=True),
    "random": RandomPolicy,
    "exhaustive": ExhaustivePolicy,
}
every_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)


def known(graph: Graph, status: str = "accepted", drop: float = 0.0, bases: frozenset[str | None] | None = None) -> Known:
    return Known(
        key=graph.key(),
        graph=graph,
        drop=drop,
        cost=float(flops(graph)),
        parameters=capacities(graph).total,
        status=status,
        bases=bases,
    )


def snapshot(graph: Graph, *entries: Known, iteration: int = 0, drop: float = 0.0, **rest: object) -> Snapshot:
    settled = {
        "iteration": iteration,
        "original": graph,
        "original_cost": float(flops(graph)),
        "elites": tuple(entry for entry in entries if entry.status == "accepted"),
        "known": {entry.key: entry for entry in entries},
        "last_drop": drop,
        "thresholds": (0.01,),
        "best_cost": {0.01: float(flops(graph))},
        "predict": lambda candidate: float(flops(candidate)),
        "similarity": lambda host, guest: 0.5,
        "sharing": Sharing.PARTIAL,
        "barred": frozenset(),
    }
    return Snapshot(**(settled | rest))


def search(policy: Policy, graph: Graph, *, seed: int, rounds: int, count: int = 2, **rest: object) -> list[Proposal]:
    """Accept every third candidate and go on."""
    found: list[Proposal] = []
    entries: list[Known] = []
    for iteration in range(rounds):
        state = snapshot(graph, *entries, iteration=iteration, drop=0.01 * (iteration % 3), **rest)
        for proposal in policy.propose(state, random.Random(f"{seed} {iteration}"), count):
            status = "accepted" if len(found) % 3 == 0 else "failed"
            entries.append(known(proposal.graph, status))
            found.append(proposal)
    return found


@every_policy
@settings(max_examples=15, deadline=None)
@given(space=spaces(max_tasks=5, max_blocks=4), seed=st.integers(0, 1000))
def test_proposals_are_new_and_made_by_their_pairs_from_their_base(make: Callable[[], Policy], space, seed: int):
    start = original(space)
    found = search(make(), start, seed=seed, rounds=6, sharing=Sharing.ANY)
    assert len({proposal.graph.key() for proposal in found}) == len(found)
    graphs: dict[str | None, Graph] = {None: start}
    for proposal in found:
        assert proposal.graph.key() != start.key()
        again = mutation_pass(graphs[proposal.base], proposal.pairs, sharing=Sharing.ANY)
        assert again is not None
        assert again.key() == proposal.graph.key()
        graphs[proposal.graph.key()] = proposal.graph


@every_policy
def test_same_seed_same_proposals(make: Callable[[], Policy]):
    start = original(a_space(4, 5, 4))
    one, other = (search(make(), start, seed=7, rounds=12) for _ in range(2))
    assert one == other
    assert one


@every_policy
def test_policies_never_touch_global_random_state(make: Callable[[], Policy]):
    random.seed(123)
    before = random.getstate()
    search(make(), original(a_space(4, 4)), seed=1, rounds=5)
    assert random.getstate() == before


@every_policy
def test_snapshot_decides_and_not_what_was_asked_before(make: Callable[[], Policy]):
    start = original(a_space(4, 4))
    used = make()
    search(used, start, seed=3, rounds=8)
    state = snapshot(start, known(single_mutations(start)[2][1]))
    assert used.propose(state, random.Random(1), 3) == make().propose(state, random.Random(1), 3)


@every_policy
def test_exhausted_space_ends(make: Callable[[], Policy]):
    start = original(equal_space(2, 2))
    entries, seen = [known(start)], set()
    for round_number in range(50):
        found = make().propose(snapshot(start, *entries), random.Random(round_number), 3)
        entries += [known(proposal.graph) for proposal in found]
        seen |= {proposal.graph.key() for proposal in found}
        if not found:
            break
    assert found == []
    # with every candidate accepted nothing that one mutation makes is missed
    assert {graph.key() for _, graph in single_mutations(start)} <= seen


@every_policy
def test_space_without_pairs_is_exhausted_at_once(make: Callable[[], Policy]):
    start = original(a_space(1, 1))
    assert make().propose(snapshot(start), random.Random(0), 4) == []


@every_policy
def test_barred_kinds_and_sharing_are_kept(make: Callable[[], Policy]):
    start = original(a_space(4, 4))
    assert make().propose(snapshot(start, barred=frozenset({"conv"})), random.Random(0), 4) == []
    allowed = set(pairs(start, sharing=Sharing.EXACT))
    for proposal in make().propose(snapshot(start, sharing=Sharing.EXACT), random.Random(0), 8):
        assert set(proposal.pairs) & allowed


@pytest.mark.parametrize(
    ("iteration", "corrected", "printed"),
    [(1, 0.632, 0.00012), (50, 0.805, 0.00020), (100, 0.933, 0.00033), (200, 0.999, 0.00091)],
)
def test_elite_probability_vector(iteration: int, corrected: float, printed: float):
    assert elite_probability(0.01, iteration, 16) == pytest.approx(corrected, abs=6e-4)
    assert elite_probability(0.01, iteration, 16, printed=True) == pytest.approx(printed, abs=6e-6)


def test_elite_probability_grows_with_the_elites_and_is_zero_without():
    assert elite_probability(0.0, 300, 0) == 0.0
    assert elite_probability(0.0, 3, 4) == pytest.approx(elite_probability(0.0, 3, 16) / 2, rel=1e-12)
    assert elite_probability(0.0, 3, 40) == elite_probability(0.0, 3, 16)


def test_delta_is_clipped():
    assert elite_probability(-0.3, 10, 8) == elite_probability(0.0, 10, 8)
    assert elite_probability(1.7, 10, 8) == elite_probability(1.0, 10, 8) == 0.0
    assert elite_probability(-5.0, 10_000, 16) == 1.0


def test_annealing_starts_from_elites_as_often_as_the_formula_says():
    start = original(a_space(6, 6, 6))
    elites = [known(graph) for _, graph in single_mutations(start)[:16]]
    state = snapshot(start, *elites, iteration=50, drop=0.01)
    num_draws = 800
    bases = [AnnealingPolicy().propose(state, random.Random(seed), 1)[0].base for seed in range(num_draws)]
    share = sum(base is not None for base in bases) / num_draws
    # four standard errors of a share of .8 in so many draws; draws repeated for known graphs shift it by less
    assert share == pytest.approx(0.805, abs=4 * (0.8 * 0.2 / num_draws) ** 0.5)
    assert {base for base in bases if base} == {elite.key for elite in elites}


def test_pairs_uniform():
    start = original(a_space(4, 4))  # features of very different frequency
    legal = pairs(start)
    num_draws = 60 * len(legal)
    counts = Counter(
        RandomPolicy(num_pairs=1).propose(snapshot(start), random.Random(seed), 1)[0].pairs[0] for seed in range(num_draws)
    )
    assert set(counts) == set(legal)
    chi_square = sum((counts[pair] - 60) ** 2 / 60 for pair in legal)
    freedom = len(legal) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_number_of_pairs_is_fixed_in_the_paper_and_drawn_up_to_the_tasks_else():
    start = original(equal_space(4, 6))
    fixed = {len(p.pairs) for p in AnnealingPolicy(num_pairs=2).propose(snapshot(start), random.Random(0), 60)}
    drawn = {len(p.pairs) for p in AnnealingPolicy().propose(snapshot(start), random.Random(0), 60)}
    assert fixed == {2}
    assert drawn == {1, 2, 3, 4}


def test_random_policy_never_starts_from_an_elite():
    start = original(a_space(5, 5))
    elites = [known(graph) for _, graph in single_mutations(start)[:16]]
    found = RandomPolicy().propose(snapshot(start, *elites, iteration=500), random.Random(0), 40)
    assert {proposal.base for proposal in found} == {None}


def test_failed_graph_comes_again_only_from_other_weights_and_after_new_ones():
    start = original(equal_space(2, 3))
    all_singles = [graph for _, graph in single_mutations(start)]
    policy = RandomPolicy(num_pairs=1)

    def asked(status: str, bases: frozenset[str | None] | None, graphs: list[Graph]) -> list[Proposal]:
        entries = [known(graph, status, bases=bases) for graph in graphs]
        return policy.propose(snapshot(start, *entries, elites=()), random.Random(0), 3)

    assert asked("failed", None, all_singles) == []
    assert asked("failed", frozenset({None}), all_singles) == []
    assert asked("accepted", frozenset({"other"}), all_singles) == []
    assert len(asked("failed", frozenset({"other"}), all_singles)) == 3
    assert len(asked("unknown", frozenset({"other"}), all_singles)) == 3
    fresh = asked("failed", frozenset({"other"}), all_singles[2:])
    assert {proposal.graph.key() for proposal in fresh[:2]} == {graph.key() for graph in all_singles[:2]}


def test_exhaustive_goes_breadth_first_through_everything_without_doubles():
    start = original(a_space(3, 2))
    level, told, order = [start], {unfolded(start)}, []
    while level:
        found = []
        for graph in level:
            for _, new in single_mutations(graph):
                if unfolded(new) not in told:
                    told.add(unfolded(new))
                    found.append(new)
        order += found
        level = found
    policy, entries, seen = ExhaustivePolicy(), [], []
    while proposals := policy.propose(snapshot(start, *entries), random.Random(0), 5):
        seen += [proposal.graph.key() for proposal in proposals]
        entries += [known(proposal.graph, "failed") for proposal in proposals]
    assert seen == [graph.key() for graph in order]


def test_exhaustive_inherits_from_the_graph_before_if_that_is_an_elite():
    start = original(a_space(3, 3))
    singles = single_mutations(start)
    entries = [known(graph, "accepted" if number == 0 else "failed") for number, (_, graph) in enumerate(singles)]
    proposal = ExhaustivePolicy().propose(snapshot(start, *entries), random.Random(0), 1)[0]
    assert proposal.base == singles[0][1].key()
    assert len(proposal.pairs) == 1
    entries[0] = known(singles[0][1], "failed")
    proposal = ExhaustivePolicy().propose(snapshot(start, *entries), random.Random(0), 1)[0]
    assert proposal.base is None
    assert proposal.pairs[0] == singles[0][0]
    assert len(proposal.pairs) == 2


def some_elites(count: int, seed: int = 0) -> list[Known]:
    rng = random.Random(seed)
    start = original(equal_space(3, 8))
    found: dict[str, Known] = {}
    while len(found) < count:
        graph, _ = wander(start, rng, 3)
        entry = known(graph, drop=round(rng.random(), 2))
        found.setdefault(entry.key, entry)
    return list(found.values())


def values(elite: Known) -> tuple[float, float, float]:
    return (elite.cost, elite.drop, elite.parameters)


def beats(one: Known, other: Known) -> bool:
    return values(one) != values(other) and all(a <= b for a, b in zip(values(one), values(other), strict=True))


def test_worst_elite_leaves():
    start = original(equal_space(2, 6))
    graphs = [graph for _, graph in single_mutations(start)[:4]]
    line = [(1.0, 0.03), (2.0, 0.02), (3.0, 0.01), (2.5, 0.04)]  # the last one is beaten by the second
    elites = [
        Known(key=graph.key(), graph=graph, cost=cost, drop=drop, parameters=5, status="accepted")
        for graph, (cost, drop) in zip(graphs, line, strict=True)
    ]
    for order in ([0, 1, 2, 3], [3, 0, 1, 2], [1, 3, 2, 0]):
        pool: tuple[Known, ...] = ()
        for number in order:
            pool = keep_best(pool, elites[number], limit=3)
        assert {elite.key for elite in pool} == {elite.key for elite in elites[:3]}


def test_pool_keeps_no_beaten_elite_while_a_better_one_had_to_go():
    entries = some_elites(60)
    pool: tuple[Known, ...] = ()
    for entry in entries:
        before, pool = pool, keep_best(pool, entry)
        [*gone] = [elite for elite in (*before, entry) if elite not in pool]
        assert len(pool) == min(16, len(before) + 1)
        for elite in gone:
            beaten_ones = [other for other in pool if any(beats(better, other) for better in pool)]
            assert any(beats(other, elite) for other in pool) or not beaten_ones
    cheapest = min(entries, key=values)
    assert cheapest in pool


def test_spread_pool_keeps_both_ends():
    start = original(equal_space(2, 6))
    graphs = [graph for _, graph in single_mutations(start)[:8]]
    pool: tuple[Known, ...] = ()
    for number, graph in enumerate(graphs):  # nobody is beaten; the middle is crowded
        cost = [0.0, 4.9, 5.0, 5.1, 5.2, 8.0, 9.0, 10.0][number]
        entry = Known(key=graph.key(), graph=graph, cost=cost, drop=10 - cost, parameters=5, status="accepted")
        pool = keep_best(pool, entry, limit=5)
    assert min(elite.cost for elite in pool) == 0.0
    assert max(elite.cost for elite in pool) == 10.0
    assert sum(4 < elite.cost < 6 for elite in pool) <= 2


def test_newest_pool_forgets_the_oldest():
    entries = some_elites(20)
    pool: tuple[Known, ...] = ()
    for entry in entries:
        pool = keep_newest(pool, entry)
    assert list(pool) == entries[-16:]


@pytest.mark.parametrize("keep", [keep_best, keep_newest])
def test_of_two_elites_with_one_graph_the_better_stays(keep: Callable[..., tuple[Known, ...]]):
    [first] = some_elites(1)
    better, worse = known(first.graph, drop=first.drop - 0.01), known(first.graph, drop=first.drop + 0.01)
    assert keep((first,), better) == (better,)
    assert keep((first,), worse) == (first,)
