"""Which calls run together and in which order, by a clock that the tests turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.runtime.batching import Batcher, QueueFull, Waiting


@dataclass(frozen=True)
class Linear:
    """A network that takes so long for each batch and each row."""

    batch: float = 0.010
    row: float = 0.001

    def seconds(self, rows: int) -> float:
        return self.batch + self.row * rows


NET, OTHER = Linear(), Linear(batch=0.02)


def waiting(arrived: float = 0.0, *, key: str = "net", rows: int = 1, limit: float = math.inf, priority: int = 0) -> Waiting:
    timed = NET if key == "net" else OTHER
    return Waiting(key=key, timed=timed, rows=rows, arrived=arrived, deadline=arrived + limit, priority=priority)


def batcher(**options: float) -> Batcher[Waiting]:
    return Batcher(**{"max_batch": 8, "max_waiting_rows": 100, **options})  # type: ignore[arg-type]


def filled(calls: Sequence[Waiting], **options: float) -> Batcher[Waiting]:
    queues = batcher(**options)
    for call in calls:
        queues.add(call)
    return queues


@dataclass(frozen=True)
class Run:
    start: float
    end: float
    calls: list[Waiting]


def simulate(queues: Batcher[Waiting], calls: Sequence[Waiting]) -> list[Run]:
    """Let calls arrive and run, each batch as long as predicted."""
    coming, now, runs = sorted(calls, key=lambda call: call.arrived), 0.0, []
    while coming or queues.waiting_rows:
        while coming and coming[0].arrived <= now:
            queues.add(coming.pop(0))
        batch = queues.take(now)
        if not batch:
            now = min(queues.next_due(), coming[0].arrived if coming else math.inf)
            continue
        end = now + batch[0].timed.seconds(sum(call.rows for call in batch))
        runs.append(Run(start=now, end=end, calls=batch))
        while coming and coming[0].arrived <= end:
            queues.add(coming.pop(0))
        queues.finished()
        now = end
    return runs


def test_a_lone_call_runs_at_once():
    call = waiting(3.0)
    assert filled([call]).take(3.0) == [call]


def test_a_batch_is_what_came_while_the_device_was_busy():
    calls = [waiting(0.0), *(waiting(0.001 * place) for place in range(1, 6))]
    assert [len(run.calls) for run in simulate(batcher(), calls)] == [1, 5]


def test_a_batch_has_no_more_rows_than_allowed_and_a_larger_call_runs_alone():
    calls = [waiting(0.0, rows=20), *(waiting(0.001, rows=3) for _ in range(3))]
    assert [[call.rows for call in run.calls] for run in simulate(batcher(), calls)] == [[20], [3, 3], [3]]


def test_rows_of_one_call_are_never_split():
    assert [call.rows for call in filled([waiting(rows=5), waiting(rows=5)]).take(0.0)] == [5]


def test_calls_of_different_networks_or_inputs_never_run_together():
    queues = filled([waiting(key="net"), waiting(key="other"), waiting(key="net")])
    assert [[call.key for call in queues.take(0.0)] for _ in range(2)] == [["net", "net"], ["other"]]


def test_who_would_make_another_late_starts_the_next_batch():
    tight, loose = waiting(limit=0.0115), waiting(limit=1.0)  # 11 ms alone, 12 ms together
    queues = filled([tight, loose])
    assert queues.take(0.0) == [tight]
    assert queues.take(0.011) == [loose]


def test_a_call_that_is_late_in_any_case_holds_nobody_back():
    lost, loose = waiting(limit=0.005), waiting(limit=1.0)
    assert filled([lost, loose]).take(0.0) == [lost, loose]


def test_higher_priority_goes_first_then_the_earliest_deadline():
    late, soon, urgent = waiting(limit=0.9), waiting(limit=0.5), waiting(limit=0.95, priority=1)
    queues = filled([late, soon, urgent], max_batch=1)
    assert [queues.take(0.0)[0] for _ in range(3)] == [urgent, soon, late]


def test_deadlines_decide_between_networks_too():
    late, soon = waiting(limit=0.9), waiting(key="other", limit=0.5)
    assert filled([late, soon]).take(0.0) == [soon]


def test_a_call_without_a_limit_is_not_passed_for_ever():
    patient = waiting(0.0)
    later = [waiting(0.1 * place, limit=0.5) for place in range(40)]
    runs = simulate(batcher(max_batch=1), [patient, *[waiting(call.arrived, limit=0.5) for call in later for _ in range(8)]])
    place = next(at for at, run in enumerate(runs) if patient in run.calls)
    assert all(call.arrived <= 1.0 for run in runs[:place] for call in run.calls)


def test_no_more_rows_wait_than_allowed():
    queues = filled([waiting(rows=3)], max_waiting_rows=4)
    with pytest.raises(QueueFull):
        queues.add(waiting(rows=2))
    queues.add(waiting(rows=1))
    assert queues.waiting_rows == 4


def test_a_call_that_nobody_wants_any_more_is_dropped_unless_it_runs():
    gone, kept = waiting(), waiting()
    queues = filled([gone, kept])
    assert queues.discard(gone)
    assert queues.take(0.0) == [kept]
    assert not queues.discard(kept)
    assert queues.waiting_rows == 0
    assert queues.next_due() == math.inf


def test_with_a_delay_an_idle_device_waits_for_more_but_not_into_lateness():
    queues = filled([waiting(0.0)], max_delay=0.05)
    assert not queues.take(0.0)
    assert queues.next_due() == pytest.approx(0.05)
    queues.add(waiting(0.01, limit=0.03))  # must end at 40 ms, and three rows would take 13 ms
    assert queues.next_due() == pytest.approx(0.027)
    assert not queues.take(0.0269)
    assert len(queues.take(0.0271)) == 2


def test_with_a_delay_a_full_batch_does_not_wait():
    assert len(filled([waiting(rows=4), waiting(rows=4)], max_delay=9.0).take(0.0)) == 2


def test_the_wait_is_the_rest_of_what_runs_and_what_goes_before():
    queues = filled([waiting(limit=0.5, rows=4)])
    queues.take(0.0)  # until 14 ms
    queues.add(waiting(limit=0.2, rows=10))  # a batch of 8 and one of 2: 18 + 12 ms
    queues.add(waiting(key="other", limit=0.9))
    assert queues.wait_seconds(0.004, (0, 0.3)) == pytest.approx(0.010 + 0.030)
    assert queues.wait_seconds(0.004, (-1, 0.3)) == pytest.approx(0.010)
    queues.finished()
    assert queues.wait_seconds(0.004, (-1, 0.3)) == 0


CALLS = st.lists(
    st.builds(
        waiting,
        st.floats(0, 0.2),
        key=st.sampled_from(["net", "other"]),
        rows=st.integers(1, 5),
        limit=st.one_of(st.floats(0.011, 0.3), st.just(math.inf)),
        priority=st.integers(0, 1),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(calls=CALLS, max_delay=st.sampled_from([0.0, 0.02]))
def test_every_call_runs_once_with_its_like_and_delays_nobody_in_its_batch(calls, max_delay):
    runs = simulate(batcher(max_delay=max_delay), calls)
    assert sorted(id(call) for run in runs for call in run.calls) == sorted(map(id, calls))
    for run in runs:
        rows = sum(call.rows for call in run.calls)
        assert len({call.key for call in run.calls}) == 1
        assert rows <= 8 or len(run.calls) == 1
        assert [call.order for call in run.calls] == sorted(call.order for call in run.calls)
        for call in run.calls[:-1]:  # the last one joined behind all others
            alone = run.start + call.timed.seconds(call.rows)
            assert alone > call.deadline or run.end <= call.deadline + 1e-9


@settings(deadline=None, max_examples=150)
@given(calls=CALLS)
def test_the_device_never_waits_while_a_call_does(calls):
    runs, free = simulate(batcher(), calls), 0.0
    for run in runs:
        assert run.start <= max(free, min(call.arrived for call in run.calls)) + 1e-9
        free = run.end


@settings(deadline=None, max_examples=150)
@given(rows=st.integers(1, 8), limit=st.floats(0.011, 0.3), max_delay=st.floats(0.001, 0.5))
def test_waiting_for_a_batch_to_grow_makes_no_promise_late(rows, limit, max_delay):
    call = waiting(rows=rows, limit=limit)
    (run,) = simulate(batcher(max_delay=max_delay), [call])
    assert NET.seconds(rows) > limit or run.end <= limit + 1e-9
    assert run.start <= max_delay
