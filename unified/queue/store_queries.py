"""What the store is asked. Each function reads within the transaction of the connection it is given."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, tuple_

from unified.job_state import RESIDENT, JobState
from unified.queue.clock import Clock
from unified.queue.errors import AmbiguousIdError, QueueError, UnknownJobError
from unified.queue.records import CheckpointRow, JobRow, Page, Transition, WaitingRow
from unified.queue.schema import CHECKPOINT, JOB, TRANSITION
from unified.queue.store_rows import JOB_COLUMNS, TRANSITION_COLUMNS, WAITING_COLUMNS, job_row, transition_row

#: A retry that lies further ahead than any wait we set (15 minutes at most) was set before the wall clock jumped back.
MAX_RETRY_AHEAD_SECONDS = 20 * 60.0

_JOBS = select(*JOB_COLUMNS)
_BY_TIME = (JOB.c.submit_time, JOB.c.id)
_BY_PRIORITY = (JOB.c.priority, JOB.c.submit_time, JOB.c.id)
_LAST_CHARACTER = "\U0010ffff"
_SHOWN_IDS = 4
_MOST_IDS = 500  #: in one statement


class BadCursorError(QueueError):
    """A cursor that no page gave; start without one."""

    code = "bad-cursor"


def get(connection: Connection, job: str) -> JobRow:
    """Return a job.

    Raises:
        UnknownJobError: If there is none of that id.
    """
    row = connection.execute(_JOBS.where(JOB.c.id == job)).one_or_none()
    if row is None:
        raise UnknownJobError(f"there is no job {job!r}")
    return job_row(row)


def resolve(connection: Connection, prefix: str, user: str | None) -> str:
    """Return the one id that begins with ``prefix``; an id that is ``prefix`` wins over longer ones.

    Raises:
        UnknownJobError: If there is none, or it is not ``user``'s.
        AmbiguousIdError: If there are several.
    """
    in_range = and_(JOB.c.id >= prefix, JOB.c.id < prefix + _LAST_CHARACTER)
    query = select(JOB.c.id).where(in_range, *_restrict((), user)).order_by(JOB.c.id).limit(_SHOWN_IDS)
    found = list(connection.execute(query).scalars()) if prefix else []
    if not found:
        raise UnknownJobError(f"there is no job {prefix!r}")
    if len(found) > 1 and found[0] != prefix:
        shown = ", ".join(found[: _SHOWN_IDS - 1]) + (", …" if len(found) == _SHOWN_IDS else "")
        raise AmbiguousIdError(f"{prefix!r} fits several jobs: {shown}; write more of the id")
    return found[0]


def page(
    connection: Connection,
    *,
    states: Collection[JobState],
    user: str | None,
    cursor: str | None,
    limit: int,
    newest_first: bool,
) -> Page:
    """Return up to ``limit`` jobs behind ``cursor``, in the order of (submit_time, id) or its reverse.

    Raises:
        BadCursorError: If no page in this order gave that cursor.
        ValueError: If ``limit`` is not positive.
    """
    if limit < 1:
        raise ValueError(f"a page has at least one job, got limit {limit}")
    order = [column.desc() for column in _BY_TIME] if newest_first else list(_BY_TIME)
    conditions = _restrict(states, user)
    if cursor is not None:
        here, last = tuple_(*_BY_TIME), tuple_(*_read_cursor(cursor, newest_first))
        conditions.append(here < last if newest_first else here > last)
    # First the ids, which indexes hold: a sort of whole rows would carry all specs along.
    ids = select(JOB.c.id).where(*conditions).order_by(*order).limit(limit + 1)
    rows = _read(connection, _JOBS.where(JOB.c.id.in_(ids)).order_by(*order))
    is_last = len(rows) <= limit
    return Page(jobs=tuple(rows[:limit]), cursor=None if is_last else _cursor(rows[limit - 1], newest_first))


def _cursor(row: JobRow, newest_first: bool) -> str:
    text = json.dumps([row.submit_time, row.id, newest_first], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str, newest_first: bool) -> tuple[float, str]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        submit_time, job, order = json.loads(base64.urlsafe_b64decode(padded))
        job.encode()  # JSON can spell half a character, which no database takes
    except (ValueError, TypeError, AttributeError, RecursionError):
        submit_time = job = order = None
    is_time = isinstance(submit_time, float) and math.isfinite(submit_time)
    if is_time and isinstance(job, str) and "\0" not in job and order is newest_first:
        return submit_time, job
    raise BadCursorError(f"cursor {cursor[:80]!r} is not from a page in this order; start again without a cursor")


def jobs(connection: Connection, states: Collection[JobState], user: str | None) -> list[JobRow]:
    """Return all jobs in ``states``, in any if empty."""
    return _read(connection, _JOBS.where(*_restrict(states, user)).order_by(*_BY_TIME))


def queued(connection: Connection, limit: int, *, is_checked: bool) -> list[JobRow]:
    """Return the first ``limit`` queued jobs that were, or were not, checked."""
    conditions = (JOB.c.state == JobState.QUEUED, JOB.c.is_checked == is_checked)
    return _read(connection, _JOBS.where(*conditions).order_by(*_BY_PRIORITY).limit(limit))


def waiting_epochs(connection: Connection) -> dict[str, int]:
    """Return the checked jobs that wait, each with the epoch that it waits in."""
    conditions = (JOB.c.state == JobState.QUEUED, JOB.c.is_checked.is_(True))
    rows = connection.execute(select(JOB.c.id, JOB.c.epoch).where(*conditions))
    return {row.id: row.epoch for row in rows}


def waiting_rows(connection: Connection, ids: Sequence[str]) -> list[WaitingRow]:
    """Return what a scheduler may go by of jobs, those that are checked and still wait."""
    rows: list[WaitingRow] = []
    for ids_now in batched(ids):
        here = (JOB.c.id.in_(ids_now), JOB.c.state == JobState.QUEUED, JOB.c.is_checked.is_(True))
        rows += [WaitingRow(**row._asdict()) for row in connection.execute(select(*WAITING_COLUMNS).where(*here))]
    return rows


def queued_rows(connection: Connection, ids: Sequence[str]) -> list[JobRow]:
    """Return jobs, those that are checked and still wait, in no order."""
    rows: list[JobRow] = []
    for ids_now in batched(ids):
        here = (JOB.c.id.in_(ids_now), JOB.c.state == JobState.QUEUED, JOB.c.is_checked.is_(True))
        rows += _read(connection, _JOBS.where(*here))
    return rows


def batched(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Return ids in portions that a statement takes."""
    for begin in range(0, len(ids), _MOST_IDS):
        yield ids[begin : begin + _MOST_IDS]


