"""From an empty file or an older database to the tables of today, or a clear no."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Connection, delete, insert, inspect, select, text

from unified.queue.database import Database
from unified.queue.errors import RootError, StoreVersionError
from unified.queue.schema import META, METADATA, VERSION

_VERSION_KEY = "schema_version"


def _mark_checked_jobs(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE job ADD COLUMN is_checked BOOLEAN DEFAULT false NOT NULL"))
    connection.execute(text("UPDATE job SET is_checked = true WHERE admission IS NOT NULL"))
    connection.execute(text("CREATE INDEX job_waiting ON job (state, is_checked, priority, submit_time, id)"))
    connection.execute(text('CREATE INDEX job_bytes ON job ("user", num_bytes)'))


#: From each version to the next one. A step is never changed once it was released.
STEPS: Mapping[int, Callable[[Connection], None]] = {1: _mark_checked_jobs}


def prepare(database: Database, steps: Mapping[int, Callable[[Connection], None]] = STEPS) -> None:
    """Make the tables, or bring older ones to :data:`~unified.queue.schema.VERSION`; a copy of those stays beside them.

    Several processes may do so at once. If it fails or is killed, the database is as it was.

    Args:
        database: An empty one, or a store's.
        steps: From each older version to the next.

    Raises:
        StoreVersionError: If it is newer than this code, or older than all its steps.
        RootError: If it holds something else.
    """
    with database.reading() as connection:
        version = _stored_version(connection, database)
    _check(version, database, steps)
    database.start_journal()
    if version == VERSION:
        return
    with database.writing() as connection:
        version = _stored_version(connection, database)  # another process may have been faster
        _check(version, database, steps)
        if version is None:
            METADATA.create_all(connection)
        elif version < VERSION:
            # Of what was committed last, which is the old version, as we alone may write now.
            database.keep_copy(f"version-{version}")
            for number in range(version, VERSION):
                steps[number](connection)
        _store_version(connection)


def _check(version: int | None, database: Database, steps: Mapping[int, object]) -> None:
    if version is None or version == VERSION:
        return
    if version > VERSION:
        raise StoreVersionError(
            f"{database.path} has schema version {version}, and this unified reads versions up to {VERSION}; "
            "use the unified that wrote it or a newer one. Nothing was changed"
        )
    if any(number not in steps for number in range(version, VERSION)):
        raise StoreVersionError(
            f"{database.path} has schema version {version}, and this unified reads versions from {min(steps)} to {VERSION}; "
            "use the unified that wrote it. Nothing was changed"
        )


def _stored_version(connection: Connection, database: Database) -> int | None:
    """Return the version of the tables, None if there are none at all."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    if not {META.name, "job"} <= set(tables):
        raise RootError(f"{database.path} is a database, but no store of a queue: it has the tables {', '.join(tables)}")
    value = connection.execute(select(META.c.value).where(META.c.key == _VERSION_KEY)).scalar_one_or_none()
    if value is None or not value.isdecimal():
        raise RootError(f"{database.path} is no store of a queue: its schema version is {value!r}, expected a number")
    return int(value)


def _store_version(connection: Connection) -> None:
    connection.execute(delete(META).where(META.c.key == _VERSION_KEY))
    connection.execute(insert(META).values(key=_VERSION_KEY, value=str(VERSION)))
