"""The best candidate of each allowed drop, and the front: limits, margins, NaN, and the front beside brute force."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.search.absgraph import original
from fusion.search.front import Front, Point, pareto
from tests.unit.fusion_graphs import equal_space

GRAPH = original(equal_space(2, 3))
NAN = math.nan


def point(number: int = 1, *, cost: float = 1.0, parameters: int = 10, error: float = 0.0, **drops: float) -> Point:
    drops = drops or {"a": 0.0, "b": 0.0}
    return Point(
        key=f"graph {number}", graph=GRAPH, weights=f"{number}-1", cost=cost, parameters=parameters, drops=drops,
        errors=dict.fromkeys(drops, error), epoch=1, number=number,
    )  # fmt: skip


def front(*thresholds: float, margin: float = 0.0, a: float | None = None, b: float | None = None) -> Front:
    return Front.of(point(0, cost=10.0), thresholds or (0.01, 0.05), {"a": a, "b": b}, margin)


def test_a_point_is_within_a_threshold_when_every_task_is():
    limits = front().limits[0.01]
    assert point(a=0.01, b=-0.3).is_within(limits, 1.0)
    assert not point(a=0.0, b=0.0101).is_within(limits, 1.0)
    assert point(a=0.2, b=0.01).drop == 0.2


def test_the_smaller_of_a_threshold_and_the_limit_of_a_task_counts():
    found = front(0.01, 0.05, a=0.02, b=None)
    assert found.limits == {0.01: {"a": 0.01, "b": 0.01}, 0.05: {"a": 0.02, "b": 0.05}}
    assert found.met(point(a=0.02, b=0.05)) == (0.05,)
    assert found.met(point(a=0.021, b=0.0)) == ()
    assert front(0.05, a=0.0).met(point(a=0.001, b=0.0)) == ()
    assert front(0.05, a=0.0).met(point(a=0.0, b=0.04)) == (0.05,)


def test_a_margin_of_standard_errors_is_kept():
    noisy = point(a=0.01, b=0.0, error=0.02)
    assert front(0.05, margin=2.0).met(noisy) == (0.05,)
    assert front(0.05, margin=2.1).met(noisy) == ()
    assert front(0.01, margin=0.0).met(noisy) == (0.01,)


@pytest.mark.parametrize("drops", [{"a": NAN, "b": 0.0}, {"a": 0.0, "b": NAN}, {"a": NAN, "b": NAN}])
def test_a_drop_that_is_not_a_number_is_never_accepted_nor_hidden(drops):
    broken = point(cost=0.1, **drops)
    found = front(0.5)
    assert math.isnan(broken.drop)
    assert found.met(broken) == ()
    assert found.add(broken) == ()
    assert found.best[0.5].number == 0
    unsure = point(cost=0.1, a=0.0, b=0.0, error=NAN)
    assert front(0.5, margin=1.0).met(unsure) == ()


def test_each_threshold_has_the_cheapest_within_it_and_of_equals_the_first():
    found = front(0.01, 0.05)
    assert found.would_improve(9.0) == (0.01, 0.05)
    assert found.add(point(1, cost=5.0, a=0.03, b=0.0)) == (0.05,)
    assert found.add(point(2, cost=7.0, a=0.01, b=0.0)) == (0.01,)
    assert found.would_improve(5.0) == (0.01,)
    assert found.add(point(3, cost=5.0, a=0.01, b=0.0)) == (0.01,)
    assert found.add(point(4, cost=2.0, a=0.9, b=0.0)) == ()
    assert found.costs() == {0.01: 5.0, 0.05: 5.0}
    assert {threshold: best.number for threshold, best in found.best.items()} == {0.01: 3, 0.05: 1}


values = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))


@given(st.lists(values, max_size=12))
def test_the_front_is_what_nothing_beats_by_cost_and_of_equals_the_first(entries):
    points = [
        point(number, cost=float(cost), parameters=parameters, a=drop / 10, b=-1.0)
        for number, (cost, drop, parameters) in enumerate(entries)
    ]

    def beats(one: Point, other: Point) -> bool:
        mine, its = ((p.cost, p.drop, p.parameters) for p in (one, other))
        return mine != its and all(m <= i for m, i in zip(mine, its, strict=True))

    wanted = [
        p
        for p in points
        if not any(beats(other, p) for other in points)
        and not any(
            (other.cost, other.drop, other.parameters) == (p.cost, p.drop, p.parameters) and other.number < p.number
            for other in points
        )
    ]
    found = pareto(points)
    assert {p.number for p in found} == {p.number for p in wanted}
    assert [p.cost for p in found] == sorted(p.cost for p in found)


@given(st.permutations(list(itertools.product((1.0, 2.0, 3.0), (0.0, 0.02, 0.2)))))
def test_what_the_best_costs_does_not_depend_on_the_order_of_candidates(entries):
    found = front(0.0, 0.05, 0.3)
    for number, (cost, drop) in enumerate(entries, start=1):
        found.add(point(number, cost=cost + drop, a=drop, b=0.0))
    assert found.costs() == {0.0: 1.0, 0.05: 1.0, 0.3: 1.0}
    assert all(best.is_within(found.limits[threshold], 0.0) for threshold, best in found.best.items())
