"""Keeps the books of a run: what workers report becomes ledger entries, events, and news for the scheduler. Free of torch.

The only place where a job's state changes while a run is under way, through the journal: a job that turns out to be no longer
ours ends in ``lost``.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from schedulers import base
from unified import events, messages, news
from unified.budgets import Fault, Limits, Situation, decide, is_of_disk
from unified.errors import ReportError
from unified.failures import accounts_of, clear_suspect, death_text, fault_of_death, situation_of, suspects_of
from unified.job_state import ENDED, JobState
from unified.ledger import JobRecord, Journal, Ledger
from unified.nursery import Exit
from unified.results import seal
from unified.slots import Slot
from unified.stacks import Stacks
from unified.telling import Telling
from unified.turns import Turns

#: In a batch run somebody waits: a failure of its own ends a job, a worker's death only the second one.
BATCH_LIMITS = Limits(max_retries=0, max_infra_failures=1000, is_batch=True)

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Bookkeeper:
    """Changes jobs' states and tells everybody who listens.

    Attributes:
        ledger: The jobs.
        journal: Where changes of state are made.
        telling: Tells the scheduler.
        emit: Told of everything that happens.
        clock: Seconds since the run began.
        limits: What a job may use up before it is given up.
        keeps_cancelled: Leave a cancelled job's files where they are.
        lost: Jobs that turned out to be no longer ours; whoever drives has their members dropped.
        stacks: What is known of jobs that step as one, or do not.
        bans: Pairs of jobs that brought a worker down together and must not meet again.
    """

    ledger: Ledger
    journal: Journal
    telling: Telling
    emit: Callable[[events.Event], None]
    clock: Callable[[], float]
    limits: Limits = BATCH_LIMITS
    keeps_cancelled: bool = False
    lost: list[JobRecord] = field(default_factory=list)
    bans: set[frozenset[str]] = field(default_factory=set)
    stacks: Stacks = field(default_factory=Stacks)
    _turns: Turns = field(default_factory=Turns)

    def note(self, kind: type[base.Event], record: JobRecord, **details: float) -> None:
        """Tell the scheduler of an event."""
        self.telling.note(kind, record, **details)

    def move(self, record: JobRecord, to: JobState, reason: str, **changes: Any) -> bool:
        """Move a job, for a ``reason`` its owner understands; False if it is no longer ours."""
        if not self.journal.move(record, to, reason, **changes):
            self.lost.append(record)
            return False
        record.reason = reason
        return True

    def begin_residency(self, slot: Slot, record: JobRecord) -> bool:
        """Note that a job is taken to ``slot``; False if it is no longer ours."""
        if not self.journal.lease(record, slot.index):
            self.lost.append(record)
            return False
        record.slot, record.is_safe, record.is_hosting, record.reason = slot.index, False, True, None
        record.last_checkpoint = record.resident_since = self.clock()
        return True

    def begin_turn(self, slot: Slot, record: JobRecord) -> None:
        """Note that a job has a turn on ``slot``."""
        now = self.clock()
        slot.is_ending = slot.is_ending and bool(slot.turn)
        record.is_running, slot.turn = True, (*slot.turn, record.name)
        slot.num_in_turn = len(slot.turn) if len(slot.turn) == 1 else max(slot.num_in_turn, len(slot.turn))
        record.waiting_since = now
        if record.first_start is None:
            record.first_start = now
        self._turns.begin(record.name, now, record.step)
        slot.last_report = now
        self.emit(events.TurnStarted(at=now, job=record.name, slot=slot.index, threads=record.num_threads))

    def trained_seconds(self, record: JobRecord) -> float:
        """Return how long a job has trained, the turn under way included."""
        return record.training_seconds + self._turns.seconds(record.name, self.clock())

    def take(self, slot: Slot, report: messages.Report) -> None:
        """Take in one report of the worker on ``slot``; one about a residency that is over is ignored."""
        slot.last_report = self.clock()
        if isinstance(report, messages.Attending):
            slot.attending = None if report.is_over else report.job
            return
        record = self.ledger.get(report.job)
        if record is None or record.slot != slot.index or record.epoch != report.epoch:
            return
        _TAKERS[type(report)](self, slot, record, report)

    def _take_hosted(self, slot: Slot, record: JobRecord, report: messages.Hosted) -> None:
        record.is_hosting, record.step = False, report.step
        if self._turns.is_under_way(record.name):
            record.waiting_since = self.clock()
            self._turns.begin(record.name, record.waiting_since, report.step)
        beside = [other for other in self.ledger.resident(slot.index) if other is not record]
        for other in beside:
            if self._may_know(record, other):
                other.companions.add(record.name)
                record.companions.add(other.name)
        if record.state is JobState.LOADING and not self.move(record, JobState.RUNNING, "trains", steps_done=report.step):
            return
        company = tuple(other.name for other in beside)
        hosted = events.JobHosted(at=self.clock(), job=record.name, slot=slot.index, step=report.step, company=company)
        self.emit(replace(hosted, damaged=report.damaged))

    def _take_progress(self, slot: Slot, record: JobRecord, report: messages.Progress) -> None:
        record.step, record.loss, record.is_safe = report.step, report.loss, False
        self._time_steps(record)
        self.emit(news.steps_done(report, slot.index, self.clock()))

    def _take_epoch(self, slot: Slot, record: JobRecord, report: messages.EpochEnded) -> None:
        row = report.row
        record.metrics, record.step = row, int(row["step"])
        self.emit(news.epoch_done(report, slot.index, self.clock()))

    def _take_stack(self, slot: Slot, record: JobRecord, report: messages.StackFormed | messages.StackRefused) -> None:
        members = [member for name in report.members if (member := self.ledger.get(name)) is not None]
        self.stacks.note(members, report)
        if isinstance(report, messages.StackFormed):
            for member in members:
                others = {other.name for other in members if other is not member and self._may_know(member, other)}
                member.stack_speedup = report.speedup
                member.stacked_with |= others
        self.emit(news.stack(report, slot.index, self.clock()))

    def _may_know(self, record: JobRecord, other: JobRecord) -> bool:
        """Whether a job's owner may be told of another job: in a queue, not of other people's."""
        return self.limits.is_batch or other.submission.spec.user == record.submission.spec.user

    def _take_checkpoint(self, slot: Slot, record: JobRecord, report: messages.Checkpointed) -> None:
        if report.path.parent != record.checkpoints:  # it would be read, and removed, with our rights
            raise ReportError(f"job {record.name!r}: {report.path} is not in its folder of checkpoints")
        if not self.journal.checkpointed(record, report):
            self.lost.append(record)
            return
        record.is_safe, record.checkpoint_failed, record.num_infra_failures = True, False, 0
        record.last_checkpoint = self.clock() - report.seconds
        record.least_checkpoint_seconds, record.checkpoint_write_seconds = report.least_seconds, report.seconds
        self.emit(news.checkpointed(report, self.clock()))
        if record.suspected_beside and len(self.ledger.resident(slot.index)) == 1:
            clear_suspect(record, self.bans, self.journal)

    def _take_no_checkpoint(self, slot: Slot, record: JobRecord, report: messages.CheckpointFailed) -> None:
        logger.warning("job %s: no checkpoint could be written: %s", record.name, report.reason)
        record.checkpoint_failed = True
        if report.is_staying and record.leaving != "cancel":
            record.leaving, record.returns_at_once = None, False
            if record.state is JobState.PAUSING:
                self.move(record, JobState.RUNNING, f"could not be paused: {report.reason}")
        self.emit(news.checkpoint_refused(report, self.clock()))

    def _take_turn(self, slot: Slot, record: JobRecord, report: messages.TurnEnded) -> None:
        record.step, record.is_returning, record.is_safe = report.step, report.done, False
        record.measured_bytes = max(record.measured_bytes, report.peak_bytes)
        record.peak_bytes = record.demand.peak_bytes
        self.end_turn_of(slot, record, report.seconds, is_preempted=report.is_preempted)

    def end_turn_of(self, slot: Slot, record: JobRecord, seconds: float | None = None, *, is_preempted: bool = False) -> None:
        """Note the end of a turn, if there was one: as its worker told after ``seconds``, or None if the job or worker left."""
        if not record.is_running:
            return
        is_cut = is_preempted or seconds is None
        record.num_preemptions += is_preempted
        self._time_steps(record)
        elapsed, steps = self._turns.end(record.name, self.clock(), record.step)
        lasted = elapsed if seconds is None else seconds
        record.is_running, record.waiting_since = False, self.clock()
        part = lasted / slot.num_in_turn
        slot.forget(record.name)
        record.training_seconds += lasted
        record.slot_seconds += part
        self.note(base.TurnCut if is_cut else base.TurnDone, record, steps=steps, seconds=part)
        self.emit(
            events.TurnEnded(
                at=self.clock(),
                job=record.name,
                slot=slot.index,
                steps=steps,
                seconds=lasted,
                step=record.step,
                is_preempted=is_preempted,
            )
        )

    def _time_steps(self, record: JobRecord) -> None:
        record.step_times.add(*self._turns.interval(record.name, self.clock(), record.step))
        record.step_seconds = record.step_times.typical or record.step_seconds

    def _take_evicted(self, slot: Slot, record: JobRecord, report: messages.Evicted) -> None:
        record.step = report.step
        self.end_turn_of(slot, record)
        self.settle_evicted(record)

    def settle_evicted(self, record: JobRecord, reason: str = "") -> None:
        """Let a job that has left its slot go where it was to go."""
        reason = reason or ("its slot was closed down" if record.leaving == "drain" else "makes room on its slot")
        returns_at_once = record.returns_at_once
        record.leave_slot()
        if record.state is JobState.CANCELLING:
            self.set_cancelled(record)
        elif record.state is JobState.PAUSING and returns_at_once:
            self.move(record, JobState.PAUSED, "paused on request")
            self.move(record, JobState.QUEUED, "resumed")
        elif record.state is JobState.PAUSING:
            self.set_aside(record, record.reason or "paused on request")
        elif record.state in {JobState.LOADING, JobState.RUNNING}:
            self.move(record, JobState.QUEUED, reason)

    def set_aside(self, record: JobRecord, reason: str = "paused on request") -> None:
        """Note that a job is paused."""
        if self.move(record, JobState.PAUSED, reason):
            self.note(base.Paused, record)
            self.emit(events.JobPaused(at=self.clock(), job=record.name, step=record.step))

    def set_waiting(self, record: JobRecord) -> None:
        """Note that a paused job waits for its turn again."""
        if self.move(record, JobState.QUEUED, "resumed"):
            self.note(base.Resumed, record)
            self.emit(events.JobResumed(at=self.clock(), job=record.name, step=record.step))

    def set_cancelled(self, record: JobRecord) -> None:
        """Note that a job is cancelled; unless a queue keeps them, nothing is left of its files."""
        if not self.move(record, JobState.CANCELLED, "cancelled on request"):
            return
        record.end_time = self.clock()
        if not self.keeps_cancelled:
            shutil.rmtree(record.checkpoints, ignore_errors=True)
            if record.has_results_folder:
                shutil.rmtree(record.results, ignore_errors=True)  # ours: it was not there before the run
        self.note(base.Cancelled, record)
        self.emit(events.JobCancelled(at=self.clock(), job=record.name))

    def _finish(self, slot: Slot, record: JobRecord, returned: messages.Returned) -> None:
        if record.state is JobState.CANCELLING:
            self.settle_evicted(record)  # too late to be published
            return
        record.end_time, record.metrics = self.clock(), returned.metrics
        try:
            seal(record, returned, scheduler=self.telling.name, device=slot.device)
            is_ours = self.journal.publish(record)
        except OSError as error:
            situation = situation_of(record, Fault.DISK if is_of_disk(error) else Fault.OWN, was_alone=self._is_alone_on(slot))
            self._settle_failure(record, situation, f"its result could not be sealed: {error}")
            return
        record.leave_slot()
        if not is_ours:
            self.lost.append(record)
            return
        if not self.keeps_cancelled:
            shutil.rmtree(record.checkpoints, ignore_errors=True)
        self.note(base.Finished, record)
        self.tell_finished(record)

    def tell_finished(self, record: JobRecord) -> None:
        """Tell that a job's result is on disk and verified."""
        self.emit(news.finished(record, self.clock()))

    def fail(self, record: JobRecord, reason: str, *, to: JobState = JobState.FAILED, log: str = "", **changes: Any) -> None:
        """Note that a job has failed for good, for ``reason``."""
        record.leave_slot()
        record.end_time = self.clock()
        if not self.move(record, to, reason, **changes):
            return
        path = record.results / "job.log"
        self.note(base.Failed, record)
        where = str(path) if path.is_file() else None
        self.emit(events.JobFailed(at=record.end_time, job=record.name, reason=reason, log=where, traceback=log))

    def _take_failure(self, slot: Slot, record: JobRecord, report: messages.Failed) -> None:
        record.step = report.step
        self.end_turn_of(slot, record)
        signature = f"{report.fault} at step {report.step}: {report.reason[:200]}"
        situation = situation_of(record, report.fault, was_alone=self._is_alone_on(slot), signature=signature)
        self._settle_failure(record, situation, report.reason, report.log)

    def _settle_failure(self, record: JobRecord, situation: Situation, reason: str, log: str = "") -> None:
        """Carry out what follows a failure of a resident job."""
        if record.state is JobState.CANCELLING:
            self.settle_evicted(record)
            return
        if situation.fault is Fault.DISK and not self.limits.is_batch:
            self._await_room(record, reason)
            return
        verdict = decide(situation, self._limits_of(record), jitter=random.random())
        accounts = accounts_of(verdict)
        for name, value in accounts.items():
            setattr(record, name, value)
        if verdict.state in ENDED:
            text = reason if self.limits.is_batch else f"{reason}; {verdict.why}"
            self.fail(record, text, to=verdict.state, log=log, **accounts)
            return
        is_pausing, returns_at_once = record.state is JobState.PAUSING, record.returns_at_once
        record.leave_slot()
        text = f"{reason}; {verdict.why}"
        delay = {"delay_seconds": verdict.delay_seconds} if verdict.state is JobState.RETRY_WAIT and not is_pausing else {}
        if not self.move(record, JobState.PAUSED if is_pausing else verdict.state, text, **accounts, **delay):
            return
        self.note(base.WorkerLost, record)
        set_back = events.JobSetBack(at=self.clock(), job=record.name, reason=text, state=str(record.state), traceback=log)
        self.emit(set_back)
        if is_pausing and returns_at_once:
            self.set_waiting(record)

    def _await_room(self, record: JobRecord, reason: str) -> None:
        """A disk took no result: the job waits for room, and then goes on from its last checkpoint."""
        record.leave_slot()
        if record.state is JobState.PAUSING or self.move(record, JobState.PAUSING, reason):
            self.set_aside(record, f"disk-full: {reason}")

    def _limits_of(self, record: JobRecord) -> Limits:
        return self.limits if self.limits.is_batch else replace(self.limits, max_retries=record.submission.spec.max_retries)

    def lose_worker(self, slot: Slot, how: Exit, *, is_stalled: bool, is_out_of_memory: bool) -> None:
        """A worker died: its jobs go on from their checkpoints; whose fault it was decides who runs alone first."""
        lost = self.ledger.resident(slot.index)
        reason = "no step finished for too long" if is_stalled else str(how)
        self.emit(events.WorkerLost(at=self.clock(), slot=slot.index, reason=reason, jobs=tuple(r.name for r in lost)))
        blamed, slot.attending = slot.attending, None
        suspects, was_alone = suspects_of(lost, blamed), self._is_alone_on(slot)
        theirs, others = fault_of_death(
            how, is_stalled=is_stalled, is_out_of_memory=is_out_of_memory, is_batch=self.limits.is_batch
        )
        is_shared = len(suspects) > 1
        if is_shared and theirs is not Fault.KILLED:
            self.stacks.refuse(suspects, None)
        for record in lost:
            fault = theirs if record in suspects else others
            self.end_turn_of(slot, record)
            if record.state is JobState.PAUSING:
                self.settle_evicted(record)  # its last checkpoint is what it was to leave with
                continue
            if fault in {Fault.CRASH, Fault.STALL}:
                record.suspected_beside |= {other.name for other in lost if other is not record}
                record.shared_turns |= {other.name for other in suspects if is_shared}
            situation = situation_of(record, fault, was_alone=was_alone, is_shared=is_shared)
            self._settle_failure(record, situation, death_text(record, fault, reason))

    def _is_alone_on(self, slot: Slot) -> bool:
        return len(self.ledger.resident(slot.index)) == 1


_TAKERS: dict[type[messages.Report], Callable[[Bookkeeper, Slot, JobRecord, Any], None]] = {
    messages.Hosted: Bookkeeper._take_hosted,
    messages.Progress: Bookkeeper._take_progress,
    messages.EpochEnded: Bookkeeper._take_epoch,
    messages.TurnEnded: Bookkeeper._take_turn,
    messages.StackFormed: Bookkeeper._take_stack,
    messages.StackRefused: Bookkeeper._take_stack,
    messages.Checkpointed: Bookkeeper._take_checkpoint,
    messages.CheckpointFailed: Bookkeeper._take_no_checkpoint,
    messages.Evicted: Bookkeeper._take_evicted,
    messages.Returned: Bookkeeper._finish,
    messages.Failed: Bookkeeper._take_failure,
}
