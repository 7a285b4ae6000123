"""Who may be resident where, and whose fault a worker's death was: decisions, without a process."""

from __future__ import annotations

import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, cast

import pytest

from schedulers import base
from schedulers.checks import wrong_grant
from tests.unit.test_planning import make_record
from unified.admission import ModelForm
from unified.budgets import Fault
from unified.failures import MAX_BANS, clear_suspect, fault_of_death, suspects_of
from unified.job_state import JobState
from unified.ledger import JobRecord, Ledger, MemoryJournal
from unified.nursery import Child, Exit, Nursery
from unified.packer import Outlook, Placements, Rules, plan
from unified.placement import Placement
from unified.slots import Slot


def make_slots(count: int) -> list[Slot]:
    return [Slot(index=index, device="cpu", num_threads=1) for index in range(count)]


def place(
    records: list[JobRecord], slots: list[Slot], *, capacity: int = 100, bans: set[frozenset[str]] | None = None
) -> Placement:
    ledger = Ledger()
    ledger.add_all(records)
    return Placement(ledger=ledger, slots=slots, capacity_bytes=capacity, bans=bans or set())


def resident(name: str, slot: int, *, position: int = 0) -> JobRecord:
    record = make_record(name, position=position)
    record.slot, record.state = slot, JobState.RUNNING
    return record


def accepted(placement: Placement, slot: Slot, waiting: list[JobRecord]) -> set[str]:
    """Return who may go to a slot; who was submitted first comes first."""
    return set(planned(placement, waiting).accepted(slot.index))


def planned(placement: Placement, waiting: list[JobRecord]) -> Placements:
    everybody = {record.name: record.submit_time for record in waiting}
    everybody |= {each.tenant.id: each.submit_time for each in placement.residents}
    ranks = {name: rank for rank, name in enumerate(sorted(everybody, key=everybody.__getitem__))}
    rules = Rules(capacity_bytes=placement.capacity_bytes, bans=placement.bans)
    tenants = [record.tenant for record in waiting]
    return plan(tenants, placement.residents, placement.berths, rules, lambda: Outlook(ranks=ranks, submit_times=everybody))


def test_memory_is_that_of_all_residents_and_the_largest_step() -> None:
    # each record holds 1 byte and takes 2 in a step
    records = [resident("a", 0), resident("b", 0), resident("c", 1), make_record("new")]
    assert place(records, make_slots(2), capacity=6).fits(records[3], make_slots(2)[0])  # 1 + 1 + 1 + 1 and c's 2
    assert not place(records, make_slots(2), capacity=5).fits(records[3], make_slots(2)[0])


def test_who_needs_a_slot_of_its_own_gets_the_emptiest_and_nobody_joins_it() -> None:
    slots = make_slots(2)
    lonely = make_record("lonely", position=5)
    lonely.is_alone = True
    other = make_record("other")
    records = [resident("a", 0), resident("b", 0), resident("c", 1), other, lonely]
    other.submit_time = 6.0
    placements = planned(place(records, slots), [other, lonely])
    assert [(kept.unit.id, kept.slot) for kept in placements.reservations] == [("lonely", 1)]
    assert placements.accepted(1) == frozenset()  # c has to leave first; then:
    records[2].slot = None
    placement = place(records, slots)
    assert accepted(placement, slots[1], [other, lonely]) == {"other", "lonely"}  # the scheduler chooses: nobody is passed
    assert accepted(placement, slots[0], [other, lonely]) == {"other"}
    lonely.slot = 1
    assert accepted(place(records, slots), slots[1], [other]) == set()


@pytest.mark.parametrize("wish", [{"exclusive": True}, {"colocate": "never"}])
def test_an_exclusive_job_is_like_one_on_probation(wish: dict[str, Any]) -> None:
    slots = make_slots(1)
    exclusive = make_record("exclusive", **wish)
    assert accepted(place([resident("a", 0), exclusive], slots), slots[0], [exclusive]) == set()
    assert accepted(place([exclusive], slots), slots[0], [exclusive]) == {"exclusive"}


