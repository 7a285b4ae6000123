"""What is known of variants, in an SQLite file: which there are, what they score, what they take on which machine.

Commits are on disk when they return (write-ahead log, ``synchronous=FULL``). Readers see the state of one moment and neither
wait for a writer nor make one wait. Every change gives the whole a new version, a number that only grows.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import ServingError
from serving.hardware import Hardware
from serving.profiles import Known, Profile, scores_from_json
from serving.records import Family, Variant

SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0  #: for which a writer waits for another one

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE family (name TEXT PRIMARY KEY, content TEXT NOT NULL, data TEXT);
CREATE TABLE variant (
    id TEXT PRIMARY KEY, family TEXT NOT NULL REFERENCES family, name TEXT NOT NULL, content TEXT NOT NULL,
    place INTEGER NOT NULL, UNIQUE (family, name)
);
CREATE TABLE score (
    variant TEXT NOT NULL REFERENCES variant ON DELETE CASCADE, data TEXT NOT NULL, content TEXT NOT NULL, problem TEXT,
    PRIMARY KEY (variant, data)
);
CREATE TABLE hardware (fingerprint TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE profile (
    variant TEXT NOT NULL REFERENCES variant ON DELETE CASCADE, hardware TEXT NOT NULL REFERENCES hardware,
    measured REAL NOT NULL, content TEXT NOT NULL, PRIMARY KEY (variant, hardware)
);
"""

Row = tuple[Any, ...]
Made = TypeVar("Made")


