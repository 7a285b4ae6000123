"""Carries decisions out: makes slots, grants turns to their workers, moves and evicts jobs. Free of torch.

Every decision of who runs comes from the scheduler; what comes of it is noted by the bookkeeper.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from schedulers import base
from unified import events, messages
from unified.bookkeeper import Bookkeeper
from unified.deciding import Decider
from unified.errors import NurseryDiedError, ReportError, SpawnError, WorkerDiedError
from unified.job_state import ENDED, JobState
from unified.ledger import JobRecord, Ledger
from unified.nursery import Nursery
from unified.oom import OomWatch
from unified.packer import Placements
from unified.packing import Plan
from unified.placing import Placer
from unified.planning import Planner
from unified.reports import receive
from unified.sandbox.records import Confinement
from unified.slots import Slot
from unified.stages import Stages
from unified.units import Unit

MAX_IDLE_DEATHS = 3
CHECKPOINT_ALL_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Conductor:
    """Drives the workers of a run.

    Attributes:
        books: The jobs, and everybody who is told of what happens to them.
        nursery: Where workers come from.
        planner: Knows the devices and their memory.
        deterministic: Workers use deterministic kernels only.
        confinement: All that workers may touch; None: what their user may.
        stages: The slots, as planned.
        decider: Asks the scheduler.
        placer: Asks the packer.
        checkpoint_seconds: Interval between a job's checkpoints; None: they are written when :meth:`checkpoint` is called.
    """

    books: Bookkeeper
    nursery: Nursery
    planner: Planner
    deterministic: bool
    confinement: Confinement | None = None
    checkpoint_seconds: float | None = 30.0
    stages: Stages = field(init=False)
    decider: Decider = field(init=False)
    placer: Placer = field(init=False)
    _num_idle_deaths: int = 0
    _oom: OomWatch = field(default_factory=OomWatch)

    def __post_init__(self) -> None:
        self.decider = Decider(scheduler=self.books.telling.scheduler, name=self.books.telling.name, clock=self.books.clock)
        self.stages = Stages(
            planner=self.planner, nursery=self.nursery, deterministic=self.deterministic, confinement=self.confinement
        )
        self.placer = Placer(books=self.books, stages=self.stages)

    def adopt(self, plan: Plan) -> None:
        """Take over a plan: fix each job's threads and make the first stage's slots."""
        self.stages.adopt(plan)
        for stage in plan.stages:
            for name in stage.jobs:
                record = self._ledger[name]
                record.num_threads = record.num_threads or stage.threads

    @property
    def _ledger(self) -> Ledger:
        return self.books.ledger

    @property
    def slots(self) -> list[Slot]:
        """The slots of the moment."""
        return self.stages.slots

    def describe_slots(self) -> tuple[str, ...]:
        """Return each slot in words, over all stages: ``"slot 0: cpu, 1 thread, then 2 threads"``."""
        return self.stages.describe()

    @property
    def is_active(self) -> bool:
        """Whether a run is under way."""
        return bool(self.slots)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nothing can begin."""
        return not any(record.is_ready or record.slot is not None for record in self._ledger.all())

    def pipes(self) -> dict[Connection, Slot]:
        """Return the pipes of the living workers."""
        return {slot.child.pipe: slot for slot in self.slots if slot.child is not None}

    def advance(self) -> None:
        """Let idle slots begin turns, as the scheduler decides; spread parked jobs over slots that have none."""
        self._choose_stage()
        self.placer.watch()
        self._preempt(*self._hand_out())

    def _hand_out(self) -> tuple[list[Unit], Placements]:
        """Give idle slots to those who are ready; return the units that found no room, and where they might go."""
        units, placements = dict[str, Unit](), Placements(places={})
        for _ in self.slots:
            units, placements, is_crowded = self._decide()
            if not is_crowded:
                break
        ready = self.placer.ready()
        for slot in self.slots:
            if slot.may_be_joined and slot.turn:
                self._let_join(slot, ready)
        for slot in self.slots:
            parked = self.placer.to_fetch(slot) if slot.running is None else None
            if parked is not None:
                self._evict(parked, "move")
        return [unit for unit in units.values() if all(record.is_ready for record in unit.records)], placements

    def _decide(self) -> tuple[dict[str, Unit], Placements, bool]:
        """Place and grant once; return also whether a grant was left out, as those before it took the memory that it needs."""
        units, placements = self._placed(self.placer.ready())
        if not units:
            return units, placements, False
        is_crowded = False
        num_placed = 0
        for grant in self.decider.select(list(units.values()), placements, self.slots):
            unit, slot = units[grant.unit_id], self.slots[grant.slot_id]
            if unit.slot is None:
                if num_placed and grant.unit_id not in self._placed(self.placer.ready())[1].accepted(slot.index):
                    is_crowded = True
                    continue
                num_placed += 1
            self._grant(unit, slot, grant.quantum)
        return units, placements, is_crowded

    def _placed(self, ready: list[JobRecord]) -> tuple[dict[str, Unit], Placements]:
        """Return the units that could begin a turn, and where they may go; who has to leave for one of them is told so."""
        placement = self.placer.placement()
        units = self.placer.units(placement).of(ready)
        placements = self.placer.plan(units, placement)
        self.placer.remember(placements.evictions)
        leaving = [self._ledger[each.unit] for each in placements.evictions]
        for record in leaving:
            self._evict(record, "move")
        if leaving:
            units = self.placer.units(placement).of([record for record in ready if record not in leaving])
        return {unit.leader.name: unit for unit in units}, placements

    def receive(self, slot: Slot) -> None:
        """Take in one report of a worker, or its death."""
        assert slot.child is not None, "only living workers' pipes are waited for"
        try:
            report = receive(slot.child.pipe, messages.Report)
        except (EOFError, OSError, ReportError):
            self._lose_worker(slot)
            return
        self.books.take(slot, report)

    def pause(self, record: JobRecord, reason: str = "paused on request") -> None:
        """Set a job aside; see :meth:`unified.Engine.pause`."""
        if record.slot is None:
            if record.state in {JobState.QUEUED, JobState.RETRY_WAIT}:
                self.books.set_aside(record, reason)
        elif record.state in {JobState.LOADING, JobState.RUNNING} and not record.is_returning:
            if self.books.move(record, JobState.PAUSING, reason):
                self._evict(record, "pause")
        elif record.state is JobState.PAUSING:
            record.returns_at_once = False

    def set_aside_at_once(self, record: JobRecord, reason: str) -> None:
        """Pause a resident job without a new checkpoint: the disk takes none."""
        if record.state in {JobState.LOADING, JobState.RUNNING} and self.books.move(record, JobState.PAUSING, reason):
            record.leaving = "pause"
            self._send_evict(record, keep=False)

    def resume(self, record: JobRecord) -> None:
        """Let a paused job wait for its turn again."""
        if record.state is JobState.PAUSING:
            record.returns_at_once = True  # it comes back as soon as it is out
        elif record.state is JobState.PAUSED:
            self.books.set_waiting(record)

    def cancel(self, record: JobRecord) -> None:
        """End a job on request."""
        if record.state in ENDED or record.state is JobState.CANCELLING:
            return
        if record.slot is None:
            self.books.set_cancelled(record)
        elif self.books.move(record, JobState.CANCELLING, "cancelled on request"):
            self._evict(record, "cancel")

    def end(self, record: JobRecord, reason: str) -> None:
        """Fail a job on a slot for ``reason``; its member leaves."""
        if record.slot is None or record.state not in {JobState.LOADING, JobState.RUNNING}:
            return
        self._send_evict(record, keep=False)
        self.books.end_turn_of(self.slots[record.slot], record)
        self.books.fail(record, reason)

    def drop(self, record: JobRecord) -> None:
        """Forget a job that is no longer ours; its member leaves without a word."""
        if record.slot is not None:
            self._send_evict(record, keep=False)
            self.slots[record.slot].forget(record.name)
        self._ledger.remove(record.name)

    def stop_stalled(self, slot: Slot) -> None:
        """End a worker that says nothing any more; its death is taken in like any other."""
        if slot.child is not None:
            slot.is_stalled = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.child.pid, signal.SIGKILL)

    def checkpoint(self, record: JobRecord) -> None:
        """Have a checkpoint written; a job that is not resident has its state on disk already."""
        if record.slot is not None:
            self.slots[record.slot].send(messages.WriteCheckpoint(job=record.name))

    def checkpoint_all(self, seconds: float = CHECKPOINT_ALL_SECONDS) -> None:
        """Have checkpoints of all resident jobs written and wait for them, ``seconds`` at most."""
        awaited = [record for record in self._ledger.all() if record.slot is not None and not record.is_returning]
        for record in awaited:
            self.checkpoint(record)
        self._listen_while(lambda: any(record.lacks_checkpoint for record in awaited), seconds)

    def save_all(self, seconds: float) -> None:
        """Have all resident jobs saved and leave, so that no step is done twice, and finished ones returned; wait for that.

        Not for jobs that are being loaded: they have nothing to lose.
        """
        resident = [record for record in self._ledger.all() if record.slot is not None]
        for record in resident:
            record.checkpoint_failed = False
            if not record.is_returning and record.leaving is None:
                self._evict(record, "drain")
        is_awaited = lambda record: record.slot is not None and not (record.is_hosting or record.checkpoint_failed)  # noqa: E731
        self._listen_while(lambda: any(map(is_awaited, resident)), seconds)

    def _listen_while(self, is_awaited: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while is_awaited() and (left := deadline - time.monotonic()) > 0 and self.pipes():
            for pipe in wait(list(self.pipes()), timeout=left):
                assert isinstance(pipe, Connection), "only pipes were waited for"
                self.receive(self.pipes()[pipe])

    def stop(self) -> None:
        """End the workers; jobs that were resident go back to the queue with what their checkpoints hold."""
        self.stages.end_workers()
        for record in self._ledger.all():
            if record.slot is not None:
                record.returns_at_once = False
                self.books.settle_evicted(record, "its slot was closed down")
        self.stages.clear()

    def _choose_stage(self) -> None:
        """Go to the stage of the first waiting job once nobody of the present stage is left."""
        living = [record for record in self._ledger.all() if record.is_ready or record.slot is not None]
        if not living or any(self.placer.belongs(record) for record in living) or not self.stages.is_planned:
            return
        wanted = living[0].num_threads
        self.stages.enter_with(wanted)

    def _grant(self, unit: Unit, slot: Slot, quantum: base.Quantum) -> None:
        records = [record for record in unit.records if record.slot is not None or self._take(record, slot)]
        if not records:
            return
        slot.send(self.books.stacks.turn_of(records, quantum))
        slot.may_be_joined = isinstance(quantum, base.UntilDone)
        for record in records:
            self.books.begin_turn(slot, record)

    def _preempt(self, left: Sequence[Unit], placements: Placements) -> None:
        """End turns for the sake of more urgent units that found no room."""
        by_turn = {slot.running: slot for slot in self.slots}
        in_turn = lambda: self.placer.units(self.placer.placement()).in_turn()  # noqa: E731
        for name in self.decider.victims(left, in_turn, placements, self.slots):
            slot = by_turn[name]
            if not slot.is_ending:
                slot.is_ending, slot.may_be_joined = slot.send(messages.EndTurn()), False

    def _let_join(self, slot: Slot, ready: Sequence[JobRecord]) -> None:
        """Let jobs that are left over join a turn of jobs like them, as far as they are wanted there."""
        stacks, leader = self.books.stacks, self._ledger.get(slot.turn[0])
        kind = None if leader is None else stacks.kind_of(leader)
        for record in ready:
            if kind is None or not record.is_ready or stacks.kind_of(record) != kind:
                continue
            if not self.placer.units(self.placer.placement()).may_join(record, slot):
                break
            if record.slot is not None or self._take(record, slot):
                slot.send(messages.JoinTurn(job=record.name))
                self.books.begin_turn(slot, record)

    def _take(self, record: JobRecord, slot: Slot) -> bool:
        """Take a job to a slot; False if it is no longer ours, or its results have no place."""
        if not self.books.begin_residency(slot, record) or not self._make_folder(record):
            return False
        self._start_worker(slot, record)
        slot.send(self._host(record))
        return True

    def _start_worker(self, slot: Slot, record: JobRecord) -> None:
        """Start the slot's worker if it has none that this job may be in.

        Raises:
            NurseryDiedError: If there is nobody to start it; ``record`` waits again.
            SpawnError: If the system lets nobody start one now; likewise.
        """
        try:
            is_new = self.stages.provide_worker(slot, record)
        except (NurseryDiedError, SpawnError):
            self.books.settle_evicted(record, "its worker could not be started")
            raise
        if is_new and slot.child is not None:
            self.books.emit(events.WorkerStarted(at=self.books.clock(), slot=slot.index, pid=slot.child.pid))

    def _host(self, record: JobRecord) -> messages.Host:
        return messages.Host(
            submission=record.submission,
            checkpoints=record.checkpoints,
            results=record.results,
            epoch=record.epoch,
            restore_from=record.restore_from,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def _make_folder(self, record: JobRecord) -> bool:
        try:
            record.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.books.fail(record, f"its folder for results cannot be made: {error}")
            return False
        record.has_results_folder = True
        return True

    def _evict(self, record: JobRecord, purpose: str) -> None:
        assert record.slot is not None, "only resident jobs are evicted"
        is_told = record.leaving is not None
        record.leaving = purpose
        if not is_told or purpose == "cancel":
            self._send_evict(record, keep=purpose != "cancel")

    def _send_evict(self, record: JobRecord, *, keep: bool) -> None:
        assert record.slot is not None, "only resident jobs are evicted"
        slot = self.slots[record.slot]
        slot.last_report = self.books.clock()  # from now on an answer is waited for
        slot.send(messages.Evict(job=record.name, keep=keep))

    def _lose_worker(self, slot: Slot) -> None:
        assert slot.child is not None, "it lived until now"
        how = self.nursery.reap(slot.child)
        slot.child = None
        self._num_idle_deaths = 0 if self._ledger.resident(slot.index) else self._num_idle_deaths + 1
        if self._num_idle_deaths >= MAX_IDLE_DEATHS:
            raise WorkerDiedError(f"workers of {slot.describe()} keep dying before they get work ({how})")
        is_out_of_memory = self._oom.has_struck() and how.code == -signal.SIGKILL
        self.books.lose_worker(slot, how, is_stalled=slot.is_stalled, is_out_of_memory=is_out_of_memory)
