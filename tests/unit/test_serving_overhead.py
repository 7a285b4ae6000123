"""What calls take beside their predicted time: the median of fresh samples, in steps, never below nothing."""

from __future__ import annotations

import pytest

from serving.queries import Decision, Query
from serving.runtime.overhead import FRESH_SECONDS, SAMPLES, Overhead
from serving.selection import State, select
from tests.unit.serving_tables import Row, table_of


def test_it_is_the_median_of_the_last_calls_and_one_slow_call_does_not_matter():
    overhead = Overhead()
    assert overhead.seconds(0.0) == 0
    for number in range(SAMPLES + 5):
        overhead.add(0.050 if number == 30 else 0.002, 0.001 * number)
    assert overhead.seconds(0.1) == 0.002


def test_what_is_old_is_forgotten_so_that_nobody_is_refused_for_ever_for_a_slow_spell():
    overhead = Overhead()
    overhead.add(3.0, 10.0)
    assert overhead.seconds(10.1) == 3.0
    assert overhead.seconds(10.1 + FRESH_SECONDS) == 0


def test_calls_that_are_faster_than_predicted_promise_nothing():
    overhead = Overhead()
    overhead.add(-0.004, 0.0)
    assert overhead.seconds(0.0) == 0


def test_a_change_within_a_tenth_is_none_so_that_what_selection_found_still_holds():
    overhead = Overhead()
    overhead.add(0.0100, 0.0)
    first = overhead.seconds(0.0)
    overhead.add(0.0104, 0.1)
    assert overhead.seconds(0.1) == first
    for _ in range(5):
        overhead.add(0.0120, 0.2)
    assert overhead.seconds(0.2) == 0.0120


def test_every_variant_that_runs_takes_it_so_that_one_is_better_than_two():
    table = table_of(
        [
            Row(id="a", scores={"a": 0.9}, infer_ms=(1.0,)),
            Row(id="b", scores={"b": 0.9}, infer_ms=(1.0,)),
            Row(id="both", scores={"a": 0.8, "b": 0.8}, infer_ms=(1.5,)),
        ],
        tasks=("a", "b"),
    )
    query = Query(tasks=frozenset({"a", "b"}), latency_ms=4.0)

    def chosen(call_ms: float) -> Decision:
        found = select(query, table, State.all_resident(table).waiting(0.5, call_ms), quantile="p50")
        assert isinstance(found, Decision)
        return found

    assert chosen(0.5).offer.variants == ("a", "b")
    assert chosen(0.5).offer.predicted_ms == pytest.approx(0.5 + 2 * (1.0 + 0.5))
    assert chosen(1.0).offer.variants == ("both",)  # of both alone it would be 4.5 ms
    assert chosen(1.0).offer.predicted_ms == pytest.approx(0.5 + 1.5 + 1.0)