class Metadata:
    """An open database. Threads may share it; a forked process may not and opens its own.

    It reads by one connection and writes by another, so that a thread that waits to write holds up none that reads. What is
    read while writing is the state before.
    """

    def __init__(self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        self.path = path
        self._reader, self._writer = reader, writer
        self._reading, self._writing = threading.RLock(), threading.RLock()

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Metadata:
        """Open a database.

        Args:
            path: The SQLite file.
            create: Whether to make it if it is missing, or was left unfinished.

        Raises:
            ServingError: If it is missing, damaged, of something else or of a newer version, or cannot be written.
        """
        with _spelled(path), ExitStack() as stack:
            writer, reader = (stack.enter_context(closing(_connect(path, create=create))) for _ in range(2))
            if create:
                _create(writer)
            found = cls(path, reader, writer)
            found._check()
            stack.pop_all()
        return found

    def close(self) -> None:
        """Close it."""
        with self._reading, self._writing:
            self._reader.close()
            self._writer.close()

    @property
    def version(self) -> int:
        """Grows with each change that anybody has made."""
        return self._number("version")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other writers out, those of other processes too; nothing is changed if anything is raised."""
        with self._writing, _spelled(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.rollback()
                raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be alone, and at the end there is one version more."""
        with self.alone():
            yield
            self._write("UPDATE meta SET value = value + 1 WHERE key = 'version'")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the database all the time."""
        with self._reading, _spelled(self.path):
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.rollback()

    def families(self) -> dict[str, Family]:
        """Return all families by name, the oldest first."""
        rows = self._rows("SELECT name, content FROM family ORDER BY rowid")
        families = [self._made(Family.from_json, content, f"family {name!r}") for name, content in rows]
        self._check_keys([name for name, _ in rows], [family.name for family in families])
        return {family.name: family for family in families}

    def add_family(self, family: Family) -> None:
        """Add a family; to be called while writing."""
        self._write("INSERT INTO family (name, content) VALUES (?, ?)", family.name, json.dumps(family.to_json()))

    def variants(self, family: str | None = None) -> tuple[Variant, ...]:
        """Return the variants of one family, or of all, in the order in which they were added."""
        return self._variants("SELECT id, family, content FROM variant WHERE ?1 IS NULL OR family = ?1 ORDER BY place", family)

    def variant(self, key: str) -> Variant | None:
        """Return the variant of an id, None if there is none."""
        return next(iter(self._variants("SELECT id, family, content FROM variant WHERE id = ?", key)), None)

    def add_variant(self, variant: Variant) -> None:
        """Add a variant; to be called while writing."""
        self._write(
            "INSERT INTO variant SELECT ?, ?, ?, ?, 1 + COALESCE(MAX(place), 0) FROM variant",
            variant.id,
            variant.family,
            variant.name,
            json.dumps(variant.to_json()),
        )

    def remove_variant(self, key: str) -> None:
        """Remove a variant and what was measured of it; to be called while writing."""
        self._write("DELETE FROM variant WHERE id = ?", key)

    def scores(self, family: str, data: str) -> dict[str, dict[str, float] | str]:
        """Return by id what variants score on some data, or why they have no score."""
        rows = self._rows(
            "SELECT id, score.content, problem FROM variant JOIN score ON variant = id WHERE family = ? AND data = ?",
            family,
            data,
        )
        return {key: problem or self._made(scores_from_json, content, f"scores of {key}") for key, content, problem in rows}

    def put_scores(self, key: str, data: str, found: Mapping[str, float] | str) -> None:
        """Keep what a variant scores on some data, or why it has no score; to be called while writing."""
        problem = found if isinstance(found, str) else None
        content = json.dumps({} if isinstance(found, str) else dict(found))
        # it may have been removed meanwhile
        self._write("INSERT OR REPLACE INTO score SELECT id, ?, ?, ? FROM variant WHERE id = ?", data, content, problem, key)

    def data(self, family: str) -> str | None:
        """Return the digest of the data by whose scores variants are chosen, None if nothing was scored yet."""
        return self._rows("SELECT data FROM family WHERE name = ?", family)[0][0]

    def use_data(self, family: str, data: str) -> None:
        """Choose variants by their scores on these data from now on; to be called while writing."""
        self._write("UPDATE family SET data = ? WHERE name = ?", data, family)

    def profiles(self, family: str, hardware: str) -> dict[str, Profile]:
        """Return by id what was measured on a machine, by its fingerprint."""
        rows = self._rows(
            "SELECT id, profile.content FROM variant JOIN profile ON variant = id WHERE family = ? AND hardware = ?",
            family,
            hardware,
        )
        return {key: self._made(Profile.from_json, content, f"profile of {key}") for key, content in rows}

    def put_profile(self, key: str, hardware: Hardware, profile: Profile) -> None:
        """Keep what was measured of a variant; to be called while writing."""
        fingerprint = hardware.fingerprint
        self._write("INSERT OR IGNORE INTO hardware VALUES (?, ?)", fingerprint, json.dumps(hardware.to_json()))
        self._write(
            "INSERT OR REPLACE INTO profile SELECT id, ?, ?, ? FROM variant WHERE id = ?",
            fingerprint,
            profile.measured,
            json.dumps(profile.to_json()),
            key,
        )

    def hardware(self, family: str | None = None) -> dict[str, Hardware]:
        """Return by fingerprint the machines that variants were profiled on, the latest first."""
        rows = self._rows(
            "SELECT fingerprint, hardware.content FROM hardware JOIN profile ON hardware = fingerprint JOIN variant ON"
            " variant = id WHERE ?1 IS NULL OR family = ?1 GROUP BY fingerprint ORDER BY MAX(measured) DESC",
            family,
        )
        return {key: self._made(Hardware.from_json, content, f"hardware {key}") for key, content in rows}

    def known(self, family: str, hardware: str) -> list[Known]:
        """Return all variants with their scores on the data in use and their profile; to be called while reading."""
        scores, profiles = self.scores(family, self.data(family) or ""), self.profiles(family, hardware)
        return [
            Known(
                variant=variant,
                scores=None if isinstance(found := scores.get(variant.id), str) else found,
                problem=found if isinstance(found, str) else None,
                profile=profiles.get(variant.id),
            )
            for variant in self.variants(family)
        ]

    def _rows(self, statement: str, *values: object) -> list[Row]:
        with self._reading, _spelled(self.path):
            return self._reader.execute(statement, values).fetchall()

    def _write(self, statement: str, *values: object) -> None:
        with self._writing, _spelled(self.path):
            self._writer.execute(statement, values)

    def _number(self, key: str) -> int:
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        if not rows or not isinstance(rows[0][0], int):
            raise ServingError(f"{self.path} is damaged (it has no {key}); build the store again")
        return rows[0][0]

    def _variants(self, statement: str, *values: object) -> tuple[Variant, ...]:
        rows = self._rows(statement, *values)
        variants = [self._made(Variant.from_json, content, f"variant {key}") for key, _, content in rows]
        self._check_keys([(key, family) for key, family, _ in rows], [(found.id, found.family) for found in variants])
        return tuple(variants)

    def _check_keys(self, keys: Sequence[object], contents: Sequence[object]) -> None:
        """Refuse rows that are filed under other names than theirs: names become paths, and only contents are checked."""
        for key, content in zip(keys, contents, strict=True):
            if key != content:
                raise ServingError(f"{self.path}: {content!r} is filed under {key!r}; build the store again")

    def _made(self, make: Callable[[Any], Made], content: str, what: str) -> Made:
        try:
            return make(json.loads(content))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ServingError(f"{self.path}: {what} is damaged ({error!r}); build the store again") from None

    def _check(self) -> None:
        if not {"meta", "family", "variant"} <= _tables(self._reader):
            raise ServingError(f"{self.path} is no store of variants; give the folder that 'unified variants build' made")
        found = self._number("schema_version")
        if found != SCHEMA_VERSION:
            raise ServingError(
                f"{self.path} is of schema version {found}, and this version of unified knows {SCHEMA_VERSION};"
                f" {'use a newer unified' if found > SCHEMA_VERSION else 'build the store again'}"
            )


def _connect(path: Path, *, create: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables if there are none at all: another process may make them at the same time."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal" and not _tables(connection):
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    if not _tables(connection):
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('schema_version', ?), ('version', 0)", (SCHEMA_VERSION,))
    connection.execute("COMMIT")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


_HINTS = {
    sqlite3.SQLITE_NOTADB: "is no SQLite database; give the folder that 'unified variants build' made",
    sqlite3.SQLITE_CORRUPT: "is damaged; build the store again, or copy it again",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; give a folder that exists and can be written",
    sqlite3.SQLITE_READONLY: "cannot be written; make it writable, or copy the store to where it is",
    sqlite3.SQLITE_BUSY: f"has been locked by another process for {BUSY_SECONDS:g} seconds; try again when that is done",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk fails",
}


@contextmanager
def _spelled(path: Path) -> Iterator[None]:
    """Say in words what SQLite says in codes."""
    try:
        yield
    except sqlite3.Error as error:
        hint = _HINTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "cannot be used")
        raise ServingError(f"{os.fspath(path)} {hint} (SQLite: {error})") from error
