"""What is learnt of jobs that run at the same time, from the times of their steps."""

from __future__ import annotations

import json

import pytest

from unified.interference import FORGET_SECONDS, LEAST_MEASURED, MAX_KINDS, Interference, Runner

PAIR = frozenset({"a", "b"})


def learnt(alone: tuple[float, float], together: tuple[float, float], *, times: int = LEAST_MEASURED) -> Interference:
    found = Interference()
    for now in range(times):
        for kind, other, own, both in zip("ab", "ba", alone, together, strict=True):
            found.note(now, kind, None, own)
            found.note(now, kind, other, both)
    return found


@pytest.mark.parametrize(
    ("alone", "together", "gain", "are_parted"),
    [
        ((1, 2), (1, 2), 2.0, False),  # neither notices the other
        ((1, 2), (2, 4), 1.0, True),  # as fast as one after the other
        ((1, 2), (1.25, 4), 1.3, False),
        ((1, 2), (4, 8), 0.5, True),
    ],
)
def test_the_gain_is_the_sum_of_both_ones_speeds(
    alone: tuple[float, float], together: tuple[float, float], gain: float, are_parted: bool
) -> None:
    found = learnt(alone, together)
    assert found.gain("a", "b") == found.gain("b", "a") == pytest.approx(gain)
    assert found.gains() == {PAIR: pytest.approx(gain)}
    assert found.parted(10.0) == (frozenset({PAIR}) if are_parted else frozenset())


def test_nothing_is_judged_before_it_was_measured_often_enough() -> None:
    found = learnt((1, 1), (9, 9), times=LEAST_MEASURED - 1)
    assert found.gain("a", "b") is None
    assert found.parted(0.0) == frozenset()


def test_a_parted_pair_is_tried_again_after_a_while() -> None:
    found = learnt((1, 1), (9, 9))
    assert found.parted(FORGET_SECONDS) == {PAIR}
    assert found.parted(2 * FORGET_SECONDS) == frozenset()


def test_what_changed_shows_by_and_by() -> None:
    found = learnt((1, 1), (2, 2))
    for _ in range(20):
        found.note(9.0, "a", "b", 1.0)
        found.note(9.0, "b", "a", 1.0)
    assert found.gain("a", "b") == pytest.approx(2.0, rel=0.01)


def test_it_is_kept_as_json_and_does_not_grow_for_ever() -> None:
    found = learnt((1, 2), (2, 4))
    again = Interference()
    again.load_state_dict(json.loads(json.dumps(found.state_dict())), 5.0)
    assert again.gains() == found.gains()
    assert again.state_dict() == found.state_dict()
    for number in range(2 * MAX_KINDS):
        found.note(float(number + 10), f"k{number}", None, 1.0)
    assert len(found.state_dict()["alone"]) == MAX_KINDS


def test_steps_are_timed_while_the_company_stays_the_same() -> None:
    found = Interference()

    def look(now: float, **steps: int) -> None:
        kinds = {"one": "a", "two": "b", "far": "c"}
        devices = {"far": "cuda:1"}
        found.watch(now, [Runner(id=n, kind=kinds[n], device=devices.get(n, "cuda:0"), step=s) for n, s in steps.items()])

    look(0.0, one=0, far=0)
    look(1.0, one=5, far=5)  # from here on: it may have begun at any time before
    look(2.0, one=9, far=9)  # too few
    look(3.0, one=15, far=25)
    look(4.0, one=20, two=0, far=25)  # company comes
    look(5.0, one=22, two=3, far=25)
    look(9.0, one=32, two=23, far=25)
    look(9.5, one=40, far=25)
    state = found.state_dict()
    assert {kind: seconds for kind, seconds, _ in state["alone"]} == {
        "a": pytest.approx(2.0 / 10),
        "c": pytest.approx(2.0 / 20),
    }
    assert {(one, other): seconds for one, other, seconds, _ in state["beside"]} == {
        ("a", "b"): pytest.approx(4.0 / 10),
        ("b", "a"): pytest.approx(4.0 / 20),
    }
