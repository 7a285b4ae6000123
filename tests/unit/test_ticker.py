"""The ticker with its real threads; time is waited for, never measured."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unified.service.ticker import Tick, Ticker

PATIENCE = 20.0  #: seconds after which a test gives up


class Count:
    """A tick's work: counts, and can be waited for."""

    def __init__(self, work: Callable[[], object] = lambda: None) -> None:
        self.number, self.threads = 0, set[int]()
        self._work, self._changed = work, threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.number += 1
            self.threads.add(threading.get_ident())
            self._changed.notify_all()
        self._work()

    def reaches(self, number: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.number >= number, PATIENCE)


class Clock:
    """A clock that only tests turn."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def fail() -> None:
    raise ValueError("broken")


@contextmanager
def running(*ticks: Tick, **settings: Callable) -> Iterator[Ticker]:
    ticker = Ticker(ticks, **settings)
    ticker.start()
    try:
        yield ticker
    finally:
        ticker.stop(PATIENCE)


def test_each_tick_runs_again_and_again_in_the_background() -> None:
    quick, slow = Count(), Count()
    with running(Tick(name="quick", seconds=0.01, run=quick), Tick(name="slow", seconds=3600, run=slow)):
        assert quick.reaches(5)
        assert slow.reaches(1)
    assert slow.number == 1
    assert threading.get_ident() not in quick.threads | slow.threads


def test_a_tick_that_fails_runs_again_and_is_logged_once(caplog) -> None:
    bad, good = Count(fail), Count()
    with running(Tick(name="bad", seconds=0.01, run=bad), Tick(name="good", seconds=0.01, run=good)) as ticker:
        assert bad.reaches(4)
        assert good.reaches(4)
        assert set(ticker.last_ok()) == {"good"}
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert messages == ["tick 'bad' failed and will run again: ValueError: broken"]


def test_a_tick_that_recovers_is_logged_anew_when_it_fails_again(caplog) -> None:
    outcomes = iter([fail, lambda: None, fail])
    count = Count(lambda: next(outcomes, lambda: None)())
    with running(Tick(name="shaky", seconds=0.01, run=count)):
        assert count.reaches(4)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_tick_with_a_thread_of_its_own_goes_on_while_another_hangs() -> None:
    release = threading.Event()
    heartbeat, hanging = Count(), Count(lambda: release.wait(PATIENCE))
    with running(
        Tick(name="hanging", seconds=0.01, run=hanging),
        Tick(name="heartbeat", seconds=0.01, run=heartbeat, own_thread=True),
    ) as ticker:
        assert hanging.reaches(1)
        assert heartbeat.reaches(heartbeat.number + 5)
        assert hanging.number == 1
        assert ticker.stop(0) == ["hanging"]
        release.set()


def test_after_stop_nothing_runs() -> None:
    count = Count()
    tick = Tick(name="a", seconds=0.001, run=count)
    ticker = Ticker([tick])
    ticker.start()
    assert count.reaches(3)
    assert ticker.stop(PATIENCE) == []
    number = count.number
    assert ticker.run_late() in ([], ["a"])
    assert ticker.stop() == []
    assert count.number == number


def test_a_ticker_that_never_started_can_be_stopped() -> None:
    assert Ticker([]).stop() == []


def test_a_tick_is_late_after_three_intervals_and_then_runs_in_the_callers_thread() -> None:
    clock, count = Clock(), Count()
    ticker = Ticker([Tick(name="sweep", seconds=5, run=count)], monotonic=clock, wall=Clock(0))
    clock.now += 15
    assert ticker.run_late() == []
    clock.now += 0.1
    assert ticker.late() == ["sweep"]
    assert ticker.late(clock.now - 1) == []
    assert ticker.run_late() == ["sweep"]
    assert count.threads == {threading.get_ident()}
    assert ticker.late() == []


def test_a_late_tick_that_keeps_failing_is_tried_once_per_interval() -> None:
    clock, count = Clock(), Count(fail)
    ticker = Ticker([Tick(name="sweep", seconds=5, run=count)], monotonic=clock, wall=Clock(0))
    clock.now += 16
    for _ in range(10):
        assert ticker.run_late() == ["sweep"]
        clock.now += 1
    assert count.number == 2


def test_a_tick_that_is_stuck_halfway_is_late_but_not_run_beside_itself() -> None:
    clock, release = Clock(), threading.Event()
    count = Count(lambda: release.wait(PATIENCE))
    with running(Tick(name="stuck", seconds=5, run=count), monotonic=clock, wall=clock) as ticker:
        assert count.reaches(1)
        clock.now += 100
        assert ticker.run_late() == ["stuck"]
        assert count.number == 1
        release.set()


def test_success_is_told_with_the_name_and_kept_by_the_wall_clock() -> None:
    told: list[str] = []
    clock, wall = Clock(), Clock(7.5)
    ticker = Ticker([Tick(name="disk", seconds=1, run=Count())], on_ok=told.append, monotonic=clock, wall=wall)
    assert ticker.last_ok() == {}
    clock.now += 10
    ticker.run_late()
    assert told == ["disk"]
    assert ticker.last_ok() == {"disk": 7.5}


def test_a_listener_that_fails_stops_no_tick(caplog) -> None:
    count = Count()

    def refuse(name: str) -> None:
        raise OSError(f"no room for {name}")

    with running(Tick(name="a", seconds=0.01, run=count), on_ok=refuse):
        assert count.reaches(4)
    assert "no room for a" in caplog.text


def test_a_wall_clock_that_was_set_back_silences_no_tick(caplog) -> None:
    count, wall = Count(), Clock()
    with running(Tick(name="heartbeat", seconds=3600, run=count), monotonic=Clock(), wall=wall) as ticker:
        assert count.reaches(1)
        wall.now -= 3600  # to APScheduler, an hour is missing until the next run either way
        ticker.run_late()
        assert count.reaches(2)
        ticker.run_late()
    assert count.number == 2
    assert "the wall clock was set by -3600.0 s" in caplog.text


def test_a_jump_by_decades_makes_one_run_of_all_those_missed() -> None:
    count = Count()
    with running(Tick(name="a", seconds=0.5, run=count)) as ticker:
        assert count.reaches(1)
        assert ticker._scheduler is not None
        ticker._scheduler.modify_job("a", next_run_time="1970-01-01")
        assert count.reaches(2)
        assert count.reaches(3)
