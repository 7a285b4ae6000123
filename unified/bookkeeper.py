"""Keeps the books of a run: what workers report becomes ledger entries, events, and news for the scheduler. Free of torch.

The only place where a job's state changes while a run is under way.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from schedulers import base
from unified import events, messages
from unified.job import JobState
from unified.ledger import JobRecord, Ledger
from unified.results import seal, timing_of
from unified.slots import Slot

MAX_DEATHS = 2

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Bookkeeper:
    """Changes jobs' states and tells everybody who listens.

    Attributes:
        ledger: The jobs.
        scheduler: Told of events, if it has ``on_event``.
        scheduler_name: For the results.
        emit: Told of everything that happens.
        clock: Seconds since the run began.
    """

    ledger: Ledger
    scheduler: base.Scheduler
    scheduler_name: str
    emit: Callable[[events.Event], None]
    clock: Callable[[], float]
    _turn_starts: dict[str, float] = field(default_factory=dict)

    def note(self, kind: type[base.Event], record: JobRecord, **details: float) -> None:
        """Tell the scheduler of an event, if it listens."""
        if isinstance(self.scheduler, base.Observes):
            self.scheduler.on_event(kind(unit_id=record.name, sequence=record.next_event(), **details))

    def begin_turn(self, slot: Slot, record: JobRecord) -> None:
        """Note that a job has a turn on ``slot``."""
        now = self.clock()
        record.is_running, slot.running = True, record.name
        if record.state is JobState.QUEUED:
            record.move(JobState.RUNNING)
        if record.first_start is None:
            record.first_start = now
        self._turn_starts[record.name] = now
        self.emit(events.TurnStarted(at=now, job=record.name, slot=slot.index, threads=record.num_threads))

    def take(self, slot: Slot, report: messages.Report) -> None:
        """Take in one report of the worker on ``slot``."""
        record = self.ledger[report.job]
        now = self.clock()
        match report:
            case messages.Hosted():
                record.is_hosting, record.step = False, report.step
                beside = [other for other in self.ledger.resident(slot.index) if other is not record]
                for other in beside:
                    other.companions.add(record.name)
                    record.companions.add(other.name)
            case messages.Progress():
                record.step, record.is_safe = report.step, False
                self.emit(
                    events.StepsDone(
                        at=now,
                        job=record.name,
                        slot=slot.index,
                        epoch=report.epoch,
                        step=report.step,
                        loss=report.loss,
                    )
                )
            case messages.EpochEnded():
                self._take_epoch(slot, record, report)
            case messages.TurnEnded():
                self._take_turn(slot, record, report)
            case messages.Checkpointed():
                record.is_safe, record.checkpoint_failed = True, False
            case messages.CheckpointFailed():
                self._take_no_checkpoint(record, report)
            case messages.Attending():
                slot.attending = None if report.is_over else record.name
            case messages.Evicted():
                self._take_evicted(slot, record, report.step)
            case messages.Returned():
                self._finish(slot, record, report)
            case messages.Failed():
                record.step = report.step
                self._end_turn(slot, record)
                self.fail(record, report.reason)

    def _take_epoch(self, slot: Slot, record: JobRecord, report: messages.EpochEnded) -> None:
        row = report.row
        record.metrics, record.step = row, int(row["step"])
        self.emit(
            events.EpochDone(
                at=self.clock(),
                job=record.name,
                slot=slot.index,
                epoch=int(row["epoch"]),
                step=record.step,
                metrics=row,
            )
        )

    def _take_no_checkpoint(self, record: JobRecord, report: messages.CheckpointFailed) -> None:
        logger.warning("job %s: no checkpoint could be written: %s", record.name, report.reason)
        record.checkpoint_failed = True
        if report.is_staying and record.leaving != "cancel":
            record.leaving = None

    def _take_turn(self, slot: Slot, record: JobRecord, report: messages.TurnEnded) -> None:
        record.step, record.is_returning, record.is_safe = report.step, report.done, False
        record.peak_bytes = max(record.peak_bytes, report.peak_bytes)
        if report.steps:
            record.step_seconds = report.seconds / report.steps
        self._end_turn(slot, record, report.steps, report.seconds)
        self.note(base.TurnDone, record, steps=report.steps, seconds=report.seconds)

    def _end_turn(self, slot: Slot, record: JobRecord, steps: int = 0, seconds: float | None = None) -> None:
        """Note the end of a turn, if there was one."""
        if not record.is_running:
            return
        began = self._turn_starts.pop(record.name)
        lasted = self.clock() - began if seconds is None else seconds
        record.is_running, slot.running = False, None
        record.training_seconds += lasted
        self.emit(
            events.TurnEnded(
                at=self.clock(),
                job=record.name,
                slot=slot.index,
                steps=steps,
                seconds=lasted,
                step=record.step,
            )
        )

    def _take_evicted(self, slot: Slot, record: JobRecord, step: int) -> None:
        steps, record.step = step - record.step, step
        self._end_turn(slot, record, max(0, steps))
        self.settle_evicted(record)

    def settle_evicted(self, record: JobRecord) -> None:
        """Let a job that has left its slot go where it was to go."""
        purpose = record.leaving
        record.leave_slot()
        if purpose == "cancel":
            self.set_cancelled(record)
        elif purpose == "pause":
            self.set_aside(record)
        elif record.state is JobState.RUNNING:
            record.move(JobState.QUEUED)

    def set_aside(self, record: JobRecord) -> None:
        """Note that a job is paused."""
        record.move(JobState.PAUSED)
        self.note(base.Paused, record)
        self.emit(events.JobPaused(at=self.clock(), job=record.name, step=record.step))

    def set_waiting(self, record: JobRecord) -> None:
        """Note that a paused job waits for its turn again."""
        record.move(JobState.QUEUED)
        self.note(base.Resumed, record)
        self.emit(events.JobResumed(at=self.clock(), job=record.name, step=record.step))

    def set_cancelled(self, record: JobRecord) -> None:
        """Note that a job is cancelled, and keep nothing of it."""
        record.move(JobState.CANCELLED)
        record.end_time = self.clock()
        shutil.rmtree(record.checkpoints, ignore_errors=True)
        if record.has_results_folder:
            shutil.rmtree(record.results, ignore_errors=True)  # ours: it was not there before the run
        self.note(base.Cancelled, record)
        self.emit(events.JobCancelled(at=self.clock(), job=record.name))

    def _finish(self, slot: Slot, record: JobRecord, returned: messages.Returned) -> None:
        record.end_time, record.metrics = self.clock(), returned.metrics
        try:
            seal(record, returned, scheduler=self.scheduler_name, device=slot.device)
        except OSError as error:
            self.fail(record, f"its result could not be sealed: {error}")
            return
        record.leave_slot()
        record.move(JobState.FINISHED)
        shutil.rmtree(record.checkpoints, ignore_errors=True)
        self.note(base.Finished, record)
        self.tell_finished(record)

    def tell_finished(self, record: JobRecord) -> None:
        """Tell that a job's result is on disk and verified."""
        timing = timing_of(record)
        self.emit(
            events.JobFinished(
                at=self.clock(),
                job=record.name,
                folder=str(record.results),
                metrics=record.metrics,
                waiting_seconds=timing.waiting,
                training_seconds=timing.training,
                completion_seconds=timing.completion,
                peak_bytes=record.peak_bytes,
            )
        )

    def fail(self, record: JobRecord, reason: str) -> None:
        """Note that a job failed, for ``reason``."""
        record.leave_slot()
        record.move(JobState.FAILED)
        record.reason, record.end_time = reason, self.clock()
        log = record.results / "job.log"
        self.note(base.Failed, record)
        self.emit(events.JobFailed(at=record.end_time, job=record.name, reason=reason, log=str(log) if log.is_file() else None))

    def lose_worker(self, slot: Slot, reason: str) -> None:
        """A worker died: its jobs go back to the queue, the one it was busy with for a limited number of times."""
        lost = self.ledger.resident(slot.index)
        self.emit(events.WorkerLost(at=self.clock(), slot=slot.index, reason=reason, jobs=tuple(r.name for r in lost)))
        blamed, slot.attending = slot.attending, None
        for record in lost:
            record.num_deaths += record.name == blamed if blamed else record.is_running or record.is_hosting
        for record in lost:
            self._end_turn(slot, record)
            self.note(base.WorkerLost, record)
            if record.num_deaths >= MAX_DEATHS and record.leaving is None:
                self.fail(record, f"its worker died {record.num_deaths} times while it ran ({reason})")
            else:
                self.settle_evicted(record)
