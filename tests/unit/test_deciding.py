"""Asking a scheduler and checking its answers: who is to stop for whom, and what comes of a plug-in's nonsense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from schedulers import base
from tests.unit.test_placement import make_slots, resident
from tests.unit.test_planning import make_record
from unified.deciding import Decider
from unified.ledger import JobRecord
from unified.packer import Placements
from unified.slots import Slot
from unified.units import Unit


class Asked:
    """A plug-in that answers as told, and keeps what it was asked."""

    needs: frozenset[str] = frozenset()

    def __init__(self, answer: Callable[[Sequence[base.JobView]], Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[list[base.JobView], list[str]]] = []

    def select(self, now: float, ready: Any, slots: Any) -> list[base.Grant]:
        return []

    def victims(
        self, now: float, running: Sequence[base.JobView], wanted: Sequence[base.JobView], slots: Sequence[base.SlotView]
    ) -> list[str]:
        self.asked.append((list(running), [unit.id for unit in wanted]))
        return self.answer(running)


def running(slots: list[Slot]) -> list[JobRecord]:
    """Return a job for each slot that has had its turn there since 10 s, and 2 s of slot time before."""
    records = [resident(f"r{slot.index}", slot.index, position=slot.index) for slot in slots]
    for record, slot in zip(records, slots, strict=True):
        record.is_running, slot.turn = True, (record.name,)
        record.waiting_since, record.slot_seconds = 10.0, 2.0
    return records


def situation(policy: Asked, num_slots: int = 1) -> tuple[Decider, list[Unit], Placements, list[Slot]]:
    slots = make_slots(num_slots)
    records = running(slots)
    decider = Decider(scheduler=policy, name="asked", clock=lambda: 15.0)
    return decider, [Unit(leader=record) for record in records], Placements(places={}), slots


def test_victims_are_asked_for_when_somebody_new_found_no_room_and_not_again() -> None:
    policy = Asked(lambda units: [units[0].id])
    decider, turns, placements, slots = situation(policy)
    one, two = Unit(leader=make_record("one", position=5)), Unit(leader=make_record("two", position=6))
    assert decider.victims([one], lambda: turns, placements, slots) == ["r0"]
    assert decider.victims([one], lambda: turns, placements, slots) == []
    assert decider.victims([one, two], lambda: turns, placements, slots) == ["r0"]
    assert decider.victims([two], lambda: turns, placements, slots) == []
    assert decider.victims([], lambda: turns, placements, slots) == []
    assert decider.victims([two], lambda: turns, placements, slots) == ["r0"]
    assert [wanted for _, wanted in policy.asked] == [["one"], ["one", "two"], ["two"]]


def test_who_runs_is_seen_with_what_its_turn_has_had() -> None:
    policy = Asked(lambda units: [])
    decider, turns, placements, slots = situation(policy, 2)
    slots[1].num_in_turn = 2  # another has left this turn
    decider.victims([Unit(leader=make_record("new", position=5))], lambda: turns, placements, slots)
    [(views, _)] = policy.asked
    assert [view.attained_seconds for view in views] == [7.0, 4.5]


@pytest.mark.parametrize("answer", [["nobody"], ["r0", "r0"], ["r0", "r1"], None, [7]])
def test_a_wrong_answer_is_counted_told_once_and_ends_no_turn(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    policy = Asked(lambda _: answer)
    decider, turns, placements, slots = situation(policy, 2)
    new = Unit(leader=make_record("new", position=5))
    for _ in range(2):
        assert decider.victims([new], lambda: turns, placements, slots) == []
        assert decider.victims([], lambda: turns, placements, slots) == []
    assert decider.num_wrong == 2
    assert [record.getMessage().count("scheduler asked: ") for record in caplog.records] == [1]
    assert "nobody's turn is ended" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        0,
        "r0",
        [7],
        (grant for grant in ()),
        [base.Grant(unit_id="r0", slot_id=0, quantum=None)],  # type: ignore[arg-type]
        [base.Grant(unit_id="r0", slot_id=0, quantum=base.UntilDone())] * 2,
    ],
)
def test_a_slot_does_not_stand_idle_for_a_wrong_answer(answer: Any) -> None:
    policy = Asked(lambda _: [])
    policy.select = lambda now, ready, slots: answer  # type: ignore[method-assign]
    decider, units, placements, slots = situation(policy)
    slots[0].turn = ()
    [grant] = decider.select(units, placements, slots)
    assert (grant.unit_id, grant.slot_id) == ("r0", 0)
    assert decider.num_wrong == 1


def test_a_policy_that_raises_ends_no_turn() -> None:
    def fail(units: Any) -> Any:
        raise ZeroDivisionError("a plug-in's own")

    decider, turns, placements, slots = situation(Asked(fail))
    assert decider.victims([Unit(leader=make_record("new", position=5))], lambda: turns, placements, slots) == []
    assert decider.num_wrong == 1
