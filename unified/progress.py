"""How far one job has come, followed through its events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unified.accounting import slowdown
from unified.events import (
    EpochDone,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobFinished,
    JobPaused,
    JobResumed,
    JobSubmitted,
    StackFormed,
    StepsDone,
    TurnEnded,
    TurnStarted,
)
from unified.job_state import JobState

#: Columns of ``metrics.jsonl`` that describe the row itself, not the model.
BOOKKEEPING = frozenset({"epoch", "step", "lr", "seconds", "samples_per_second"})


def shown_metrics(row: dict[str, float]) -> dict[str, float]:
    """Return the part of a row of metrics that tells of the model: its own metrics first, then the losses.

    >>> shown_metrics({"epoch": 1, "lr": 0.1, "train_loss": 0.4, "test_loss": 0.5, "accuracy": 0.9})
    {'accuracy': 0.9, 'test_loss': 0.5, 'train_loss': 0.4}
    """
    telling = {name: value for name, value in row.items() if name not in BOOKKEEPING}
    losses = {name: telling.pop(name) for name in ("test_loss", "train_loss") if name in telling}
    return telling | losses


@dataclass(slots=True, kw_only=True)
class JobProgress:
    """What is known of one job by now; times are seconds, ``*_at`` since the run began.

    Attributes:
        epoch: The epoch it is in, or was last in, from 1; 0 before the first.
        in_turn_since: When its present turn began; None between turns.
        finished: The engine's own last word on a finished job: its times, metrics and peak.
        stack: With whom it steps as one just now, itself included, the leader first; empty if it does not.
        stacked_with: With whom it ever did.
        stack_speedup: How many times faster that was than side by side, when last measured.
        sweep: The sweep that it is a member of, if it is one.
        values: What it got from it, by field.
    """

    name: str
    user: str | None = None
    state: JobState = JobState.QUEUED
    reason: str | None = None
    log: str | None = None
    folder: str | None = None
    slots: list[int] = field(default_factory=list)
    threads: int | None = None
    num_parameters: int = 0
    num_epochs: int = 0
    num_steps: int = 0
    first_step: int = 0
    epoch: int = 0
    epochs_done: int = 0
    step: int = 0
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    estimated_peak_bytes: int = 0
    submitted_at: float = 0.0
    started_at: float | None = None
    in_turn_since: float | None = None
    ended_at: float | None = None
    turns: int = 0
    turn_seconds: float = 0.0
    finished: JobFinished | None = None
    stack: tuple[str, ...] = ()
    stacked_with: set[str] = field(default_factory=set)
    stack_speedup: float | None = None
    sweep: str | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def training_seconds(self) -> float:
        """Seconds in turns."""
        return self.finished.training_seconds if self.finished else self.turn_seconds

    @property
    def completion_seconds(self) -> float | None:
        """Seconds from submission to the end; None while there is none."""
        if self.finished:
            return self.finished.completion_seconds
        return None if self.ended_at is None else self.ended_at - self.submitted_at

    @property
    def slowdown(self) -> float | None:
        """See :func:`unified.accounting.slowdown`; None of a job that did not finish."""
        return slowdown(self.completion_seconds, self.training_seconds) if self.finished else None

    @property
    def peak_bytes(self) -> int | None:
        """Most memory it was seen to use."""
        return self.finished.peak_bytes if self.finished else None

    def waiting_seconds(self, now: float) -> float:
        """Seconds from submission to its first turn; to its end or ``now`` if it had none."""
        if self.finished:
            return self.finished.waiting_seconds
        ends = (self.started_at, self.ended_at, now)
        return next(end for end in ends if end is not None) - self.submitted_at

    def remaining_seconds(self, now: float) -> float | None:
        """Seconds to its last step at the pace since its first turn, pauses included; None before."""
        done = self.step - self.first_step
        if self.started_at is None or done <= 0:
            return None
        return (self.num_steps - self.step) * (now - self.started_at) / done

    def follow(self, event: JobEvent) -> None:
        """Take note of an event of this job."""
        action = _ACTIONS.get(type(event))
        if action is not None:
            action(self, event)

    def join_stack(self, event: StackFormed) -> None:
        """Take note that the job steps as one with others from now on."""
        self.stack, self.stack_speedup = event.members, event.speedup
        self.stacked_with |= {*event.members} - {self.name}

    def lose_worker(self, at: float) -> None:
        """Take note that the worker it was on died at ``at``: it waits for another."""
        _stop_turn(self, at)
        self.state = JobState.QUEUED

    def to_json(self, now: float) -> dict[str, Any]:
        """Return the job's entry in ``summary.json``."""
        return {
            "user": self.user,
            "sweep": None if self.sweep is None else {"name": self.sweep, "values": self.values},
            "state": str(self.state),
            "reason": self.reason,
            "log": self.log,
            "folder": self.folder,
            "slots": sorted(self.slots),
            "threads": self.threads,
            "epochs": self.epochs_done,
            "steps": self.step,
            "planned_epochs": self.num_epochs,
            "planned_steps": self.num_steps,
            "turns": self.turns,
            "submitted_at": self.submitted_at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "completion_seconds": self.completion_seconds,
            "slowdown": self.slowdown,
            "waiting_seconds": self.waiting_seconds(now),
            "training_seconds": self.training_seconds,
            "num_parameters": self.num_parameters,
            "peak_bytes": self.peak_bytes,
            "estimated_peak_bytes": self.estimated_peak_bytes,
            "stacked_with": sorted(self.stacked_with),
            "stack_speedup": self.stack_speedup,
            "metrics": self.metrics,
        }


