"""Databases that another version wrote: brought up to date with all they hold, or refused and left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from tests.unit.store_cases import TurnedClock, add, check_histories
from unified.job_state import JobState
from unified.queue.database import Database
from unified.queue.errors import RootError, StoreVersionError
from unified.queue.migrations import STEPS, prepare
from unified.queue.schema import VERSION
from unified.queue.store import JobStore

ROOT = Path(__file__).resolve().parents[2]
OLD_VERSIONS = sorted(STEPS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def make_old(path: Path, version: int) -> None:
    dump = ROOT / "tests" / "data" / f"store-version-{version}.sql"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump.read_text())


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def tables(path: Path) -> dict[str, list[dict[str, object]]]:
    """Return each table's rows, without the version."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')] for name in names}
    rows["meta"] = [row for row in rows["meta"] if row["key"] != "schema_version"]
    return rows


def indexes(path: Path, table: str) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", [table]).fetchall()
    return {sql.replace('"', "") for [sql] in found if sql is not None}  # those of keys have none


def shape(path: Path) -> dict[str, object]:
    """Return what the tables, indexes and keys are."""
    engine = create_engine(f"sqlite:///{path}")
    look = inspect(engine)
    found = {
        name: (
            [{**column, "type": str(column["type"])} for column in look.get_columns(name)],
            indexes(path, name),
            look.get_pk_constraint(name),
            sorted(map(str, look.get_foreign_keys(name))),
            look.get_unique_constraints(name),
        )
        for name in look.get_table_names()
    }
    engine.dispose()
    return found


def test_there_is_a_stored_database_of_every_old_version():
    assert list(range(1, VERSION)) == OLD_VERSIONS


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_an_old_database_becomes_a_new_one_with_equal_content(path, tmp_path, version):
    make_old(path, version)
    before = tables(path)
    JobStore.open(path).close()
    JobStore.open(tmp_path / "fresh.db").close()
    after = tables(path)
    assert shape(path) == shape(tmp_path / "fresh.db")
    for name, rows in before.items():
        kept = [{key: row[key] for key in old} for row, old in zip(after[name], rows, strict=True)]
        assert kept == rows


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_the_jobs_of_an_old_database_go_on(path, version):
    make_old(path, version)
    now = TurnedClock()
    with JobStore.open(path, clock=now.clock) as store:
        check_histories(store)
        assert {row.state for row in store.jobs()} == set(JobState)
        assert "job-021" in [row.id for row in store.waiting(100)]
        assert "job-020" in [row.id for row in store.unchecked(100)]
        assert {row.admission is None for row in store.waiting(100)} == {False}
        assert {row.admission is None for row in store.unchecked(100)} == {True}
        running = store.get("job-002")
        assert (running.steps_done, running.loss, running.metrics) == (7, 0.25, {"accuracy": 0.5})
        assert [saved.step for saved in store.checkpoints("job-002")] == [5]
        assert [command.verb for command in store.pending()] == ["pause"]
        assert "job-002" in store.renew("h1", 30)
        add(store, 500)


def test_a_copy_of_the_old_database_stays(path):
    make_old(path, 1)
    before = dump(path)
    JobStore.open(path).close()
    copy = path.with_name("store.db.version-1")
    assert dump(copy) == before
    assert sorted(each.name for each in path.parent.iterdir()) == ["store.db", "store.db.version-1"]


def test_several_that_open_an_old_database_at_once_share_the_work(path):
    make_old(path, 1)
    before = dump(path)
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(JobStore.open, [path] * 6))
    assert {len(store.jobs()) for store in stores} == {13}
    for store in stores:
        store.close()
    assert dump(path.with_name("store.db.version-1")) == before


def test_a_step_that_fails_leaves_the_old_database(path):
    def fail(connection: Connection) -> None:
        connection.execute(text("DELETE FROM checkpoint"))
        connection.execute(text("ALTER TABLE job ADD COLUMN half INTEGER"))
        connection.execute(text("ALTER TABLE no_such_table ADD COLUMN x INTEGER"))

    make_old(path, 1)
    before = dump(path)
    database = Database.open(path)
    with pytest.raises(Exception, match="no such table: no_such_table"):
        prepare(database, {1: fail})
    database.close()
    assert dump(path) == before
    with JobStore.open(path) as store:
        assert len(store.jobs()) == 13


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_a_migration_that_is_killed_leaves_the_old_database(path, version):
    make_old(path, version)
    before = dump(path)
    code = f"from unified.queue.store import JobStore; JobStore.open({str(path)!r})"
    environment = os.environ | {"UNIFIED_FAULT": "store.before-commit:kill"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert dump(path) == before
    with JobStore.open(path) as store:
        assert len(store.jobs()) == 13


def set_version(path: Path, version: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [version])
        connection.commit()


def test_a_newer_database_is_refused_with_both_versions(path):
    with JobStore.open(path) as store:
        add(store, 1)
    set_version(path, str(VERSION + 5))
    before = path.read_bytes()
    with pytest.raises(StoreVersionError, match=rf"has schema version {VERSION + 5}, .* up to {VERSION};"):
        JobStore.open(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["store.db"]


def test_a_database_that_no_step_begins_from_is_refused(path):
    JobStore.open(path).close()
    set_version(path, "0")
    before = path.read_bytes()
    with pytest.raises(StoreVersionError, match=rf"has schema version 0, .* from 1 to {VERSION};"):
        JobStore.open(path)
    assert path.read_bytes() == before


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()


def unversioned(path: Path) -> None:
    JobStore.open(path).close()
    set_version(path, "two")


def text_file(path: Path) -> None:
    path.write_text("dear diary, " * 100)


@pytest.mark.parametrize("make", [other_database, unversioned, text_file])
def test_what_is_no_store_is_refused_and_left_alone(path, make: Callable[[Path], None]):
    make(path)
    before = path.read_bytes()
    with pytest.raises(RootError, match=r"store\.db"):
        JobStore.open(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with JobStore.open(path) as store:
        assert store.jobs() == []