def of(user: str | None, name: str, *, runs_code: bool = False, slot: int | None = None, **changes: Any) -> JobRecord:
    """A user's job; as if its worker were told to host it, if it is on a slot."""
    record = make_record(name, user=user, **changes)
    if runs_code:
        model = replace(record.submission.model, form=ModelForm.PICKLE)
        record.submission = replace(record.submission, model=model)
    record.slot = slot
    return record


def hosted(slot: Slot, *records: JobRecord) -> list[JobRecord]:
    """Let a slot's worker process host jobs, one after another."""
    for record in records:
        slot.note_guest(record)
    return list(records)


APART: list[dict[str, Any]] = [{"runs_code": True}, {"colocate": "same-user"}]


@pytest.mark.parametrize("apart", APART)
def test_a_job_that_keeps_to_its_user_is_only_with_that_users(apart: dict[str, Any]) -> None:
    [slot] = slots = make_slots(1)
    there = hosted(slot, of("ann", "there", slot=0))
    hers, his = of("ann", "hers", **apart), of("bob", "his", position=3, **apart)
    assert accepted(place([*there, hers, his], slots), slot, [hers, his]) == {"hers"}


@pytest.mark.parametrize("apart", APART)
def test_beside_a_job_that_keeps_to_its_user_are_only_that_users(apart: dict[str, Any]) -> None:
    [slot] = slots = make_slots(1)
    there = hosted(slot, of("ann", "there", slot=0, **apart))
    hers, his, nobodys = of("ann", "hers"), of("bob", "his", position=3), of(None, "nobodys", position=4)
    late = of("ann", "late", position=5)
    waiting = [hers, his, nobodys, late]
    placement = place([*there, *waiting], slots)
    assert [record.name for record in waiting if placement.fits(record, slot)] == ["hers", "late"]
    assert accepted(placement, slot, waiting) == {"hers"}  # it is kept for him: no more of hers that came after him


@pytest.mark.parametrize("apart", APART)
def test_what_a_process_hosted_counts_to_its_end(apart: dict[str, Any]) -> None:
    [slot] = slots = make_slots(1)
    hosted(slot, of("bob", "gone"))
    [there] = hosted(slot, of("ann", "there", slot=0))
    hers = of("ann", "hers", **apart)
    assert not place([there, hers], slots).fits(hers, slot)  # bob's memory may linger in it
    assert place([hers], slots).fits(hers, slot)  # nobody is there: it gets a new process
    assert not slot.suits([hers])


def test_code_that_ran_in_a_process_closes_it_to_others_when_it_is_gone() -> None:
    [slot] = slots = make_slots(1)
    hosted(slot, of("ann", "gone", runs_code=True))
    [there] = hosted(slot, of("ann", "there", slot=0))
    his = of("bob", "his")
    assert not place([there, his], slots).fits(his, slot)
    assert planned(place([there, his], slots), [his]).places["his"].obstacles == {0: "trust"}
    assert place([his], slots).fits(his, slot)


def test_jobs_without_a_user_are_one_users() -> None:
    [slot] = slots = make_slots(1)
    there = hosted(slot, of(None, "there", runs_code=True, slot=0))
    mine, his = of(None, "mine", runs_code=True), of("bob", "his", runs_code=True)
    assert accepted(place([*there, mine, his], slots), slot, [mine]) == {"mine"}
    assert not place([*there, mine, his], slots).fits(his, slot)


def test_a_stack_of_jobs_that_keep_to_different_users_fits_nowhere() -> None:
    [slot] = slots = make_slots(1)
    hers, his = of("ann", "hers", runs_code=True), of("bob", "his", runs_code=True)
    placement = place([hers, his], slots)
    assert placement.fits(hers, slot)
    assert not placement.fits(hers, slot, [his])