def counts(connection: Connection, user: str | None) -> dict[JobState, int]:
    """Return the number of jobs in each state that has any."""
    query = select(JOB.c.state, func.count()).where(*_restrict((), user)).group_by(JOB.c.state)
    return {JobState(state): number for state, number in connection.execute(query)}


def expired(connection: Connection, clock: Clock) -> list[JobRow]:
    """Return the resident jobs whose lease is over, or counted by a clock that is no more."""
    is_over = or_(
        JOB.c.lease_expires.is_(None),
        JOB.c.lease_expires <= clock.monotonic(),
        JOB.c.boot_id.is_distinct_from(clock.boot_id()),
    )
    return _read(connection, _JOBS.where(*_restrict(RESIDENT, None), is_over).order_by(*_BY_TIME))


def held_by(connection: Connection, holder: str) -> list[JobRow]:
    """Return the jobs that ``holder`` has a lease of, over or not."""
    return _read(connection, _JOBS.where(JOB.c.holder == holder).order_by(*_BY_TIME))


def holders(connection: Connection) -> frozenset[str]:
    """Return all who hold a job."""
    return frozenset(connection.execute(select(JOB.c.holder).where(JOB.c.holder.is_not(None)).distinct()).scalars())


def due(connection: Connection, now: float) -> list[JobRow]:
    """Return the jobs that waited long enough for another try."""
    is_due = or_(JOB.c.not_before.is_(None), JOB.c.not_before <= now, JOB.c.not_before > now + MAX_RETRY_AHEAD_SECONDS)
    return _read(connection, _JOBS.where(JOB.c.state == JobState.RETRY_WAIT, is_due).order_by(*_BY_TIME))


def transitions(connection: Connection, job: str) -> list[Transition]:
    """Return all that happened to a job, in order."""
    query = select(*TRANSITION_COLUMNS).where(TRANSITION.c.job == job).order_by(TRANSITION.c.sequence)
    return [transition_row(row) for row in connection.execute(query)]


def checkpoints(connection: Connection, job: str) -> list[CheckpointRow]:
    """Return a job's checkpoints, newest first."""
    query = select(CHECKPOINT).where(CHECKPOINT.c.job == job)
    # A later epoch is newer even at an earlier step: it began from an older checkpoint because the last one was damaged.
    rows = connection.execute(query.order_by(CHECKPOINT.c.epoch.desc(), CHECKPOINT.c.step.desc()))
    return [CheckpointRow(**row._asdict()) for row in rows]


def bytes_by_user(connection: Connection) -> dict[str, int]:
    """Return how much of each user's is in the store's care."""
    rows = connection.execute(select(JOB.c.user, func.sum(JOB.c.num_bytes)).group_by(JOB.c.user))
    return {user: int(number) for user, number in rows}


def _restrict(states: Collection[JobState], user: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if states:
        conditions.append(JOB.c.state.in_(sorted(states)))
    if user is not None:
        conditions.append(JOB.c.user == user)
    return conditions


def _read(connection: Connection, query: Select) -> list[JobRow]:
    return [job_row(row) for row in connection.execute(query)]
