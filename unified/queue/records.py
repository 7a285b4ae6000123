"""The rows of the store as frozen records. Wall-clock times are seconds since 1970, UTC, and for display alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unified.accounting import slowdown
from unified.job_state import JobState

UNDER = "; under "  #: in the reason of a job that waits: between what the packer says of it, and what the scheduler does


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a signature allows, once: a job of this id, taken in before ``expires`` (seconds since 1970).

    ``digest`` says which signed claims these are.
    """

    job: str
    digest: str
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What a submission becomes before it is a row.

    Attributes:
        id: What the queue calls it.
        name: Its ``name`` in ``job.json``.
        user: Whose it is; ``""`` without one.
        spec: The content of ``job.json``.
        content_sha256: Hash of the whole job folder.
        client_token: The submitter's own word for idempotency, or None; unique per user.
        priority: Lower runs earlier.
        weight: The owner's share.
        deadline_seconds: As in ``job.json``.
        max_retries: As in ``job.json``.
        num_bytes: Size of the job folder.
        grant: What its signature allows; None for a job that needs none.
    """

    id: str
    name: str
    user: str
    spec: dict[str, Any]
    content_sha256: str
    client_token: str | None = None
    priority: int = 0
    weight: float = 1.0
    deadline_seconds: float | None = None
    max_retries: int = 2
    num_bytes: int = 0
    grant: Grant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRow:
    """Of a checked job that waits, what a scheduler may go by; ``spec`` and ``admission`` as the text that they are stored as.

    See :class:`JobRow` for the fields.
    """

    id: str
    user: str
    spec: str
    admission: str
    priority: int
    weight: float
    deadline_seconds: float | None
    submit_time: float
    epoch: int
    steps_done: int
    steps_total: int | None
    step_seconds: float | None
    training_seconds: float
    started_time: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job as the store holds it.

    Attributes:
        id: See :class:`NewJob`, as for all that is not named here.
        state: Where it stands.
        reason: Why it stands there, in words for its owner.
        submit_time: When it was accepted.
        not_before: In RETRY_WAIT: when it is tried again (wall clock).
        epoch: Number of times it was taken to a slot; every write of a worker carries it.
        holder: The supervisor that has its lease, or None.
        lease_expires: Monotonic clock of the host with ``boot_id``.
        boot_id: Of the host that gave the lease.
        slot: Index of the slot where it is resident, or None.
        num_threads: Intra-op threads, fixed before its first step; None until then and on a GPU.
        steps_done: Optimizer steps, as last reported.
        steps_total: Planned steps; None until it was checked.
        loss: Latest loss reported.
        metrics: Last row of its metrics.
        step_seconds: Measured seconds of a step.
        memory_bytes: Its peak memory, estimated on a CPU, measured on a GPU; None until it was checked.
        training_seconds: Sum of its turns.
        started_time: When its first turn began.
        finished_time: When it ended.
        num_job_failures: Failures of its own, against ``max_retries``.
        num_infra_failures: Failures of workers and hosts since its last progress.
        num_blames: How often it was the culprit of a worker's death.
        is_alone: It must have a slot to itself: on probation, or out of memory beside others.
        last_fault: Kind and step of its last failure, to recognise the same one again.
        admission: What the check found, once it was checked: see ``unified.service.admissions``.
        result_path: Where its result is, relative to the root.
    """

    id: str
    name: str
    user: str
    spec: dict[str, Any]
    content_sha256: str
    client_token: str | None
    state: JobState
    reason: str
    priority: int
    weight: float
    deadline_seconds: float | None
    max_retries: int
    num_bytes: int
    submit_time: float
    not_before: float | None
    epoch: int
    holder: str | None
    lease_expires: float | None
    boot_id: str | None
    slot: int | None
    num_threads: int | None
    steps_done: int
    steps_total: int | None
    loss: float | None
    metrics: dict[str, float]
    step_seconds: float | None
    memory_bytes: int | None
    training_seconds: float
    started_time: float | None
    finished_time: float | None
    num_job_failures: int
    num_infra_failures: int
    num_blames: int
    is_alone: bool
    last_fault: str | None
    admission: dict[str, Any] | None
    result_path: str | None

    @property
    def completion_seconds(self) -> float | None:
        """Seconds from submission to the end; None while there is none. Not below 0, if a clock was set back."""
        return None if self.finished_time is None else max(0.0, self.finished_time - self.submit_time)

    @property
    def slowdown(self) -> float | None:
        """See :func:`unified.accounting.slowdown`; None of a job that did not finish."""
        is_finished = self.state is JobState.FINISHED
        return slowdown(self.completion_seconds, self.training_seconds) if is_finished else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a job's state. ``old`` is None for the first. ``by`` is a user, ``"supervisor"`` or ``"spool"``."""

    sequence: int
    job: str
    old: JobState | None
    new: JobState
    epoch: int
    time: float
    reason: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """A checkpoint that is current: its file was durable before this row. ``path`` is relative to the root."""

    job: str
    epoch: int
    step: int
    path: str
    sha256: str
    num_bytes: int
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """Something asked of a job that a supervisor must carry out.

    Attributes:
        sequence: Its number, in the order asked.
        verb: ``"pause"``, ``"resume"``, ``"cancel"``, ``"checkpoint"``.
        outcome: None while under way, then ``"done"``, ``"done: step 120, jobs/x/ckpt/…"`` or ``"conflict: …"``.
    """

    sequence: int
    job: str
    verb: str
    by: str
    time: float
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a turn report says of one resident job; only fields that are not None are written."""

    job: str
    epoch: int
    steps_done: int
    loss: float | None = None
    metrics: dict[str, float] | None = None
    step_seconds: float | None = None
    memory_bytes: int | None = None
    training_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The answer to a submission: the job, and whether it is new or was there already."""

    job: JobRow
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a user has used: residency on slots, and residency times memory."""

    user: str
    slot_seconds: float
    byte_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker process that was started; ``ended`` and ``how`` are None while it lives."""

    sequence: int
    slot: int
    pid: int
    started: float
    ended: float | None = None
    how: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a listing; ``cursor`` asks for the next one, None at the end."""

    jobs: tuple[JobRow, ...] = field(default_factory=tuple)
    cursor: str | None = None