def test_who_is_shut_out_drives_out_those_that_came_later_only() -> None:
    [slot] = slots = make_slots(1)
    early, late = of("ann", "early", runs_code=True, slot=0), of("ann", "late", runs_code=True, slot=0, position=9)
    hosted(slot, early, late)
    his = of("bob", "his", position=5)
    for record in (early, late):
        record.state = JobState.RUNNING
    assert planned(place([early, late, his], slots), [his]).evictions == ()  # the early one stays, so it would be in vain
    early.slot = None
    assert [each.unit for each in planned(place([late, his], slots), [his]).evictions] == ["late"]


def test_a_new_worker_process_has_hosted_nobody() -> None:
    class Forks:
        def spawn(self, role: str, **_: object) -> Child:
            return Child(pid=0, pipe=cast(Connection, None))

    [slot] = make_slots(1)
    hosted(slot, of("ann", "gone", runs_code=True))
    slot.start(cast(Nursery, Forks()), deterministic=False, confinement=None)
    assert slot.suits([of("bob", "his", runs_code=True)])


def test_banned_pairs_do_not_meet() -> None:
    slots = make_slots(1)
    new, third = make_record("new"), make_record("third")
    placement = place([resident("a", 0), new, third], slots, bans={frozenset({"new", "a"})})
    assert accepted(placement, slots[0], [new, third]) == {"third"}


def test_a_job_that_workers_died_with_beside_many_stays_alone() -> None:
    record, bans = make_record("suspect"), set()
    for number in range(MAX_BANS):
        assert record.is_alone is False
        record.suspected_beside, record.is_alone = frozenset({f"other-{number}"}), True
        clear_suspect(record, bans, MemoryJournal())
    assert record.is_alone
    assert len(bans) == MAX_BANS


def test_the_one_whose_code_ran_is_the_suspect() -> None:
    running, parked, returning = resident("running", 0), resident("parked", 0), resident("returning", 0)
    running.is_running = returning.is_returning = True
    lost = [running, parked, returning]
    assert suspects_of(lost, None) == [running]
    assert suspects_of(lost, "returning") == [returning]  # its own code ran inside the other's turn


@pytest.mark.parametrize(
    ("code", "stalled", "out_of_memory", "batch", "expected"),
    [
        (-signal.SIGSEGV, False, False, False, (Fault.CRASH, Fault.NEIGHBOUR)),
        (3, False, False, False, (Fault.CRASH, Fault.NEIGHBOUR)),
        (-signal.SIGKILL, False, False, False, (Fault.KILLED, Fault.KILLED)),
        (None, False, False, False, (Fault.KILLED, Fault.KILLED)),
        (-signal.SIGKILL, True, False, False, (Fault.STALL, Fault.NEIGHBOUR)),  # by ourselves
        (-signal.SIGKILL, False, True, False, (Fault.OUT_OF_MEMORY, Fault.NEIGHBOUR)),  # by the kernel
        (-signal.SIGKILL, False, False, True, (Fault.CRASH, Fault.NEIGHBOUR)),  # nobody else is at work in a batch run
    ],
)
def test_signals_from_outside_are_nobodys_fault(
    code: int | None, stalled: bool, out_of_memory: bool, batch: bool, expected: tuple[Fault, Fault]
) -> None:
    how = Exit(code=code)
    assert fault_of_death(how, is_stalled=stalled, is_out_of_memory=out_of_memory, is_batch=batch) == expected


@pytest.mark.parametrize(
    ("grants", "text"),
    [
        ([("a", 0)], None),
        ([("nobody", 0)], "not both free"),
        ([("a", 1)], "not both free"),  # that slot is at work
        ([("a", 0), ("a", 0)], "twice"),
        ([("b", 0)], "cannot run"),  # resident elsewhere
    ],
)
def test_what_a_scheduler_may_grant(grants: list[tuple[str, int]], text: str | None) -> None:
    ready = [make_record("a").view(), resident("b", 1).view()]
    slots = [base.SlotView(id=0), base.SlotView(id=1, running=("c",))]
    found = wrong_grant([base.Grant(unit_id=job, slot_id=slot, quantum=base.UntilDone()) for job, slot in grants], ready, slots)
    assert found is None if text is None else text in str(found)
