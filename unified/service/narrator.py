"""Tells each job's story: events become lines of its log, rows of its metrics, and turns of the timeline. Free of torch."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unified import events
from unified.ledger import Ledger
from unified.quantities import bytes_text, metrics_text, plural, seconds_text
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.service.job_files import DeathDetails, JobFiles
from unified.service.line_files import LineFiles
from unified.service.tensorboard_files import TensorboardFiles

MAX_TIMELINE_BYTES = 8 << 20
METRIC_SECONDS = 1.0  #: a job's loss is written at most so often

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Narrator:
    """A listener that writes files; only :meth:`flush` touches the disk.

    Attributes:
        root: Whose jobs.
        store: To look up what a dead letter tells.
        ledger: The jobs on slots.
        files: The jobs' files.
        tensorboard: Where TensorBoard's files go, or None.
        started: When the run's clock was 0, in seconds since 1970.
        checkpoint_seconds: The interval that is wanted.
    """

    root: Root
    store: JobStore
    ledger: Ledger
    files: JobFiles
    tensorboard: TensorboardFiles | None
    started: float
    checkpoint_seconds: float
    _timeline: LineFiles = field(default_factory=LineFiles)
    _turns: dict[str, tuple[float, int]] = field(default_factory=dict)
    _written: dict[str, float] = field(default_factory=dict)
    _company: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, event: events.Event) -> None:
        """Take note of an event."""
        tell = _TELLERS.get(type(event))
        if tell is not None:
            tell(self, event)

    def flush(self) -> None:
        """Bring what was told to the disk."""
        self.files.flush()
        self._timeline.flush()
        if self.tensorboard is not None:
            self.tensorboard.flush()

    def trim_timeline(self) -> None:
        """Forget the older half of a timeline that has grown large."""
        path = self.root.timeline
        if path.is_file() and path.stat().st_size > MAX_TIMELINE_BYTES:
            lines = path.read_bytes().splitlines(keepends=True)
            partial = path.with_name("timeline.jsonl.partial")
            partial.write_bytes(b"".join(lines[len(lines) // 2 :]))
            partial.replace(path)

    def hosted(self, event: events.JobHosted) -> None:
        """A job is on a slot."""
        beside = f", beside {plural(len(event.company), 'other')}" if event.company else ""  # whose they are is not told
        since = f" from step {event.step}" if event.step else ""
        self.files.log(event.job, f"is on slot {event.slot}{beside}; trains{since}")
        for name in event.damaged:
            self.files.log(event.job, f"checkpoint {name} is damaged and was passed over")
        if event.damaged and not event.step:
            self.files.log(event.job, "NO SOUND CHECKPOINT IS LEFT: it begins from its beginning")
        self._company[event.job] = event.company
        try:
            self.files.truncate(event.job, event.step)
            if self.tensorboard is not None:
                self.tensorboard.truncate(event.job, event.step)
        except OSError as error:
            logger.warning("job %s: its metrics may tell steps twice: %s", event.job, error)

    def turn_started(self, event: events.TurnStarted) -> None:
        """A turn began."""
        self._turns[event.job] = (self.started + event.at, event.slot)

    def turn_ended(self, event: events.TurnEnded) -> None:
        """A turn ended."""
        start, slot = self._turns.pop(event.job, (self.started + event.at - event.seconds, event.slot))
        record = self.ledger.get(event.job)
        user = record.submission.spec.user if record is not None else None
        turn = {
            "job": event.job,
            "slot": slot,
            "start": start,
            "end": self.started + event.at,
            "steps": event.steps,
            "user": user,
        }
        self._timeline.append(self.root.timeline, json.dumps(turn | {"user": user}))

    def stepped(self, event: events.StepsDone) -> None:
        """Steps were done: at most a row a second."""
        now = time.monotonic()
        if now - self._written.get(event.job, -METRIC_SECONDS) < METRIC_SECONDS:
            return
        self._written[event.job] = now
        self._row(event.job, step=event.step, epoch=event.epoch, split="train", loss=event.loss, slot=event.slot)

    def epoch_done(self, event: events.EpochDone) -> None:
        """An epoch ended: a row for training and one for the test."""
        row = event.metrics
        common = {"step": event.step, "epoch": event.epoch, "slot": event.slot, "lr": row.get("lr")}
        speed = {"samples_per_second": row.get("samples_per_second")}
        self._row(event.job, split="train", loss=row.get("train_loss"), **common, **speed)
        rest = {"epoch", "step", "lr", "train_loss", "test_loss", "seconds", "samples_per_second"}
        metrics = {name: value for name, value in row.items() if name not in rest}
        if "test_loss" in row:
            self._row(event.job, split="test", loss=row["test_loss"], metrics=metrics, **common)
        shown = {name: row[name] for name in ("train_loss", "test_loss", *metrics) if name in row}
        self.files.log(event.job, f"epoch {event.epoch}: {metrics_text(shown)}")

    def _row(self, job: str, **content: Any) -> None:
        record = self.ledger.get(job)
        row = {"time": time.time(), "metrics": {}, "lr": None, "samples_per_second": None} | content
        row["step_seconds"] = None if record is None else record.step_seconds
        row["memory_bytes"] = None if record is None else record.peak_bytes
        row["company"] = list(self._company.get(job, ()))
        self.files.metric(job, row)
        if self.tensorboard is not None:
            self.tensorboard.metric(job, row)

    def checkpointed(self, event: events.JobCheckpointed) -> None:
        """A checkpoint is current."""
        size, cost = bytes_text(event.num_bytes), seconds_text(event.seconds)
        rare = f"; at most every {seconds_text(event.least_seconds)}" if event.least_seconds > self.checkpoint_seconds else ""
        self.files.log(event.job, f"checkpoint at step {event.step} ({size}, {cost}{rare})")

    def refused(self, event: events.CheckpointRefused) -> None:
        """No checkpoint could be written."""
        self.files.log(event.job, f"NO CHECKPOINT could be written: {event.reason}")

    def set_back(self, event: events.JobSetBack) -> None:
        """A failure cost the job its slot."""
        self.files.log(event.job, f"{event.state}: {event.reason}")
        if event.traceback:
            self.files.log(event.job, event.traceback)
        self._leave(event.job)

    def failed(self, event: events.JobFailed) -> None:
        """A job failed for good; its dead letter says with what."""
        self.files.log(event.job, f"failed: {event.reason}")
        if event.traceback:
            self.files.log(event.job, event.traceback)
        row = self.store.get(event.job)
        saved = self.store.checkpoints(event.job)
        details = DeathDetails(
            traceback=event.traceback,
            exit=event.reason,
            neighbours=self._company.get(event.job, ()),
            checkpoint=saved[0].path if saved else None,
        )
        try:
            self.files.write_dead_letter(row, event.reason, details)
        except OSError as error:
            logger.warning("job %s: its dead letter could not be written: %s", event.job, error)
        self._leave(event.job)

    def finished(self, event: events.JobFinished) -> None:
        """A job is done."""
        self.files.log(
            event.job,
            f"finished: {metrics_text({name: event.metrics[name] for name in event.metrics if 'loss' in name})}; "
            f"complete after {seconds_text(event.completion_seconds)}, trained {seconds_text(event.training_seconds)}",
        )
        self._leave(event.job)

    def stack_formed(self, event: events.StackFormed) -> None:
        """Jobs step as one."""
        for name in event.members:  # whose the others are is not told
            others, speedup = plural(len(event.members) - 1, "other job"), f"{event.speedup:.1f} times faster than side by side"
            self.files.log(name, f"steps as one with {others} like it, {speedup}")

    def at_risk(self, event: events.DeadlineAtRisk) -> None:
        """A job will be late."""
        self.files.log(event.job, f"WILL MISS ITS DEADLINE by {seconds_text(event.predicted - event.deadline)} or more")

    def paused(self, event: events.JobPaused) -> None:
        """A job is set aside."""
        self.files.log(event.job, f"paused at step {event.step}")
        self._leave(event.job)

    def cancelled(self, event: events.JobCancelled) -> None:
        """A job was cancelled."""
        self.files.log(event.job, "cancelled")
        self._leave(event.job)

    def _leave(self, job: str) -> None:
        for kept in (self._turns, self._written, self._company):
            kept.pop(job, None)
        self.files.close(job)
        if self.tensorboard is not None:
            self.tensorboard.close(job)


_TELLERS: dict[type[events.Event], Callable[[Narrator, Any], None]] = {
    events.JobHosted: Narrator.hosted,
    events.TurnStarted: Narrator.turn_started,
    events.TurnEnded: Narrator.turn_ended,
    events.StepsDone: Narrator.stepped,
    events.EpochDone: Narrator.epoch_done,
    events.JobCheckpointed: Narrator.checkpointed,
    events.CheckpointRefused: Narrator.refused,
    events.JobSetBack: Narrator.set_back,
    events.JobFailed: Narrator.failed,
    events.JobFinished: Narrator.finished,
    events.JobPaused: Narrator.paused,
    events.DeadlineAtRisk: Narrator.at_risk,
    events.StackFormed: Narrator.stack_formed,
    events.JobCancelled: Narrator.cancelled,
}
