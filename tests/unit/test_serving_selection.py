"""Selection: the paper's two rules, budgets, ties, residency, mishits; against trying out everything."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.candidates import find_candidates
from serving.errors import ServingError
from serving.queries import AccuracyMode, Budget, Decision, Mishit, OnMishit, Query, Reason
from serving.selection import State, pareto_offers, select
from tests.unit.serving_tables import Found, Row, table_of, try_all, try_all_evenly

ALL = frozenset("abc")
SIMPLE = table_of(
    [
        Row(id="all-big", scores={"a": 0.9, "b": 0.9, "c": 0.9}, infer_ms=(8,), load_ms=4),
        Row(id="all-small", scores={"a": 0.7, "b": 0.8, "c": 0.6}, infer_ms=(4,), load_ms=2),
        Row(id="a-only", scores={"a": 0.95}, infer_ms=(3,), load_ms=2),
        Row(id="b-only", scores={"b": 0.85}, infer_ms=(2,), load_ms=1),
    ]
)


def _chosen(query: Query, table=SIMPLE, state: State | None = None, **options) -> str:
    decision = select(query, table, state or State.all_resident(table), **{"quantile": "p50", **options})
    assert isinstance(decision, Decision), decision
    return decision.offer.version


def _mishit(query: Query, table=SIMPLE) -> Mishit:
    mishit = select(query, table, State.all_resident(table), quantile="p50")
    assert isinstance(mishit, Mishit)
    return mishit


def test_without_a_floor_the_most_accurate_within_the_limit_is_taken():
    assert _chosen(Query(tasks=ALL, latency_ms=8)) == "all-big"
    assert _chosen(Query(tasks=ALL, latency_ms=7)) == "a-only+all-small"
    assert _chosen(Query(tasks=ALL, latency_ms=6)) == "all-small+b-only"
    assert _chosen(Query(tasks=ALL, latency_ms=5)) == "all-small"
    assert _chosen(Query(tasks=frozenset("a"))) == "a-only"


def test_with_a_floor_the_fastest_that_meets_it_is_taken():
    assert _chosen(Query(tasks=ALL, min_accuracy=0.6)) == "all-small"
    assert _chosen(Query(tasks=ALL, min_accuracy={"a": 0.9})) == "a-only+all-small"
    assert _chosen(Query(tasks=ALL, min_accuracy=0.7)) == "all-big"
    assert _chosen(Query(tasks=ALL, min_accuracy=0.7, accuracy_mode=AccuracyMode.AVERAGE)) == "all-small"
    assert _chosen(Query(tasks=ALL, min_accuracy=0.715, accuracy_mode=AccuracyMode.AVERAGE)) == "all-small+b-only"


def test_an_offer_says_what_it_takes_from_whom_and_what_it_costs():
    state = State(load_ms=np.array([1.0, 0.0, 2.0, 0.0]), wait_ms=5.0)
    decision = select(Query(tasks=ALL, latency_ms=14, min_accuracy={"a": 0.9}), SIMPLE, state, quantile="p50")
    assert isinstance(decision, Decision)
    offer = decision.offer
    assert offer.variants == ("all-big",)
    assert (offer.predicted_ms, offer.load_ms, offer.infer_ms) == (13, 0, 8)  # 14 for a-only+all-small, with its loading
    offer = pareto_offers(ALL, SIMPLE, replace(state, wait_ms=0.0), quantile="p50")[0]
    assert offer.variants == ("all-small",)
    assert offer.load_ms == 2


def test_members_run_by_their_first_task_and_scores_are_theirs():
    decision = select(Query(tasks=ALL, latency_ms=7), SIMPLE, State.all_resident(SIMPLE), quantile="p50")
    assert isinstance(decision, Decision)
    assert decision.offer.tasks == (("a",), ("b", "c"))
    assert decision.offer.accuracy == {"a": 0.95, "b": 0.8, "c": 0.6}


def test_what_is_resident_changes_the_winner():
    query = Query(tasks=frozenset("b"), min_accuracy=0.5)
    assert _chosen(query) == "b-only"
    loads = np.array([4.0, 4.0, 4.0, 4.0])
    loads[SIMPLE.index["all-small"]] = 0
    assert _chosen(query, state=State(load_ms=loads)) == "all-small"


def test_waiting_and_rows_and_the_quantile_count():
    query = Query(tasks=ALL, latency_ms=8)
    assert _chosen(query, state=State(load_ms=np.zeros(4), wait_ms=4)) == "all-small"
    assert _chosen(query, quantile="p95") == "all-small+b-only"
    rows = [Row(id="x", scores={"a": 0.9}, infer_ms=(1, 10)), Row(id="y", scores={"a": 0.8}, infer_ms=(2, 4))]
    table = table_of(rows, batches=(1, 4))
    assert _chosen(Query(tasks=frozenset("a"), min_accuracy=0.5), table) == "x"
    assert _chosen(Query(tasks=frozenset("a"), min_accuracy=0.5), table, rows=4) == "y"


@pytest.mark.parametrize("floor", [None, 0.0])
def test_ties_go_to_fewer_variants_then_to_lower_ids(floor):
    rows = [
        Row(id="z-all", scores={"a": 0.5, "b": 0.5}, infer_ms=(4,)),
        Row(id="y-all", scores={"a": 0.5, "b": 0.5}, infer_ms=(4,)),
        Row(id="a", scores={"a": 0.5}, infer_ms=(2,)),
        Row(id="b", scores={"b": 0.5}, infer_ms=(2,)),
    ]
    table = table_of(rows)
    query = Query(tasks=frozenset("ab"), min_accuracy=floor)
    assert _chosen(query, table) == "y-all"
    assert _chosen(query, table_of(rows[2:])) == "a+b"


def test_equal_shares_leave_nothing_over_to_others():
    query = Query(tasks=frozenset("ab"), latency_ms=5)
    singles = table_of([Row(id="a", scores={"a": 0.9}, infer_ms=(3,)), Row(id="b", scores={"b": 0.9}, infer_ms=(2,))])
    assert _chosen(query, singles) == "a+b"
    assert _mishit(replace(query, budget=Budget.EQUAL), singles).reason is Reason.LATENCY
    assert _chosen(replace(query, budget=Budget.EQUAL, latency_ms=6), singles) == "a+b"


def test_with_equal_shares_a_variant_of_all_tasks_has_the_whole_limit_and_one_taken_twice_runs_once():
    query = Query(tasks=ALL, latency_ms=8, budget=Budget.EQUAL)
    assert _chosen(query) == "all-big"
    decision = select(replace(query, latency_ms=12.5), SIMPLE, State.all_resident(SIMPLE), quantile="p50")
    assert isinstance(decision, Decision)
    assert decision.offer.version == "all-big"
    ab = table_of([Row(id="ab", scores={"a": 0.9, "b": 0.9}, infer_ms=(2,)), Row(id="c", scores={"c": 0.9}, infer_ms=(1,))])
    decision = select(replace(query, latency_ms=6), ab, State.all_resident(ab), quantile="p50")
    assert isinstance(decision, Decision)
    assert (decision.offer.tasks, decision.offer.predicted_ms) == ((("a", "b"), ("c",)), 3)


def test_the_reason_of_a_mishit_is_what_alone_makes_it_impossible():
    only_a = table_of([Row(id="a", scores={"a": 0.9}, infer_ms=(3,))])
    assert _mishit(Query(tasks=ALL), only_a) == Mishit(reason=Reason.TASKS)
    assert _mishit(Query(tasks=ALL), table_of([])) == Mishit(reason=Reason.TASKS)
    assert _mishit(Query(tasks=ALL, min_accuracy=0.97)).reason is Reason.ACCURACY
    assert _mishit(Query(tasks=ALL, latency_ms=1, min_accuracy=0.97)).reason is Reason.ACCURACY
    assert _mishit(Query(tasks=ALL, latency_ms=1, min_accuracy=0.5)).reason is Reason.LATENCY
    assert _mishit(Query(tasks=ALL, latency_ms=1)).reason is Reason.LATENCY
    assert _mishit(Query(tasks=ALL, latency_ms=7, min_accuracy=0.9)).reason is Reason.CONFLICT


def test_the_nearest_offers_each_give_up_one_wish():
    mishit = _mishit(Query(tasks=ALL, latency_ms=7, min_accuracy=0.9))
    assert [offer.version for offer in mishit.closest] == ["all-big", "a-only+all-small", "all-small"]
    assert [offer.version for offer in _mishit(Query(tasks=ALL, latency_ms=1)).closest] == ["all-small"]


def test_best_effort_keeps_the_floor_if_it_can_then_the_limit_then_hurries():
    query = Query(tasks=ALL, latency_ms=7, min_accuracy=0.9, on_mishit=OnMishit.BEST_EFFORT)
    for changed, version in [
        (query, "all-big"),
        (replace(query, min_accuracy=0.99), "a-only+all-small"),
        (replace(query, min_accuracy=0.99, latency_ms=1), "all-small"),
    ]:
        decision = select(changed, SIMPLE, State.all_resident(SIMPLE), quantile="p50")
        assert isinstance(decision, Decision)
        assert decision.mishit is not None
        assert decision.offer == decision.mishit.closest[0]
        assert decision.offer.version == version
    assert isinstance(select(replace(query, tasks=frozenset("b")), table_of([]), State(load_ms=np.zeros(0))), Mishit)


def test_a_task_that_the_family_does_not_have_is_a_mistake():
    with pytest.raises(ServingError, match="no task 'd'; it has a, b, c"):
        select(Query(tasks=frozenset("ad")), SIMPLE, State.all_resident(SIMPLE))


@pytest.mark.parametrize(("num_tasks", "is_present", "words"), [(6, True, "share no task"), (8, False, "for each task alone")])
def test_many_tasks_are_combined_in_fewer_ways_and_the_log_says_so(num_tasks, is_present, words, caplog):
    tasks = [f"t{place}" for place in range(num_tasks)]
    rows = [Row(id=task, scores={task: 0.5}, infer_ms=(1,)) for task in tasks]
    pairs = [Row(id=f"{x}-{y}", scores={x: 0.9, y: 0.9}, infer_ms=(1.5,)) for x in tasks for y in tasks if x < y]
    table = table_of(rows + (pairs[:1] if is_present else pairs), tasks)
    found = find_candidates(table, table.mask_of(frozenset(tasks)))
    assert sum(map(len, found.steps.values())) <= 128
    assert words in caplog.text
    version = _chosen(Query(tasks=frozenset(tasks)), table)
    assert version == ("t0-t1+t2+t3+t4+t5" if is_present else "+".join(tasks))


SCORES = st.integers(0, 8).map(lambda eighth: eighth / 8)  # sums of eighths are exact, and often equal
COSTS = st.integers(1, 12).map(float)


@st.composite
def tables(draw, tasks="abc", most=7):
    rows = []
    for place in range(draw(st.integers(1, most))):
        own = draw(st.sets(st.sampled_from(tasks), min_size=1))
        scores = {task: draw(SCORES) for task in sorted(own)}
        name = f"{draw(st.sampled_from('pqr'))}{place}"
        rows.append(Row(id=name, scores=scores, infer_ms=(draw(COSTS),)))
    table = table_of(rows, tasks)
    loads = np.array([draw(st.sampled_from([0.0, 0.0, 1.0, 5.0])) for _ in rows])
    return table, State(load_ms=loads, wait_ms=draw(st.sampled_from([0.0, 2.0])))


@st.composite
def queries(draw, tasks="abc"):
    wanted = frozenset(draw(st.sets(st.sampled_from(tasks), min_size=1)))
    mode = draw(st.sampled_from(list(AccuracyMode)))
    kinds = [st.none(), SCORES]
    if mode is AccuracyMode.PER_TASK:
        kinds.append(st.dictionaries(st.sampled_from(sorted(wanted)), SCORES, min_size=1))
    return Query(
        tasks=wanted,
        latency_ms=draw(st.none() | st.integers(1, 40).map(float)),
        min_accuracy=draw(st.one_of(kinds)),
        accuracy_mode=mode,
    )


def _assert_same(query: Query, table, state: State, expected: Found | None) -> None:
    answer = select(query, table, state, quantile="p50")
    if expected is None:
        assert isinstance(answer, Mishit)
        return
    assert isinstance(answer, Decision)
    offer = answer.offer
    assert Found(offer.predicted_ms - state.wait_ms, sum(offer.accuracy.values()), offer.variants) == expected
    assert frozenset(task for tasks in offer.tasks for task in tasks) == query.tasks


@settings(deadline=None, max_examples=250)
@given(tables(), queries())
def test_it_finds_what_trying_out_everything_finds(drawn, query):
    table, state = drawn
    _assert_same(query, table, state, try_all(query, table, state))


@settings(deadline=None, max_examples=60)
@given(tables("abcd", 6), queries("abcd"))
def test_it_finds_what_trying_out_everything_finds_for_four_tasks(drawn, query):
    table, state = drawn
    _assert_same(query, table, state, try_all(query, table, state))


@settings(deadline=None, max_examples=200)
@given(tables(), queries(), st.integers(1, 40))
def test_it_finds_what_trying_out_everything_in_equal_shares_finds(drawn, query, limit):
    table, state = drawn
    query = replace(query, budget=Budget.EQUAL, latency_ms=float(limit * len(query.tasks)) + state.wait_ms)
    _assert_same(query, table, state, try_all_evenly(query, table, state))


@settings(deadline=None, max_examples=100)
@given(tables(), queries())
def test_the_pareto_front_is_what_a_growing_limit_chooses(drawn, query):
    table, state = drawn
    offers = pareto_offers(query.tasks, table, state, quantile="p50")
    costs = [offer.predicted_ms for offer in offers]
    assert costs == sorted(set(costs))
    for offer in offers:
        found = select(Query(tasks=query.tasks, latency_ms=offer.predicted_ms), table, state, quantile="p50")
        assert isinstance(found, Decision)
        assert found.offer == offer
    last = select(Query(tasks=query.tasks), table, state, quantile="p50")
    assert isinstance(last, Decision if offers else Mishit)
    assert not offers or (isinstance(last, Decision) and last.offer == offers[-1])


@settings(deadline=None, max_examples=100)
@given(tables(), queries(), st.integers(1, 20), SCORES)
def test_a_looser_limit_and_a_lower_floor_never_make_it_worse(drawn, query, more, other):
    table, state = drawn
    limit = query.latency_ms or 10.0

    def chosen(query: Query) -> Decision | Mishit:
        return select(query, table, state, quantile="p50")

    tight, loose = (chosen(Query(tasks=query.tasks, latency_ms=value)) for value in (limit, limit + more))
    if isinstance(tight, Decision):
        assert isinstance(loose, Decision)
        assert loose.offer.mean_accuracy >= tight.offer.mean_accuracy
    low, high = sorted([other, query.min_accuracy if isinstance(query.min_accuracy, float) else 0.5])
    lenient, strict = (chosen(replace(query, latency_ms=None, min_accuracy=floor)) for floor in (low, high))
    if isinstance(strict, Decision):
        assert isinstance(lenient, Decision)
        assert lenient.offer.predicted_ms <= strict.offer.predicted_ms


@settings(deadline=None, max_examples=100)
@given(tables(), queries())
def test_the_answer_does_not_depend_on_what_was_asked_before(drawn, query):
    table, state = drawn
    first = select(query, table, state)
    select(Query(tasks=query.tasks, latency_ms=3), table, State.none_resident(table))
    assert select(query, table, state) == first == select(query, replace(table, memo={}), state)
    assert not math.isnan(state.load_ms.sum())
