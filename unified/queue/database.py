"""How the store talks to its database: the one file that knows which it is. Today it is SQLite, through SQLAlchemy.

What the rest of the store rests on, and another database would have to give as well: a commit is on the disk when it returns;
a write transaction is alone from its first statement on, among all threads and processes; a reader sees one moment, and
neither waits for a writer nor makes one wait. On a server that would be an advisory lock taken in :func:`_begin`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from unified.queue.errors import RootError
from unified.queue.faults import reach
from unified.queue.files import rename_durably, sync_file, temporary_name
from unified.queue.mounts import network_file_system

BUSY_SECONDS = 30.0  #: for which a statement waits for other processes
_IDLE_CONNECTIONS = 16
_IS_WRITE = "unified_is_write"  #: option of a connection: its transaction will write

#: What the disk, or another process, did, for callers that know files and not SQLite.
_ERRNOS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_BUSY: errno.EBUSY,  # for BUSY_SECONDS: somebody sleeps in a transaction
}
_UNUSABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Database:
    """An open database, safe to use from several threads; a process that was forked gets connections of its own."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.path = path
        self._engine = engine
        self._writer = engine.execution_options(**{_IS_WRITE: True})
        self._pid = os.getpid()
        # Threads of one process take turns here: SQLite itself lets waiting connections poll, up to 100 ms apart.
        self._turn = threading.Lock()

    @classmethod
    def open(cls, where: str | Path) -> Database:
        """Open the SQLite file ``where``, a path or a ``sqlite:///`` URL; it is made if it is missing.

        Raises:
            RootError: If it cannot be used: another kind of database, or on a network file system.
        """
        path = _sqlite_file(where)
        kind = network_file_system(path)
        if kind is not None:
            raise RootError(f"{path} is on a network file system ({kind}), where SQLite can lose data; use a local disk")
        return cls(_make_engine(path), path)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees the database as it is at the first statement.

        Raises:
            OSError: If the disk fails.
        """
        self._own()
        with self._disk_errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection that alone may write; committed, durably, at the end, and undone if anything is raised.

        Raises:
            OSError: If the disk is full or fails; nothing was changed, unless it failed after the commit.
        """
        self._own()
        with self._turn, self._disk_errors(), self._writer.connect() as connection:
            with connection.begin():
                yield connection
                reach("store.before-commit")
            reach("store.committed")

    def start_journal(self) -> None:
        """Make sure that the file uses write-ahead logging, which stays so once it is.

        Raises:
            RootError: If it cannot.
        """
        # SQLite does not wait for others here as it does elsewhere, so several processes that make a store at once collide.
        deadline = time.monotonic() + BUSY_SECONDS
        with self._disk_errors(), contextlib.closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            while True:
                try:
                    mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                    break
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                        raise
                    time.sleep(0.01)
        if mode != "wal":
            raise RootError(
                f"{self.path}: this file system cannot hold a write-ahead log (got mode {mode!r}); use a local disk"
            )

    def keep_copy(self, suffix: str) -> Path:
        """Copy the last committed state, durably, to a file beside this one, whose name ends in ``suffix``.

        Raises:
            OSError: If it cannot be written.
        """
        copy = self.path.with_name(f"{self.path.name}.{suffix}")
        temporary = self.path.with_name(temporary_name())
        try:
            source, target = sqlite3.connect(self.path, timeout=BUSY_SECONDS), sqlite3.connect(temporary)
            with self._disk_errors(), contextlib.closing(source), contextlib.closing(target):
                source.backup(target)
            sync_file(temporary)
            rename_durably(temporary, copy)
        finally:
            temporary.unlink(missing_ok=True)
        return copy

    def _own(self) -> None:
        """Leave connections and lock to the parent, if this process was forked: SQLite's must not cross a fork."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._turn = threading.Lock()
            self._pid = os.getpid()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
            if code in _ERRNOS:
                number = _ERRNOS[code]
                raise OSError(number, f"{os.strerror(number)} (SQLite: {cause})", str(self.path)) from error
            if code in _UNUSABLE:
                raise RootError(f"{self.path} cannot be used as the store: {cause}") from error
            raise


def _sqlite_file(where: str | Path) -> Path:
    if isinstance(where, Path) or "://" not in where:
        return Path(where).resolve()
    try:
        url = make_url(where)
    except ArgumentError:
        raise RootError(f"{where!r} is no database URL; expected a path or sqlite:///PATH") from None
    if url.get_backend_name() != "sqlite" or url.query:
        shown = url.render_as_string(hide_password=True)
        raise RootError(f"{shown}: the store is kept in SQLite alone; expected a path or sqlite:///PATH, without options")
    if not url.database or url.database == ":memory:":
        raise RootError(f"{where}: a store in memory would lose every job; name a file")
    return Path(url.database).resolve()


def _make_engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=_IDLE_CONNECTIONS,
        max_overflow=-1,
        connect_args={"timeout": BUSY_SECONDS},
    )
    event.listen(engine, "connect", _connect)
    event.listen(engine, "begin", _begin)
    return engine


def _connect(connection: Any, _record: object) -> None:
    # The driver would begin a transaction only before the first write, too late to see what was read before it.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={round(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # A transaction that first reads and then wants to write fails if another wrote in between; so writers say so at once.
    is_write = connection.get_execution_options().get(_IS_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
