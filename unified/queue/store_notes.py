"""What is kept beside the jobs: commands, bans, workers, usage, ticks, policies. Each function is part of a transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from unified.queue.errors import UnknownJobError
from unified.queue.records import CommandRow, Usage, WorkerRow
from unified.queue.schema import BAN, COMMAND, META, POLICY, TICK, USAGE, WORKER
from unified.queue.store_queries import get


def add_command(connection: Connection, job: str, verb: str, by: str, now: float) -> CommandRow:
    """Ask something of a job that a supervisor must do.

    Raises:
        UnknownJobError: If there is no such job.
    """
    get(connection, job)
    values = {"job": job, "verb": verb, "by": by, "time": now}
    sequence = connection.execute(insert(COMMAND).values(values).returning(COMMAND.c.sequence)).scalar_one()
    return CommandRow(sequence=sequence, job=job, verb=verb, by=by, time=now, outcome=None)


def pending(connection: Connection) -> list[CommandRow]:
    """Return the commands that are yet to be carried out, in order."""
    query = select(COMMAND).where(COMMAND.c.outcome.is_(None)).order_by(COMMAND.c.sequence)
    return [CommandRow(**row._asdict()) for row in connection.execute(query)]


def get_command(connection: Connection, sequence: int) -> CommandRow:
    """Return a command.

    Raises:
        UnknownJobError: If there is none of that number; it goes with its job.
    """
    row = connection.execute(select(COMMAND).where(COMMAND.c.sequence == sequence)).one_or_none()
    if row is None:
        raise UnknownJobError(f"there is no command {sequence}; its job may have been removed")
    return CommandRow(**row._asdict())


def settle(connection: Connection, sequence: int, outcome: str) -> None:
    """Write down what came of a command; what was written first stands."""
    here = (COMMAND.c.sequence == sequence, COMMAND.c.outcome.is_(None))
    connection.execute(update(COMMAND).where(*here).values(outcome=outcome))


def add_ban(connection: Connection, one: str, other: str) -> None:
    """Keep two jobs from sharing a slot.

    Raises:
        UnknownJobError: If one of them is not there.
        ValueError: If they are the same.
    """
    if one == other:
        raise ValueError(f"job {one!r} cannot be banned from a slot with itself; let it run alone")
    first, second = sorted((one, other))
    for job in (first, second):
        get(connection, job)
    _put(connection, BAN, {"first": first, "second": second}, {})


def bans(connection: Connection) -> frozenset[frozenset[str]]:
    """Return the pairs that may not share a slot."""
    return frozenset(frozenset(row) for row in connection.execute(select(BAN.c.first, BAN.c.second)))


def worker_started(connection: Connection, slot: int, pid: int, now: float) -> int:
    """Write down a new worker; return its number."""
    values = {"slot": slot, "pid": pid, "started": now}
    return connection.execute(insert(WORKER).values(values).returning(WORKER.c.sequence)).scalar_one()


def worker_ended(connection: Connection, sequence: int, how: str, now: float) -> None:
    """Write down a worker's end; what was written first stands."""
    here = (WORKER.c.sequence == sequence, WORKER.c.ended.is_(None))
    connection.execute(update(WORKER).where(*here).values(ended=now, how=how))


def workers(connection: Connection, slot: int | None) -> list[WorkerRow]:
    """Return all workers that were started, on one slot or on all, in order."""
    query = select(WORKER).order_by(WORKER.c.sequence)
    rows = connection.execute(query if slot is None else query.where(WORKER.c.slot == slot))
    return [WorkerRow(**row._asdict()) for row in rows]


def add_usage(connection: Connection, user: str, slot_seconds: float, byte_seconds: float) -> None:
    """Add to what a user has used."""
    more = {"slot_seconds": USAGE.c.slot_seconds + slot_seconds, "byte_seconds": USAGE.c.byte_seconds + byte_seconds}
    if not connection.execute(update(USAGE).where(USAGE.c.user == user).values(more)).rowcount:
        connection.execute(insert(USAGE).values(user=user, slot_seconds=slot_seconds, byte_seconds=byte_seconds))


def usage(connection: Connection) -> list[Usage]:
    """Return what each user has used, by name."""
    return [Usage(**row._asdict()) for row in connection.execute(select(USAGE).order_by(USAGE.c.user))]


def stamp(connection: Connection, tick: str, now: float) -> None:
    """Write down that a tick was done."""
    _put(connection, TICK, {"name": tick}, {"last_ok": now})


def ticks(connection: Connection) -> dict[str, float]:
    """Return when each tick was last done."""
    return {row.name: row.last_ok for row in connection.execute(select(TICK))}


def save_policy(connection: Connection, name: str, state: Mapping[str, Any]) -> None:
    """Keep the state of a scheduler."""
    _put(connection, POLICY, {"name": name}, {"state": json.dumps(dict(state))})


def load_policy(connection: Connection, name: str) -> dict[str, Any] | None:
    """Return what was kept last, if anything."""
    text = connection.execute(select(POLICY.c.state).where(POLICY.c.name == name)).scalar_one_or_none()
    return None if text is None else json.loads(text)


def set_meta(connection: Connection, key: str, value: str) -> None:
    """Keep a word under a key."""
    _put(connection, META, {"key": key}, {"value": value})


def get_meta(connection: Connection, key: str) -> str | None:
    """Return what is kept under a key, if anything."""
    return connection.execute(select(META.c.value).where(META.c.key == key)).scalar_one_or_none()


def _put(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert or replace one row; no two do so at once, as writers are alone."""
    here = [table.c[name] == value for name, value in key.items()]
    if connection.execute(select(*[table.c[name] for name in key]).where(*here)).first() is None:
        connection.execute(insert(table).values({**key, **values}))
    elif values:
        connection.execute(update(table).where(*here).values(dict(values)))
