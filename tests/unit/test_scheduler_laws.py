"""The laws every scheduler keeps: one suite over all policies; a new policy is one more spelling."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.base import (
    Cancelled,
    Event,
    Failed,
    Finished,
    JobView,
    Observes,
    Paused,
    Resumed,
    Scheduler,
    SlotView,
    Stateful,
    Submitted,
    TurnDone,
    WorkerLost,
)
from schedulers.registry import BUILT_INS, create
from tests.unit.simulated_run import SimulatedRun, Turn, an_event

BUILT_IN_SPELLINGS = [
    "fcfs",
    "priority",
    "sjf",
    "sjf:length=epochs",
    "srtf",
    "default",
    "hrrn",
    "las",
    "2dlas",
    "2dlas:thresholds=4s/9s",
    "stride",
    "drr:quantum=3steps",
    "drr",
    "edf",
    "priority:preempt=step",
    "sjf:length=seconds",
    "aging(fcfs)",
    "aging(fair(srtf),max_wait=5s)",
    "fair(priority)",
    "round-robin",
    "round-robin:quantum=7",
    "round-robin:quantum=2epochs",
]
#: Policies from elsewhere, such as ``module:Class``: docs/extending.md. What only ours promise is not asked of them.
SPELLINGS = [*BUILT_IN_SPELLINGS, *os.environ.get("UNIFIED_SCHEDULERS_TO_TEST", "").split()]
ROTATING = [spelling for spelling in BUILT_IN_SPELLINGS if isinstance(create(spelling), Observes)]
UNITS = [f"unit-{index}" for index in range(6)]

any_policy = pytest.mark.parametrize("spelling", SPELLINGS)
any_built_in = pytest.mark.parametrize("spelling", BUILT_IN_SPELLINGS)
law = settings(max_examples=30, deadline=None)  # a busy machine breaks no law


def test_every_built_in_policy_is_under_law():
    assert {re.split("[:(]", spelling)[0] for spelling in BUILT_IN_SPELLINGS} == set(BUILT_INS)


# ---- what a scheduler can be shown and told ----


@st.composite
def ready_units(draw: st.DrawFn) -> list[JobView]:
    """Units in any order, with few distinct values, so that ties are common."""
    small = st.integers(0, 2)
    return [
        JobView(
            id=unit_id,
            submit_time=draw(st.sampled_from([0.0, 1.5])),
            priority=draw(st.sampled_from([-(10**9), 0, 0, 3])),
            num_parameters=draw(small),
            num_epochs=draw(small) + 1,
            has_begun=draw(st.booleans()),
            slot_id=draw(st.none() | small),
        )
        for unit_id in draw(st.lists(st.sampled_from(UNITS), unique=True))
    ]


accepts = st.none() | st.frozensets(st.sampled_from(UNITS))
slots_of_a_host = st.lists(st.tuples(st.just(()) | st.just(("busy",)), accepts), max_size=4).map(
    lambda rows: [SlotView(id=index, running=row[0], accepts=row[1]) for index, row in enumerate(rows)]
)

kinds = st.sampled_from([Submitted, TurnDone, TurnDone, Paused, Resumed, WorkerLost, Finished, Failed, Cancelled])
histories = st.lists(st.builds(an_event, kinds, st.sampled_from(UNITS), st.integers(0, 9)), max_size=25)


def after(spelling: str, history: Sequence[Event]) -> Scheduler:
    scheduler = create(spelling)
    tell(scheduler, *history)
    return scheduler


def tell(scheduler: Scheduler, *events: Event) -> None:
    if isinstance(scheduler, Observes):
        for event in events:
            scheduler.on_event(event)


def memory(scheduler: Scheduler) -> object:
    return copy.deepcopy(scheduler.state_dict()) if isinstance(scheduler, Stateful) else None


def eligible(unit: JobView, slot: SlotView) -> bool:
    if unit.slot_id is not None:
        return unit.slot_id == slot.id
    return slot.accepts is None or unit.id in slot.accepts


# ---- laws of one decision ----


@any_policy
@law
@given(ready=ready_units(), slots=slots_of_a_host, history=histories)
def test_grants_name_ready_units_once_on_idle_slots_that_can_have_them(spelling, ready, slots, history):
    grants = after(spelling, history).select(9.0, ready, slots)
    units, idle = {unit.id: unit for unit in ready}, {slot.id: slot for slot in slots if slot.room}
    assert len({grant.unit_id for grant in grants}) == len({grant.slot_id for grant in grants}) == len(grants)
    for grant in grants:
        assert eligible(units[grant.unit_id], idle[grant.slot_id])


@any_policy
@law
@given(ready=ready_units(), slots=slots_of_a_host, history=histories)
def test_as_many_slots_are_busy_as_can_be(spelling, ready, slots, history):
    def most(free: list[SlotView], units: frozenset[JobView]) -> int:
        if not free:
            return 0
        taken = [1 + most(free[1:], units - {unit}) for unit in units if eligible(unit, free[0])]
        return max([most(free[1:], units), *taken])

    grants = after(spelling, history).select(9.0, ready, slots)
    assert len(grants) == most([slot for slot in slots if slot.room], frozenset(ready))


@any_policy
@law
@given(ready=ready_units(), slots=slots_of_a_host, history=histories)
def test_deciding_twice_gives_the_same_and_changes_nothing(spelling, ready, slots, history):
    scheduler = after(spelling, history)
    before, shown = memory(scheduler), copy.deepcopy((ready, slots))
    first = scheduler.select(9.0, ready, slots)
    assert scheduler.select(9.0, ready, slots) == first
    assert (ready, slots) == shown
    assert memory(scheduler) == before


@any_policy
@law
@given(ready=ready_units(), slots=slots_of_a_host, history=histories, data=st.data())
def test_the_order_of_the_ready_units_does_not_matter(spelling, ready, slots, history, data):
    scheduler = after(spelling, history)
    shuffled = data.draw(st.permutations(ready))
    assert scheduler.select(9.0, shuffled, slots) == scheduler.select(9.0, ready, slots)


# ---- laws of memory ----


@any_policy
@law
@given(ready=ready_units(), slots=slots_of_a_host, history=histories, later=histories)
def test_memory_survives_a_restart_as_json(spelling, ready, slots, history, later):
    scheduler, restarted = after(spelling, history), create(spelling)
    if isinstance(scheduler, Stateful) and isinstance(restarted, Stateful):
        restarted.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    for each in (scheduler, restarted):
        tell(each, *later)
    assert memory(restarted) == memory(scheduler)
    assert restarted.select(9.0, ready, slots) == scheduler.select(9.0, ready, slots)


@any_policy
@law
@given(history=histories, data=st.data())
def test_repeated_and_late_events_are_ignored(spelling, history, data):
    scheduler = after(spelling, history)
    before = memory(scheduler)
    tell(scheduler, *data.draw(st.permutations(history)))
    assert memory(scheduler) == before


@any_policy
@law
@given(history=histories)
def test_the_memory_handed_out_is_a_copy(spelling, history):
    scheduler = after(spelling, history)
    if isinstance(scheduler, Stateful):
        before = memory(scheduler)
        state = scheduler.state_dict()
        for value in state.values():
            if isinstance(value, dict):
                value["unit-0"] = 10**6
        state.clear()
        assert memory(scheduler) == before


# ---- laws of whole runs ----


@st.composite
def workloads(draw: st.DrawFn) -> list[JobView]:
    """Jobs of any length, arriving at any time, as they are before they begin."""
    units = []
    for unit_id in draw(st.lists(st.sampled_from(UNITS), unique=True, min_size=1)):
        epochs, steps_per_epoch = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        units.append(
            JobView(
                id=unit_id,
                submit_time=draw(st.integers(0, 12)),
                priority=draw(st.integers(-1, 1)),
                num_parameters=draw(st.integers(0, 3)),
                num_epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                steps_total=epochs * steps_per_epoch,
            )
        )
    return units


some_cuts = st.dictionaries(st.integers(0, 12), st.sampled_from([Paused, WorkerLost]), max_size=4)
losses = st.dictionaries(st.integers(0, 12), st.just(WorkerLost), max_size=4)


def turns_of(spelling, units, num_slots=1, cuts=None) -> list[Turn]:
    scheduler = create(spelling)
    return SimulatedRun(scheduler=scheduler, units=units, num_slots=num_slots, cuts=cuts or {}).to_the_end()


@any_policy
@law
@given(units=workloads(), num_slots=st.integers(1, 3), cuts=some_cuts)
def test_every_job_of_a_finite_workload_is_done_and_stays_on_its_slot(spelling, units, num_slots, cuts):
    turns = turns_of(spelling, units, num_slots, cuts)
    last = {turn.unit.id: turn.unit_after for turn in turns}
    assert {unit.id: unit.steps_total for unit in units} == {i: unit.steps_done for i, unit in last.items()}
    assert len({(turn.unit.id, turn.slot_id) for turn in turns}) == len(units)


@any_built_in
@law
@given(units=workloads(), cuts=losses)
def test_a_unit_whose_turn_was_cut_by_a_lost_worker_goes_on_first(spelling, units, cuts):
    if spelling == "priority":  # there a more urgent arrival may come first
        units = [dataclasses.replace(unit, priority=0) for unit in units]
    turns = turns_of(spelling, units, cuts=cuts)
    for turn, following in itertools.pairwise(turns):
        if turn.cut is not None:
            assert following.unit.id == turn.unit.id


@pytest.mark.parametrize("spelling", [spelling for spelling in BUILT_IN_SPELLINGS if spelling not in ROTATING])
@law
@given(units=workloads(), num_slots=st.integers(1, 3))
def test_a_unit_granted_until_done_is_not_interrupted(spelling, units, num_slots):
    assert len(turns_of(spelling, units, num_slots)) == len(units)


@pytest.mark.parametrize("spelling", ROTATING)
@law
@given(units=workloads())
def test_nobody_waits_longer_than_one_turn_of_each_who_was_there_before(spelling, units):
    units = [dataclasses.replace(unit, priority=0) for unit in units]
    turns = turns_of(spelling, units)
    waits_since = {unit.id: unit.submit_time for unit in units}
    for number, turn in enumerate(turns):
        since = waits_since[turn.unit.id]
        overtaking = [other.unit for other in turns[:number] if other.began >= since]
        assert len({unit.id for unit in overtaking}) == len(overtaking)
        assert all(unit.submit_time <= since for unit in overtaking)
        waits_since[turn.unit.id] = turn.ended


@law
@given(units=workloads())
def test_fcfs_never_reorders(units):
    began = [turn.unit for turn in turns_of("fcfs", units)]
    assert began == sorted(began, key=lambda unit: (unit.submit_time, unit.id))


@law
@given(units=workloads())
def test_priority_never_begins_a_turn_of_a_lower_class_while_a_higher_one_waits(units):
    turns = turns_of("priority", units)
    done_at = {turn.unit.id: turn.ended for turn in turns}
    for turn in turns:
        waiting = [u for u in units if u.submit_time <= turn.began < done_at[u.id]]
        assert turn.unit.priority == min(unit.priority for unit in waiting)


@law
@given(epochs=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_sjf_has_the_least_mean_completion_time_of_all_orders(epochs):
    units = [JobView(id=UNITS[index], submit_time=0, num_epochs=count, steps_total=count) for index, count in enumerate(epochs)]
    best = min(sum(itertools.accumulate(order)) for order in itertools.permutations(epochs))
    assert sum(turn.ended for turn in turns_of("sjf:length=epochs", units)) == best
