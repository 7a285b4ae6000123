"""What the HTTP API says: one pydantic model per answer, so that ``/openapi.json`` is complete. Times are RFC 3339, UTC."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from unified.job_state import RESIDENT, JobState
from unified.queue.records import CheckpointRow, JobRow, Transition

SCHEMA = 1  #: of the answers; raised when a field changes its meaning or goes


class Answer(BaseModel):
    """Something that the API says."""

    schema_: Annotated[int, Field(alias="schema", description="Raised when a field changes its meaning or goes.")] = SCHEMA


class ProblemItem(BaseModel):
    """One thing that is wrong with a submission."""

    code: Annotated[str, Field(examples=["E-FIELD"])]
    job: str
    field: Annotated[str, Field(examples=["optimizer.lr"])]
    expected: str
    given: str
    remedy: str


class ProblemDetail(BaseModel):
    """An error (RFC 9457); ``code`` is short and stable, ``problems`` everything that is wrong with a submission."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(examples=["conflict"])]
    problems: list[ProblemItem]


class Job(Answer):
    """A job as it stands now. Sizes are bytes, durations seconds; null is what is not known or has not happened."""

    id: str
    name: str
    user: str
    state: JobState
    reason: Annotated[str, Field(description="Why it stands where it stands, in words.")]
    priority: int
    steps_done: int
    steps_total: int | None
    loss: float | None
    metrics: dict[str, float | None]
    step_seconds: float | None
    memory_bytes: int | None
    slot: int | None
    num_threads: int | None
    epoch: Annotated[int, Field(description="How often it was taken to a slot.")]
    submit_time: datetime
    started_time: datetime | None
    finished_time: datetime | None
    completion_seconds: Annotated[float | None, Field(description="From submission to the end, whatever it was.")] = None
    slowdown: Annotated[
        float | None, Field(description="Of a finished job: completion_seconds as a multiple of training_seconds.")
    ] = None
    training_seconds: Annotated[float, Field(description="Sum of its turns.")]
    waiting_seconds: Annotated[float, Field(description="From submission to the first turn, or until now.")]
    eta_seconds: Annotated[float | None, Field(description="Of training alone, while it is on a slot.")]
    num_job_failures: int
    num_infra_failures: int
    result: Annotated[bool, Field(description="Whether there is a published result.")]


class Checkpoint(BaseModel):
    """A checkpoint that the job would go on from."""

    epoch: int
    step: int
    bytes: int
    sha256: str
    time: datetime


class Attempt(BaseModel):
    """One stay on a slot; ``outcome`` and ``ended`` are null while it lasts."""

    epoch: int
    started: datetime
    ended: datetime | None = None
    outcome: JobState | None = None
    reason: str | None = None


class JobDetails(Job):
    """A job with what was submitted and how it fared."""

    spec: dict[str, Any]
    checkpoints: list[Checkpoint]
    attempts: list[Attempt]


class JobPage(Answer):
    """Jobs in the order of their submission; ``cursor`` asks for the next page, null at the end."""

    jobs: list[Job]
    cursor: str | None


class TransitionItem(BaseModel):
    """One change of state."""

    sequence: int
    old: JobState | None
    new: JobState
    epoch: int
    time: datetime
    reason: str
    by: str


class Transitions(Answer):
    """Every change of a job's state, in order."""

    transitions: list[TransitionItem]


class VerbAnswer(Answer):
    """What came of a verb; ``done`` is false while the supervisor has yet to carry it out."""

    job: Job
    done: bool
    text: str


class MetricRows(Answer):
    """Rows of ``metrics.jsonl``."""

    rows: list[dict[str, Any]]


class FileItem(BaseModel):
    """A file of a job's result."""

    name: str
    bytes: int


class Files(Answer):
    """The files of a job's result."""

    files: list[FileItem]


class Slot(BaseModel):
    """A slot. Of other people's jobs only ``num_residents`` and ``is_busy`` tell."""

    index: int
    device: str
    threads: int | None
    state: str
    running: str | None
    residents: list[str]
    num_residents: int
    is_busy: bool
    memory_bytes: int | None


class Slots(Answer):
    """The slots and their memory; without a supervisor there are none."""

    is_served: bool
    scheduler: str | None
    device: str | None
    version: str | None
    time: datetime | None
    slots: list[Slot]
    memory_bytes: int | None
    memory_total_bytes: int | None
    utilisation: float | None
    queued: int
    disk_free_bytes: int | None
    is_draining: bool


