"""What is scheduled: a job, or a stack as one unit, as large as memory allows; what is remembered of stacks."""

from __future__ import annotations

import signal
from dataclasses import replace
from math import inf

import pytest

from tests.unit.test_placement import make_slots, place
from tests.unit.test_planning import make_record
from unified.failures import clear_suspect, suspects_of
from unified.ledger import JobRecord, MemoryJournal
from unified.messages import StackFormed, StackRefused
from unified.nursery import Exit
from unified.slots import Slot
from unified.stacks import Stacks
from unified.units import Unit, Units


def equal(count: int, key: str | None = "k") -> list[JobRecord]:
    records = [make_record(f"j{number}", position=number) for number in range(count)]
    for record in records:
        record.submission = replace(record.submission, stack_key=key)
        record.num_threads = 1
    return records


def units(records: list[JobRecord], slots: list[Slot], capacity: int = 1000, stacks: Stacks | None = None) -> Units:
    placement = place(records, slots, capacity=capacity)
    return Units(everybody=records, stacks=stacks or Stacks(), placement=placement, slots=slots, bans=frozenset())


def sizes(found: list[Unit]) -> list[int]:
    return [len(unit.records) for unit in found]


def test_a_stack_is_one_unit_as_large_as_all_and_as_long_as_its_longest() -> None:
    records = equal(3)
    records[1].step = 2
    [unit] = units(records, make_slots(1)).of(records)
    views = [record.view() for record in records]
    assert unit.leader is records[0]
    assert unit.view().id == "j0"
    assert unit.view().num_parameters == sum(view.num_parameters for view in views)
    assert unit.view().steps_done == 0
    records[2].slot = 0
    [unit] = units(records, make_slots(1)).of(records)
    assert unit.view().slot_id == 0


def test_a_stack_is_no_larger_than_memory_allows() -> None:
    records = equal(4)  # each holds 1 byte and 1 more in a step: as one 4 + 4 + 4
    assert sizes(units(records, make_slots(1), capacity=12).of(records)) == [4]
    assert sizes(units(records, make_slots(1), capacity=11).of(records)) == [2, 2]
    assert sizes(units(records, make_slots(1), capacity=5).of(records)) == [1, 1, 1, 1]


def test_what_a_running_stack_needs_is_counted_for_the_others() -> None:
    records = equal(3)
    slots = make_slots(2)
    for record in records[:2]:
        record.slot = 0
    slots[0].turn = ("j0", "j1")
    assert place(records, slots, capacity=8).fits(records[2], slots[1])  # 2 + 2 + 2, and 1 + 1
    assert not place(records, slots, capacity=7).fits(records[2], slots[1])


@pytest.mark.parametrize("change", ["is_alone", "suspected_beside", "shared_turns", "key", "off"])
def test_who_must_not_be_stacked_is_a_unit_by_itself(change: str) -> None:
    records = equal(3)
    if change == "is_alone":
        records[1].is_alone = True
    elif change == "key":
        records[1].submission = replace(records[1].submission, stack_key=None)
    elif change != "off":
        setattr(records[1], change, frozenset({"j0"}))
    found = units(records, make_slots(1), stacks=Stacks(is_on=change != "off")).of(records)
    assert sizes(found) == ([1, 1, 1] if change == "off" else [2, 1])


def test_a_job_may_join_a_turn_of_its_like_up_to_the_slots_share() -> None:
    records = equal(3)
    slots = make_slots(1)
    for record in records[:2]:
        record.slot, record.is_running = 0, True
    slots[0].turn, slots[0].may_be_joined = ("j0", "j1"), True
    assert units(records, slots).may_join(records[2], slots[0])
    assert not units(records, slots, stacks=Stacks(max_size=2)).may_join(records[2], slots[0])
    assert not units(records, slots, capacity=8).may_join(records[2], slots[0])
    assert not units([*records[:2], make_record("other", position=9)], slots).may_join(
        make_record("other", position=9), slots[0]
    )


def test_speeds_are_remembered_for_stacks_of_about_that_size() -> None:
    stacks, records = Stacks(), equal(8)
    kind = stacks.kind_of(records[0])
    assert kind is not None
    stacks.note(records, StackFormed(job="j0", members=tuple(record.name for record in records), speedup=1.7))
    assert [stacks.speedup(kind, size) for size in (4, 5, 8, 15, 16)] == [None, 1.7, 1.7, 1.7, None]


def test_a_slow_stack_is_tried_again_when_twice_as_large_and_one_that_cannot_be_never() -> None:
    stacks, records = Stacks(), equal(3)
    kind = stacks.kind_of(records[0])
    assert kind is not None
    stacks.note(records, StackRefused(job="j0", members=("j0", "j1", "j2"), reason="is not faster", speedup=0.9))
    assert stacks.least_size(kind) == 6
    stacks.note(records, StackRefused(job="j0", members=("j0", "j1", "j2"), reason="an LSTM cannot", speedup=None))
    assert stacks.least_size(kind) == inf


def test_all_members_of_a_stack_are_suspects_of_its_workers_death_and_none_is_banned_from_another() -> None:
    records = equal(3)
    for record in records[:2]:
        record.is_running = True
    assert suspects_of(records, None) == records[:2]
    assert Exit(code=-signal.SIGKILL).is_from_outside
    records[0].suspected_beside, records[0].shared_turns = frozenset({"j1", "j2"}), frozenset({"j0", "j1"})
    bans: set[frozenset[str]] = set()
    clear_suspect(records[0], bans, MemoryJournal())
    assert bans == {frozenset({"j0", "j2"})}
    assert Stacks().kind_of(records[0]) is None


def test_jobs_that_keep_to_their_user_are_stacked_with_that_users_only() -> None:
    records = equal(4)
    for record, user in zip(records, ["ann", "bob", "ann", "bob"], strict=True):
        spec = record.submission.spec.model_copy(update={"user": user, "colocate": "same-user"})
        record.submission = replace(record.submission, spec=spec)
    found = units(records, make_slots(1)).of(records)
    assert [[record.name for record in unit.records] for unit in found] == [["j0", "j2"], ["j1", "j3"]]
