"""How long turns and their steps take, by an injected clock."""

from __future__ import annotations

from unified.turns import NUM_INTERVALS, StepTimes, Turns


def test_a_turn_counts_from_where_it_really_began() -> None:
    turns = Turns()
    turns.begin("a", 10.0, 700)  # as last reported, before its worker died
    turns.begin("a", 12.0, 600)  # where its checkpoint was
    assert turns.seconds("a", 15.0) == 3.0
    assert turns.end("a", 20.0, 640) == (8.0, 40)
    assert not turns.is_under_way("a")


def test_steps_are_timed_from_one_report_to_the_next() -> None:
    turns = Turns()
    turns.begin("a", 0.0, 0)
    assert turns.interval("a", 5.0, 100) == (5.0, 100)
    assert turns.interval("a", 6.0, 110) == (1.0, 10)
    assert turns.interval("other", 30.0, 200) == (0.0, 0)
    assert turns.end("a", 7.0, 120) == (7.0, 120)
    assert turns.interval("a", 9.0, 130) == (0.0, 0)


def test_the_time_of_a_step_is_the_median_of_the_last_intervals() -> None:
    times = StepTimes()
    times.add(1.0, 0)
    assert times.typical is None
    for seconds in (9.0, 1.0, 1.0, 30.0, 1.0):  # a first step, and an evaluation between two reports
        times.add(seconds, 10)
    assert times.typical == 0.1
    for _ in range(NUM_INTERVALS):
        times.add(2.0, 10)  # it has become slower
    assert times.typical == 0.2


def test_a_turn_that_lost_steps_has_done_none() -> None:
    turns = Turns()
    turns.begin("a", 0.0, 50)
    assert turns.end("a", 1.0, 40) == (1.0, 0)
