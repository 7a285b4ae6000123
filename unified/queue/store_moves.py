"""How jobs change. Each function writes within the transaction of the connection it is given.

A state changes by ``UPDATE … WHERE id AND state AND epoch`` with its transition row beside it; no row changed means that the
caller is late or wrong, and nothing is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, or_, select, update

from unified.job_state import ENDED, RESIDENT, IllegalMoveError, JobState, check_move
from unified.queue.clock import Clock
from unified.queue.errors import ConflictError, FencedError, UnknownJobError
from unified.queue.records import CheckpointRow, JobRow, NewJob, Progress, Submitted
from unified.queue.schema import CHECKPOINT, JOB, TRANSITION
from unified.queue.store_grants import use_grant
from unified.queue.store_queries import get
from unified.queue.store_rows import MUTABLE, columns_of, columns_of_new

_SUBMITTED = "waits to be checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A change of state that is asked for; see :meth:`unified.queue.store.JobStore.move`."""

    job: str
    old: JobState
    to: JobState
    epoch: int
    reason: str
    by: str
    holder: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease that is asked for; see :meth:`unified.queue.store.JobStore.lease`."""

    job: str
    holder: str
    slot: int
    seconds: float
    reason: str
    by: str


def submit(connection: Connection, new: NewJob, by: str, now: float) -> Submitted:
    """Insert a job, unless it is there.

    Raises:
        ConflictError: If its id or its token is another submission's.
        InvalidSubmission: If it is signed, and the signature has expired or was used before.
    """
    known = [JOB.c.id == new.id]
    if new.client_token is not None:
        known.append(and_(JOB.c.user == new.user, JOB.c.client_token == new.client_token))
    for row in connection.execute(select(JOB.c.id, JOB.c.content_sha256).where(or_(*known)).order_by(JOB.c.id)):
        if row.content_sha256 != new.content_sha256:
            taken = f"id {new.id!r}" if row.id == new.id else f"client_token {new.client_token!r}"
            raise ConflictError(
                f"job {new.id!r}: its {taken} was submitted before with other content; "
                "take another one, or none, or submit exactly the same again"
            )
    first = connection.execute(select(JOB.c.id).where(or_(*known)).order_by(JOB.c.submit_time, JOB.c.id).limit(1)).scalar()
    if first is not None:
        return Submitted(job=get(connection, first), is_new=False)
    if new.grant is not None:
        use_grant(connection, new.grant, now)
    connection.execute(insert(JOB).values(columns_of_new(new, now=now, reason=_SUBMITTED)))
    _record(connection, job=new.id, old=None, new=JobState.QUEUED, epoch=0, time=now, reason="submitted", by=by)
    return Submitted(job=get(connection, new.id), is_new=True)


def move(connection: Connection, asked: Move, clock: Clock) -> JobRow:
    """Carry out a move.

    Raises:
        IllegalMoveError: If no job may go that way, or only by a lease.
        FencedError: If the job has passed to another epoch or holder.
        ConflictError: If it is in another state.
        UnknownJobError: If there is no such job.
    """
    check_move(asked.old, asked.to, job=asked.job)
    if asked.to is JobState.LOADING:
        raise IllegalMoveError(f"job {asked.job!r}: a job goes to {asked.to} by a lease, which counts its epoch")
    now = clock.wall()
    here = [JOB.c.id == asked.job, JOB.c.state == asked.old, JOB.c.epoch == asked.epoch]
    if asked.holder is not None:
        here.append(JOB.c.holder == asked.holder)
    if not connection.execute(update(JOB).where(*here).values(_changed(asked, now))).rowcount:
        raise _why_not(connection, asked)
    _record(
        connection,
        job=asked.job,
        old=asked.old,
        new=asked.to,
        epoch=asked.epoch,
        time=now,
        reason=asked.reason,
        by=asked.by,
    )
    return get(connection, asked.job)


def _changed(asked: Move, now: float) -> dict[str, Any]:
    _check_reason(asked.job, asked.reason)
    unknown = sorted(set(asked.changes) - MUTABLE)
    if unknown:
        raise ValueError(
            f"job {asked.job!r}: a move cannot change {', '.join(unknown)}; it can change {', '.join(sorted(MUTABLE))}"
        )
    columns: dict[str, Any] = {"state": asked.to, "reason": asked.reason}
    if asked.to not in RESIDENT:
        columns |= {"holder": None, "lease_expires": None, "boot_id": None, "slot": None}
    if asked.to is not JobState.RETRY_WAIT:
        columns["not_before"] = None
    if asked.to is JobState.RUNNING:
        columns["started_time"] = func.coalesce(JOB.c.started_time, now)
    columns["finished_time"] = now if asked.to in ENDED else None
    return columns | columns_of(asked.changes)


def _why_not(connection: Connection, asked: Move) -> Exception:
    try:
        row = get(connection, asked.job)
    except UnknownJobError as error:
        return error
    if row.epoch != asked.epoch or asked.holder not in {None, row.holder}:
        return _fenced(row, asked.epoch, asked.holder)
    return ConflictError(f"job {row.id!r}: it is {row.state} by now, not {asked.old}: it cannot go to {asked.to}")


def _fenced(row: JobRow, epoch: int, holder: str | None) -> FencedError:
    now = f"epoch {row.epoch}, held by {row.holder or 'nobody'}, {row.state}"
    return FencedError(f"job {row.id!r}: a write of {holder or '?'} in epoch {epoch} came too late: now it is {now}; let it go")


def lease(connection: Connection, asked: Lease, clock: Clock) -> JobRow:
    """Take a queued job to a slot, in a new epoch.

    Raises:
        FencedError: If it is not queued any more.
        UnknownJobError: If there is no such job.
    """
    _check_reason(asked.job, asked.reason)
    columns = {
        "state": JobState.LOADING,
        "reason": asked.reason,
        "epoch": JOB.c.epoch + 1,
        "holder": asked.holder,
        "slot": asked.slot,
        "lease_expires": clock.monotonic() + asked.seconds,
        "boot_id": clock.boot_id(),
    }
    here = (JOB.c.id == asked.job, JOB.c.state == JobState.QUEUED)
    changed = connection.execute(update(JOB).where(*here).values(columns)).rowcount
    row = get(connection, asked.job)
    if not changed:
        raise FencedError(f"job {row.id!r}: it is {row.state} by now, not {JobState.QUEUED}: it cannot be taken to a slot")
    _record(
        connection,
        job=row.id,
        old=JobState.QUEUED,
        new=JobState.LOADING,
        epoch=row.epoch,
        time=clock.wall(),
        reason=asked.reason,
        by=asked.by,
    )
    return row


def renew(connection: Connection, holder: str, seconds: float, clock: Clock) -> frozenset[str]:
    """Let all leases of ``holder`` end ``seconds`` from now; return the jobs that it still has."""
    values = {"lease_expires": clock.monotonic() + seconds, "boot_id": clock.boot_id()}
    still = connection.execute(update(JOB).where(JOB.c.holder == holder).values(values).returning(JOB.c.id))
    return frozenset(still.scalars())


def note(connection: Connection, reports: Sequence[Progress], holder: str) -> frozenset[str]:
    """Write down how far jobs are; return those that are not ``holder``'s in the epoch of the report any more."""
    fenced = set()
    for report in reports:
        told = {
            "steps_done": report.steps_done,
            "loss": report.loss,
            "metrics": report.metrics,
            "step_seconds": report.step_seconds,
            "memory_bytes": report.memory_bytes,
            "training_seconds": report.training_seconds,
        }
        columns = columns_of({name: value for name, value in told.items() if value is not None})
        here = (JOB.c.id == report.job, JOB.c.epoch == report.epoch, JOB.c.holder == holder)
        if not connection.execute(update(JOB).where(*here).values(columns)).rowcount:
            fenced.add(report.job)
    return frozenset(fenced)