class Turn(BaseModel):
    """A turn of a job on a slot; times are seconds since 1970."""

    job: str
    slot: int
    start: float
    end: float
    steps: int
    user: str | None = None


class Timeline(Answer):
    """The latest turns, in the order in which they ended."""

    turns: list[Turn]


class SchedulerItem(BaseModel):
    """A scheduler that may be chosen."""

    name: str
    help: str


class Schedulers(Answer):
    """The schedulers there are, and the one that decides now."""

    schedulers: list[SchedulerItem]
    current: str | None


class WhoAmI(Answer):
    """Who asks. ``user`` is empty where nobody needs a token."""

    user: str
    scopes: list[str]
    is_operator: bool


class Upload(Answer):
    """A file handed in, or as much of it as has come."""

    sha256: str
    offset: Annotated[int, Field(description="How many bytes have come.")]
    is_complete: bool
    limit: Annotated[int | None, Field(description="How large a file may be; null: as large as it likes.")]


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the queue works: each check with ``"ok"`` or what is wrong."""

    ready: bool
    checks: dict[str, str]


def job_model(row: JobRow, reason: str, *, now: float | None = None) -> Job:
    """Return a job as the API shows it; ``reason`` is :meth:`unified.queue.verbs.Queue.reason`."""
    return Job(**_job_fields(row, reason, time.time() if now is None else now))


def job_details(
    row: JobRow, reason: str, checkpoints: Iterable[CheckpointRow], transitions: Sequence[Transition]
) -> JobDetails:
    """Return all that the API shows of one job."""
    return JobDetails(
        **_job_fields(row, reason, time.time()),
        spec=row.spec,
        checkpoints=[
            Checkpoint(epoch=each.epoch, step=each.step, bytes=each.num_bytes, sha256=each.sha256, time=utc(each.time))
            for each in checkpoints
        ],
        attempts=attempts(transitions),
    )


def attempts(transitions: Iterable[Transition]) -> list[Attempt]:
    """Return the stays on slots that the transitions tell of."""
    found: list[Attempt] = []
    for move in transitions:
        if move.new is JobState.LOADING:
            found.append(Attempt(epoch=move.epoch, started=utc(move.time)))
        elif found and found[-1].ended is None and move.new not in RESIDENT:
            found[-1] = Attempt(
                epoch=found[-1].epoch, started=found[-1].started, ended=utc(move.time), outcome=move.new, reason=move.reason
            )
    return found


def transition_model(move: Transition) -> TransitionItem:
    """Return one change of state as the API shows it."""
    return TransitionItem(
        sequence=move.sequence,
        old=move.old,
        new=move.new,
        epoch=move.epoch,
        time=utc(move.time),
        reason=move.reason,
        by=move.by,
    )


def _job_fields(row: JobRow, reason: str, now: float) -> dict[str, Any]:
    until = row.started_time or row.finished_time or now
    return {
        "id": row.id,
        "name": row.name,
        "user": row.user,
        "state": row.state,
        "reason": reason,
        "priority": row.priority,
        "steps_done": row.steps_done,
        "steps_total": row.steps_total,
        "loss": _finite(row.loss),
        "metrics": _finite_all(row.metrics),
        "step_seconds": _finite(row.step_seconds),
        "memory_bytes": row.memory_bytes,
        "slot": row.slot,
        "num_threads": row.num_threads,
        "epoch": row.epoch,
        "submit_time": utc(row.submit_time),
        "started_time": _at_or_none(row.started_time),
        "finished_time": _at_or_none(row.finished_time),
        "completion_seconds": row.completion_seconds,
        "slowdown": row.slowdown,
        "training_seconds": row.training_seconds,
        "waiting_seconds": max(0.0, until - row.submit_time),
        "eta_seconds": _eta(row),
        "num_job_failures": row.num_job_failures,
        "num_infra_failures": row.num_infra_failures,
        "result": row.state is JobState.FINISHED and row.result_path is not None,
    }


def _eta(row: JobRow) -> float | None:
    if row.state not in RESIDENT or row.steps_total is None or row.step_seconds is None:
        return None
    return _finite(max(0, row.steps_total - row.steps_done) * row.step_seconds)


def utc(seconds: float) -> datetime:
    """Return a wall-clock time as JSON shows it: RFC 3339, UTC."""
    return datetime.fromtimestamp(round(seconds, 3), UTC)


def _at_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite_all(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}