def _submitted(job: JobProgress, event: JobSubmitted) -> None:
    job.user, job.submitted_at = event.user, event.at
    job.sweep, job.values = event.sweep, event.values
    job.num_parameters, job.estimated_peak_bytes = event.num_parameters, event.peak_bytes
    job.num_epochs, job.num_steps = event.num_epochs, event.num_steps
    job.first_step = job.step = event.first_step
    job.epoch = job.epochs_done = event.first_step // max(1, event.steps_per_epoch)


def _turn_started(job: JobProgress, event: TurnStarted) -> None:
    job.state, job.in_turn_since = JobState.RUNNING, event.at
    job.turns += 1
    if job.started_at is None:
        job.started_at = event.at
    if event.slot not in job.slots:
        job.slots.append(event.slot)
    if event.threads is not None:
        job.threads = event.threads


def _steps_done(job: JobProgress, event: StepsDone) -> None:
    job.epoch, job.step, job.loss = event.epoch, event.step, event.loss


def _epoch_done(job: JobProgress, event: EpochDone) -> None:
    job.epoch = job.epochs_done = event.epoch
    job.step = event.step
    job.metrics = shown_metrics(event.metrics)
    job.loss = event.metrics.get("train_loss", job.loss)


def _turn_ended(job: JobProgress, event: TurnEnded) -> None:
    job.turn_seconds += event.seconds
    job.in_turn_since, job.stack = None, ()
    if event.step is not None:
        job.step = event.step


def _paused(job: JobProgress, event: JobPaused) -> None:
    _stop_turn(job, event.at)
    job.state, job.step = JobState.PAUSED, event.step


def _resumed(job: JobProgress, event: JobResumed) -> None:
    job.state, job.step = JobState.QUEUED, event.step


def _finished(job: JobProgress, event: JobFinished) -> None:
    _end(job, event.at, JobState.FINISHED)
    job.finished, job.folder = event, event.folder
    job.metrics = shown_metrics(event.metrics) or job.metrics


def _failed(job: JobProgress, event: JobFailed) -> None:
    _end(job, event.at, JobState.FAILED)
    job.reason, job.log = event.reason, event.log


def _cancelled(job: JobProgress, event: JobCancelled) -> None:
    _end(job, event.at, JobState.CANCELLED)


def _end(job: JobProgress, at: float, state: JobState) -> None:
    _stop_turn(job, at)
    job.state, job.ended_at = state, at


def _stop_turn(job: JobProgress, at: float) -> None:
    """Close a turn that nobody reported the end of: its worker or its job failed in the middle."""
    job.stack = ()
    if job.in_turn_since is not None:
        job.turn_seconds += at - job.in_turn_since
        job.in_turn_since = None


_ACTIONS: dict[type[JobEvent], Callable[[JobProgress, Any], None]] = {
    JobSubmitted: _submitted,
    TurnStarted: _turn_started,
    StepsDone: _steps_done,
    EpochDone: _epoch_done,
    TurnEnded: _turn_ended,
    JobPaused: _paused,
    JobResumed: _resumed,
    JobFinished: _finished,
    JobFailed: _failed,
    JobCancelled: _cancelled,
}
