"""The laws every scheduler keeps: one suite, run by pytest over the schedulers of a list, or of ``--scheduler``."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schedulers.aging import Aging
from schedulers.base import Admits, Event, Explains, Grant, JobView, Observes, Preempts, Scheduler, SlotView, Stateful
from schedulers.keyed import KeyPolicy
from schedulers.needs import check_fields
from schedulers.registry import create
from schedulers.testing.cases import (
    NOW,
    TWO_IDLE_SLOTS,
    TWO_UNITS,
    UNITS,
    histories,
    ready_units,
    slots_of_a_host,
    some_cuts,
    some_numbers,
    workloads,
)
from schedulers.testing.run import SimulatedRun, restarted

#: A busy machine breaks no law; and one suite is run from several classes, each over its own schedulers.
law = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class SchedulerLaws:
    """The suite; a subclass lists the schedulers, as they are spelled."""

    spellings: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "spelling" in metafunc.fixturenames:
            metafunc.parametrize("spelling", self.listed(metafunc.config))

    def listed(self, config: pytest.Config) -> Sequence[str]:
        """Return the schedulers that are to be judged."""
        return self.spellings

    # ---- one decision ----

    @law
    @given(ready=ready_units(), slots=slots_of_a_host, history=histories)
    def test_grants_name_ready_units_once_on_slots_that_have_room_for_them(self, spelling, ready, slots, history):
        grants = after(spelling, history).select(NOW, ready, slots)
        units, there = {unit.id: unit for unit in ready}, {slot.id: slot for slot in slots}
        assert len({grant.unit_id for grant in grants}) == len(grants)
        for grant in grants:
            assert eligible(units[grant.unit_id], there[grant.slot_id])
        for slot in slots:
            beside = [units[grant.unit_id] for grant in grants if grant.slot_id == slot.id]
            assert len(beside) <= slot.room
            assert all(unit.can_corun for unit in beside) or len(beside) + len(slot.running) == 1

    @law
    @example(ready=TWO_UNITS, slots=TWO_IDLE_SLOTS, history=[])  # the plainest case, which few random draws are
    @given(ready=ready_units(), slots=slots_of_a_host, history=histories)
    def test_as_few_slots_are_idle_as_can_be(self, spelling, ready, slots, history):
        def most(free: list[SlotView], units: frozenset[JobView]) -> int:
            if not free:
                return 0
            taken = [1 + most(free[1:], units - {unit}) for unit in units if eligible(unit, free[0])]
            return max([most(free[1:], units), *taken])

        grants = after(spelling, history).select(NOW, ready, slots)
        idle = [slot for slot in slots if not slot.running]
        assert len({grant.slot_id for grant in grants} & {slot.id for slot in idle}) == most(idle, frozenset(ready))

    @law
    @given(ready=ready_units(), slots=slots_of_a_host, history=histories)
    def test_deciding_twice_gives_the_same_and_changes_nothing(self, spelling, ready, slots, history):
        scheduler = after(spelling, history)
        before, shown = memory(scheduler), copy.deepcopy((ready, slots))
        first = [scheduler.select(NOW, ready, slots), *stopped_and_explained(scheduler, ready, slots)]
        assert [scheduler.select(NOW, ready, slots), *stopped_and_explained(scheduler, ready, slots)] == first
        assert (ready, slots) == shown
        assert memory(scheduler) == before

    @law
    @given(ready=ready_units(), slots=slots_of_a_host, history=histories, data=st.data())
    def test_the_order_of_the_units_does_not_matter(self, spelling, ready, slots, history, data):
        scheduler = after(spelling, history)
        shuffled = data.draw(st.permutations(ready))
        assert scheduler.select(NOW, shuffled, slots) == scheduler.select(NOW, ready, slots)
        assert stopped(scheduler, shuffled, slots) == stopped(scheduler, ready, slots)

    @law
    @given(ready=ready_units(), slots=slots_of_a_host, history=histories)
    def test_victims_run_and_are_no_more_than_those_who_wait(self, spelling, ready, slots, history):
        running, wanted = running_and_wanted(ready)
        victims = stopped(after(spelling, history), ready, slots)
        assert set(victims) <= {unit.id for unit in running}
        assert len(set(victims)) == len(victims) <= len(wanted)

    @law
    @given(ready=ready_units(), history=histories)
    def test_an_explanation_is_one_line(self, spelling, ready, history):
        scheduler = after(spelling, history)
        if isinstance(scheduler, Explains):
            for unit in ready:
                text = scheduler.explain(unit, NOW)
                assert text.strip() == text != ""
                assert len(text.splitlines()) == 1

    def test_what_it_needs_are_fields_of_units(self, spelling):
        check_fields(spelling, create(spelling).needs)

    # ---- memory ----

    @law
    @given(ready=ready_units(), slots=slots_of_a_host, history=histories, later=histories)
    def test_memory_survives_a_restart_as_json(self, spelling, ready, slots, history, later):
        scheduler = after(spelling, history)
        again = restarted(scheduler, create(spelling))
        for each in (scheduler, again):
            tell(each, *later)
        assert memory(again) == memory(scheduler)
        assert again.select(NOW, ready, slots) == scheduler.select(NOW, ready, slots)

    @law
    @given(history=histories, data=st.data())
    def test_repeated_and_late_events_are_ignored(self, spelling, history, data):
        scheduler = after(spelling, history)
        before = memory(scheduler)
        tell(scheduler, *data.draw(st.permutations(history)))
        assert memory(scheduler) == before

    @law
    @given(history=histories)
    def test_the_memory_handed_out_is_a_copy(self, spelling, history):
        scheduler = after(spelling, history)
        if isinstance(scheduler, Stateful):
            before = memory(scheduler)
            scribble_on(scheduler.state_dict())
            assert memory(scheduler) == before

    # ---- whole runs ----

    @law
    @given(
        units=workloads(with_zeros=True),
        num_slots=st.integers(1, 3),
        corun_limit=st.integers(1, 2),
        cuts=some_cuts,
        deaf_to=some_numbers,
    )
    def test_every_job_of_a_finite_workload_is_done_and_stays_on_its_slot(
        self, spelling, units, num_slots, corun_limit, cuts, deaf_to
    ):
        turns = SimulatedRun(
            scheduler=create(spelling), units=units, num_slots=num_slots, corun_limit=corun_limit, cuts=cuts, deaf_to=deaf_to
        ).to_the_end()
        last = {turn.unit.id: turn.unit_after for turn in turns}
        assert {unit.id: unit.steps_total for unit in units} == {name: unit.steps_done for name, unit in last.items()}
        assert len({(turn.unit.id, turn.slot_id) for turn in turns}) == len(units)

    @law
    @given(units=workloads(with_zeros=True), num_slots=st.integers(1, 2), cuts=some_cuts, restarts=some_numbers)
    def test_restarts_in_the_middle_change_nothing(self, spelling, units, num_slots, cuts, restarts):
        def turns(restarts: frozenset[int]) -> list[tuple[str, int, float]]:
            run = SimulatedRun(
                scheduler=create(spelling),
                units=units,
                num_slots=num_slots,
                cuts=cuts,
                restarts=restarts,
                fresh=lambda: create(spelling),
            )
            return [(turn.unit.id, turn.slot_id, turn.began) for turn in run.to_the_end()]

        assert turns(restarts) == turns(frozenset())

    @law
    @given(units=workloads(), num_slots=st.integers(1, 2), max_wait=st.integers(1, 20))
    def test_under_aging_nobody_starts_where_one_who_waited_too_long_is_ready(self, spelling, units, num_slots, max_wait):
        scheduler = create(spelling)
        if not isinstance(scheduler, KeyPolicy) or isinstance(scheduler, Admits):
            pytest.skip("only policies with a key, and without promises of their own, can be aged")
        watched = _Watched(scheduler, max_wait=max_wait)
        SimulatedRun(scheduler=watched, units=units, num_slots=num_slots).to_the_end()
        for now, ready, grants in watched.decisions:
            granted = {grant.unit_id: grant.slot_id for grant in grants}
            passed_over = [unit for unit in ready if unit.id not in granted and watched.is_promoted(unit, now)]
            started = {granted[unit.id] for unit in ready if unit.id in granted and not watched.is_promoted(unit, now)}
            assert not any(unit.slot_id in started or (unit.slot_id is None and started) for unit in passed_over)

    def test_decisions_are_the_same_in_every_process(self, request):
        spellings = list(self.listed(request.config))
        command = [sys.executable, "-m", "schedulers.testing.decisions", *spellings]
        path = os.pathsep.join(part for part in sys.path if part)
        runs = [
            subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        ]
        assert runs[0] == runs[1] != ""


class TestLaws(SchedulerLaws):
    """The suite over the schedulers of the command line."""

    def listed(self, config: pytest.Config) -> Sequence[str]:
        return config.getoption("scheduler")


class _Watched(Aging):
    """Aging that keeps what it was shown and what it answered."""

    def __init__(self, inner: Scheduler, max_wait: float) -> None:
        super().__init__(inner, max_wait=max_wait)
        self.decisions: list[tuple[float, Sequence[JobView], list[Grant]]] = []

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        grants = super().select(now, ready, slots)
        self.decisions.append((now, ready, grants))
        return grants


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


def scribble_on(state: object) -> None:
    """Change every container in a memory."""
    if isinstance(state, dict):
        for value in state.values():
            scribble_on(value)
        state["unit-0"] = 10**6
    elif isinstance(state, list):
        state.append(0)


def eligible(unit: JobView, slot: SlotView) -> bool:
    if unit.slot_id is not None:
        return unit.slot_id == slot.id
    return slot.accepts is None or unit.id in slot.accepts


def running_and_wanted(units: Sequence[JobView]) -> tuple[list[JobView], list[JobView]]:
    """Divide units by their names into some that run and some that wait."""
    running = [dataclasses.replace(unit, slot_id=unit.slot_id or 0, has_begun=True) for unit in units if unit.id in UNITS[:3]]
    return running, [unit for unit in units if unit.id not in UNITS[:3]]


def stopped(scheduler: Scheduler, units: Sequence[JobView], slots: Sequence[SlotView]) -> list[str]:
    running, wanted = running_and_wanted(units)
    return scheduler.victims(NOW, running, wanted, slots) if isinstance(scheduler, Preempts) else []


def stopped_and_explained(scheduler: Scheduler, units: Sequence[JobView], slots: Sequence[SlotView]) -> list[object]:
    explained = [scheduler.explain(unit, NOW) for unit in units] if isinstance(scheduler, Explains) else []
    return [stopped(scheduler, units, slots), explained]
