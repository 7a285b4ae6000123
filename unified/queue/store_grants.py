"""Signatures that were used: each is remembered until it expires, so that it outlives its job and is never used twice."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select

from unified.errors import InvalidSubmission
from unified.queue.records import Grant
from unified.queue.schema import META
from unified.queue.trusted import sign_problem

_PREFIX = "signed:"


def use_grant(connection: Connection, grant: Grant, now: float) -> None:
    """Use a signature for the job that is being inserted, within the transaction of the connection.

    Raises:
        InvalidSubmission: If it has expired, or was used before: for a job that was removed meanwhile.
    """
    if grant.expires <= now:
        then = datetime.fromtimestamp(grant.expires, UTC).isoformat()
        raise InvalidSubmission([sign_problem(grant.job, "a signature that has not expired", f"one until {then}")])
    # Those that have expired are of no use to anybody: they need not be remembered. Digits of one width compare as numbers.
    connection.execute(delete(META).where(META.c.key.startswith(_PREFIX), META.c.value <= _digits(now)))
    key = f"{_PREFIX}{grant.digest}"
    if connection.execute(select(META.c.key).where(META.c.key == key)).first() is not None:
        given = "one that was used before, for a job that was removed since"
        raise InvalidSubmission([sign_problem(grant.job, "a signature that is new", given)])
    connection.execute(insert(META).values(key=key, value=_digits(grant.expires)))


def _digits(time: float) -> str:
    return f"{int(time):020d}"
