"""What happened during a run, as frozen records: the engine emits them, listeners turn them into output.

Times are seconds since the run began, on the engine's monotonic clock. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at ``at`` seconds since the run began."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The plan is made. ``slots`` are short texts such as ``"slot 0: cpu, 1 thread"``; ``plan`` says why."""

    slots: tuple[str, ...]
    scheduler: str
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent(Event):
    """Something that happened to the job named ``job`` (names are unique within a run)."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(JobEvent):
    """A job was accepted; ``num_epochs`` and ``num_steps`` are its planned length, ``user`` its owner.

    ``first_step`` is where its checkpoint stands when a run goes on after ``--resume``. ``sweep`` names the sweep that it is a
    member of, ``values`` is what it got from it, by field.
    """

    user: str | None
    num_epochs: int
    num_steps: int
    steps_per_epoch: int
    num_parameters: int
    peak_bytes: int
    first_step: int = 0
    sweep: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted(JobEvent):
    """The job began to train on slot ``slot`` with ``threads`` intra-op threads (``None`` on a GPU)."""

    slot: int
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsDone(JobEvent):
    """Progress inside a turn, a few times a second at most. ``step`` counts from the job's first step."""

    slot: int
    epoch: int
    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone(JobEvent):
    """An epoch ended. ``metrics`` is its row of ``metrics.jsonl``: train_loss, test_loss, accuracy, lr, …."""

    slot: int
    epoch: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded(JobEvent):
    """The job's turn on ``slot`` ended after ``steps`` steps and ``seconds`` seconds, at step ``step``.

    ``is_preempted`` if it was ended early, for the sake of a more urgent job.
    """

    slot: int
    steps: int
    seconds: float
    step: int | None = None
    is_preempted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFormed(JobEvent):
    """The ``members``, led by the job, step as one on ``slot`` from now on, ``speedup`` times faster than side by side."""

    slot: int
    members: tuple[str, ...]
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRefused(JobEvent):
    """The ``members`` do not step as one, for ``reason``, and go on one at a time; ``speedup`` if it was measured."""

    slot: int
    members: tuple[str, ...]
    reason: str
    speedup: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPaused(JobEvent):
    """The job was paused at step ``step``; its state is in a checkpoint, its memory is free."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResumed(JobEvent):
    """The job waits for its turn again, from step ``step`` on."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(JobEvent):
    """The job was cancelled and is gone from its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(JobEvent):
    """The job is done, verified and on disk in ``folder``."""

    folder: str
    metrics: dict[str, float]
    waiting_seconds: float
    training_seconds: float
    completion_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineAtRisk(JobEvent):
    """The job is ``predicted`` to be done after its ``deadline``, both on the run's clock, even if it trained from now on."""

    predicted: float
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHosted(JobEvent):
    """The job is resident on ``slot`` at ``step``, beside ``company``; ``damaged`` checkpoints were passed over."""

    slot: int
    step: int
    company: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpointed(JobEvent):
    """A checkpoint at ``step`` is on disk; the job would go on from it. The next comes ``least_seconds`` later or more."""

    step: int
    path: str
    num_bytes: int
    seconds: float
    least_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRefused(JobEvent):
    """No checkpoint could be written; ``is_disk`` if the disk is full or fails, and ``num_bytes`` would have been needed."""

    reason: str
    is_disk: bool
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSetBack(JobEvent):
    """The job lost its slot to a failure, its own or another's, and is tried again; ``state`` says how."""

    reason: str
    state: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(JobEvent):
    """The job failed for its own ``reason`` (one line); ``log`` is the file with the whole story, if any."""

    reason: str
    log: str | None
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """A worker process was started for ``slot``."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """The worker of ``slot`` died (``reason``); ``jobs`` go on from their checkpoints in a new one."""

    slot: int
    reason: str
    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySampled(Event):
    """Memory of the whole run (PSS of all its processes, or on the device) and utilisation in percent."""

    bytes_in_use: int
    utilisation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """Nothing is left to do."""

    num_finished: int
    num_failed: int
    num_cancelled: int = 0