def set_reasons(connection: Connection, reasons: Mapping[str, str], is_resident: bool) -> None:
    """Say anew why jobs wait, for a slot or on one; those that do not do so any more keep what they have."""
    if not reasons:
        return
    is_queued = or_(JOB.c.state == JobState.QUEUED, JOB.c.state == JobState.RETRY_WAIT)  # no IN with several rows of values
    waits = JOB.c.state == JobState.RUNNING if is_resident else is_queued
    here = (JOB.c.id == bindparam("which"), waits, JOB.c.reason != bindparam("why"))
    rows = [{"which": job, "why": reason} for job, reason in reasons.items()]
    connection.execute(update(JOB).where(*here).values(reason=bindparam("why")), rows)


def set_in_states(connection: Connection, job: str, states: Collection[JobState], changes: Mapping[str, Any]) -> bool:
    """Change fields of a job that is in one of ``states``, or in any if empty; return whether it was.

    Raises:
        UnknownJobError: If there is no such job.
    """
    here = [JOB.c.id == job]
    if states:
        here.append(JOB.c.state.in_(sorted(states)))
    if connection.execute(update(JOB).where(*here).values(columns_of(changes))).rowcount:
        return True
    get(connection, job)
    return False


def add_checkpoint(connection: Connection, row: CheckpointRow, holder: str) -> None:
    """Make a checkpoint current whose file is durable; the same one again changes nothing.

    It is progress, which clears the job's count of failures of workers and hosts.

    Raises:
        FencedError: If the job is not ``holder``'s in that epoch any more.
        UnknownJobError: If there is no such job.
    """
    job = get(connection, row.job)
    if job.epoch != row.epoch or job.holder != holder:
        raise _fenced(job, row.epoch, holder)
    drop_checkpoint(connection, row.job, row.epoch, row.step)
    columns = {column.name: getattr(row, column.name) for column in CHECKPOINT.c}
    connection.execute(insert(CHECKPOINT).values(columns))
    connection.execute(update(JOB).where(JOB.c.id == row.job).values(num_infra_failures=0))


def drop_checkpoint(connection: Connection, job: str, epoch: int, step: int) -> None:
    """Forget a checkpoint, if it is known."""
    here = (CHECKPOINT.c.job == job, CHECKPOINT.c.epoch == epoch, CHECKPOINT.c.step == step)
    connection.execute(delete(CHECKPOINT).where(*here))


def forget(connection: Connection, job: str) -> None:
    """Remove a job that has ended, with all rows that belong to it.

    Raises:
        ConflictError: If it has not ended.
        UnknownJobError: If there is no such job.
    """
    row = get(connection, job)
    if row.state not in ENDED:
        raise ConflictError(f"job {job!r}: it is {row.state} and cannot be forgotten before it has ended; cancel it first")
    connection.execute(delete(JOB).where(JOB.c.id == job))


def _check_reason(job: str, reason: str) -> None:
    if not reason.strip():
        raise ValueError(f"job {job!r}: a change of state needs a reason that its owner understands, got {reason!r}")


def _record(connection: Connection, **columns: object) -> None:
    connection.execute(insert(TRANSITION).values(**columns))
