"""The systems of MTLsys as parts of a table, and the grids of queries that they cannot satisfy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ServingError
from serving.mishits import Grid, Residency, Setting, accuracy_floors, compare, latency_limits, plan
from serving.queries import AccuracyMode, Budget, Decision, Query
from serving.records import Source
from serving.selection import select
from serving.systems import System, part_of, view
from tests.unit.serving_tables import Row, family_table, table_of

ALL = frozenset("abc")
PER_TASK, AVERAGE = Setting(), Setting(mode=AccuracyMode.AVERAGE)


def test_a_system_has_the_variants_of_its_sources():
    table = family_table()
    assert [len(view(table, system)) for system in System] == [40, 10, 30]
    assert {variant.source for variant in view(table, "B").variants} == {Source.PRUNED}
    more = view(replace(table, memo={}), "A", also=[Source.SINGLE])
    assert len(more) == 70


def test_a_part_keeps_what_was_measured_of_each():
    table = replace(family_table(), suspect=frozenset({3, 60}))
    part = part_of(table, lambda variant: variant.source is Source.SINGLE)
    for place, variant in enumerate(part.variants):
        before = table.index[variant.id]
        assert part.infer_ms["p95"][place, 0] == table.infer_ms["p95"][before, 0]
        np.testing.assert_array_equal(part.scores[place], table.scores[before])
        assert (place in part.suspect) == (before in table.suspect)
    assert list(part.latency(1)) == sorted(part.latency(1))


def test_limits_go_from_the_least_to_the_greatest_latency_with_loading_where_that_counts():
    table = view(family_table(), System.A)
    mask = table.masks == 7
    resident = latency_limits(table, ALL, PER_TASK, 5)
    assert resident[[0, -1]] == pytest.approx([table.latency(1)[mask].min(), table.latency(1)[mask].max()])
    assert np.diff(resident, 2) == pytest.approx(np.zeros(3), abs=1e-9)
    loaded = latency_limits(table, ALL, replace(PER_TASK, residency=Residency.NONE), 5)
    assert loaded[0] == pytest.approx((table.latency(1) + table.load_cold_ms)[mask].min())


def test_floors_of_all_tasks_rise_together():
    table = table_of([Row(id="x", scores={"a": 0.2, "b": 0.9}, infer_ms=(1,)), Row(id="y", scores={"a": 0.6}, infer_ms=(1,))])
    assert accuracy_floors([table], frozenset("ab"), 3) == [
        {"a": 0.2, "b": 0.9},
        {"a": pytest.approx(0.4), "b": 0.9},
        {"a": 0.6, "b": 0.9},
    ]


@pytest.mark.parametrize("setting", [PER_TASK, AVERAGE, replace(PER_TASK, residency=Residency.NONE)])
@pytest.mark.parametrize("budget", list(Budget))
def test_a_grid_is_what_asking_each_query_gives(setting, budget):
    table = view(family_table(), System.C)
    limits = np.linspace(4, 40, 7)
    floors = accuracy_floors([table], ALL, 6)
    grid = plan(table, ALL, limits, floors, setting, budget=budget)
    for line, floor in enumerate(floors):
        accuracy = floor if setting.mode is AccuracyMode.PER_TASK else sum(floor.values()) / 3
        for column, limit in enumerate(limits.tolist()):
            query = Query(tasks=ALL, latency_ms=limit, min_accuracy=accuracy, accuracy_mode=setting.mode, budget=budget)
            found = select(query, table, setting.residency.state(table), quantile="p50")
            assert grid.missed[line, column] != isinstance(found, Decision)
    assert grid.ratio == pytest.approx(grid.ratios.mean())


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([PER_TASK, AVERAGE]), st.sampled_from([ALL, frozenset("b"), frozenset("ac")]))
def test_a_system_that_has_more_misses_no_more(seed, setting, tasks):
    compared = compare(family_table(seed), tasks, setting, steps=6)
    grids = compared.grids
    assert not (grids[System.A, Budget.OPTIMAL].missed & ~grids[System.B, Budget.OPTIMAL].missed).any()
    assert not (grids[System.C, Budget.OPTIMAL].missed & ~grids[System.C, Budget.EQUAL].missed).any()
    for grid in grids.values():  # higher floors and tighter limits are missed all the more
        assert (np.diff(grid.missed.astype(int), axis=0) >= 0).all()
        assert (np.diff(grid.missed.astype(int), axis=1) <= 0).all()


def test_how_many_times_fewer_is_the_ratio_of_the_ratios():
    compared = compare(family_table(), ALL, PER_TASK, steps=8)
    ours, theirs = (compared.grids[key].ratio for key in ((System.A, Budget.OPTIMAL), (System.C, Budget.EQUAL)))
    assert compared.times_fewer() == pytest.approx(theirs / ours)
    assert compared.times_fewer(Budget.OPTIMAL) <= compared.times_fewer()

    def misses(ratio: bool) -> Grid:
        return replace(compared.grids[System.A, Budget.OPTIMAL], missed=np.full((2, 2), ratio))

    for ours, theirs, expected in [(False, True, math.inf), (False, False, 1.0), (True, True, 1.0)]:
        grids = {(System.A, Budget.OPTIMAL): misses(ours), (System.C, Budget.EQUAL): misses(theirs)}
        assert replace(compared, grids=grids).times_fewer() == expected


def test_without_multi_task_variants_there_is_nothing_to_compare():
    singles = part_of(family_table(), lambda variant: variant.source is Source.SINGLE)
    with pytest.raises(ServingError, match="no profiled multi-task variant that answers a, b, c"):
        compare(singles, ALL, PER_TASK)
    with pytest.raises(ServingError, match="at least 2 steps"):
        compare(family_table(), ALL, PER_TASK, steps=1)


def test_a_family_without_single_task_variants_lets_the_single_task_system_miss_everything():
    table = part_of(family_table(), lambda variant: variant.source is not Source.SINGLE)
    assert compare(table, ALL, PER_TASK, steps=3).grids[System.C, Budget.EQUAL].ratio == 1
