"""How long turns and their steps take, by an injected clock."""

from __future__ import annotations

from unified.turns import MIN_TIMED_STEPS, Turns


def test_a_turn_counts_from_where_it_really_began() -> None:
    turns = Turns()
    turns.begin("a", 10.0, 700)  # as last reported, before its worker died
    turns.begin("a", 12.0, 600)  # where its checkpoint was
    assert turns.seconds("a", 15.0) == 3.0
    assert turns.end("a", 20.0, 640) == (8.0, 40)
    assert not turns.is_under_way("a")


def test_a_step_time_is_known_after_a_few_steps_and_follows_the_turn() -> None:
    turns = Turns()
    turns.begin("a", 0.0, 0)
    assert turns.step_seconds("a", 5.0, MIN_TIMED_STEPS - 1) is None
    assert turns.step_seconds("a", 5.0, 100) == 0.05
    assert turns.step_seconds("a", 30.0, 200) == 0.15  # it has become slower
    assert turns.step_seconds("other", 30.0, 200) is None


def test_a_turn_that_lost_steps_has_done_none() -> None:
    turns = Turns()
    turns.begin("a", 0.0, 50)
    assert turns.end("a", 1.0, 40) == (1.0, 0)
