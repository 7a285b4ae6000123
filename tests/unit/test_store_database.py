"""What SQLite is asked to do: durability, errors of the disk, query plans, and where it may not be."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from tests.unit.store_cases import add, bring
from unified.job_state import JobState
from unified.queue.errors import RootError
from unified.queue.mounts import file_system, network_file_system
from unified.queue.store import JobStore

S = JobState
ROOT = Path(__file__).resolve().parents[2]

MOUNTS = r"""sysfs /sys sysfs rw 0 0
/dev/vda / ext4 rw 0 0
tmpfs /home tmpfs rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
//nas/lab /mnt/the\040lab cifs rw 0 0
/dev/vdb /home/ada/local xfs rw 0 0
host:/x /srv fuse.sshfs rw 0 0
broken
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with JobStore.open(tmp_path / "store.db") as store:
        yield store


@pytest.mark.parametrize(
    ("path", "kind", "is_network"),
    [
        ("/root/queue/store.db", "ext4", False),
        ("/home/ada/queue", "nfs4", True),
        ("/homes/queue", "ext4", False),
        ("/home/ada/local/q", "xfs", False),
        ("/mnt/the lab/q", "cifs", True),
        ("/srv/deep/er", "fuse.sshfs", True),
    ],
)
def test_a_network_file_system_is_told_from_a_local_one(tmp_path, path, kind, is_network):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert file_system(Path(path), mounts) == kind
    assert network_file_system(Path(path), mounts) == (kind if is_network else None)


def test_where_nobody_can_tell_nothing_is_refused(tmp_path):
    assert network_file_system(tmp_path, tmp_path / "missing") is None
    assert file_system(Path("/")) is not None


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sqlite://", "a store in memory would lose every job"),
        ("sqlite:///:memory:", "a store in memory would lose every job"),
        ("postgresql://ada:secret@db/queue", r"postgresql://ada:\*\*\*@db/queue: the store is kept in SQLite alone"),
        ("sqlite:////tmp/x.db?mode=ro", "without options"),
        ("://", "is no database URL"),
    ],
)
def test_other_databases_are_refused(where, message):
    with pytest.raises(RootError, match=message):
        JobStore.open(where)


def test_a_url_and_a_path_are_the_same_store(store, tmp_path):
    add(store, 1)
    for where in (f"sqlite:///{tmp_path}/store.db", str(tmp_path / "store.db")):
        with JobStore.open(where) as other:
            assert other.jobs() == store.jobs()


def test_a_store_that_cannot_be_opened_says_so(tmp_path):
    for path in (tmp_path / "no" / "folder" / "store.db", tmp_path):
        with pytest.raises(RootError, match="cannot be used as the store: unable to open database file"):
            JobStore.open(path)


def test_every_commit_is_written_ahead_and_synchronised(tmp_path):
    statements = []
    pragmas = {}

    def keep(connection, cursor, statement, *_):
        statements.append(statement)
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout"):
            pragmas[name] = cursor.connection.execute(f"PRAGMA {name}").fetchone()[0]

    event.listen(Engine, "before_cursor_execute", keep)
    try:
        with JobStore.open(tmp_path / "store.db") as store:
            statements.clear()
            add(store, 1)
            store.jobs()
    finally:
        event.remove(Engine, "before_cursor_execute", keep)
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    assert [each for each in statements if each.startswith("BEGIN")] == ["BEGIN IMMEDIATE", "BEGIN"]


def test_no_question_that_is_asked_often_reads_the_whole_table(store, tmp_path):
    asked: list[tuple[str, tuple[object, ...]]] = []

    def keep(connection, cursor, statement, parameters, *_):
        asked.append((statement, parameters))

    bring(store, 1, S.RUNNING)
    cursor = [bring(store, number, S.QUEUED) for number in (2, 3)] and store.page(limit=1).cursor
    event.listen(Engine, "before_cursor_execute", keep)
    try:
        for states in ((), (S.QUEUED,), (S.QUEUED, S.RUNNING)):
            for user in (None, "ada"):
                store.page(states=states, user=user, cursor=cursor)
        store.page(newest_first=True)
        store.waiting(10), store.unchecked(10), store.counts(), store.counts("ada"), store.resolve("job-001"), store.due()
        store.bytes_by_user(), store.expired(), store.holders(), store.held_by("h"), store.pending(), store.renew("h", 1)
        store.transitions("job-001"), store.checkpoints("job-001"), store.get("job-001"), store.jobs(states=(S.RUNNING,))
    finally:
        event.remove(Engine, "before_cursor_execute", keep)
    connection = sqlite3.connect(tmp_path / "store.db")
    for statement, parameters in asked:
        if not statement.startswith("BEGIN"):
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert not [step for step in plan if step.startswith("SCAN") and "INDEX" not in step], (statement, plan)
    connection.close()
    assert len(asked) > 30


def run(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own, with a store open at ``path``."""
    begin = f"from tests.unit.store_cases import *\npath = {str(path)!r}\nstore = JobStore.open(path)\n"
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
accepted = 0
try:
    while True:
        add(store, accepted, spec={"text": "x" * 5000})
        accepted += 1
except OSError as error:
    print(accepted, error.errno, len(store.jobs()))
"""


def test_a_file_that_cannot_grow_any_more_is_an_error_of_the_disk_and_loses_nothing(tmp_path):
    path = tmp_path / "store.db"
    done = run(LIMITED, path)
    assert done.returncode == 0, done.stderr
    accepted, number, listed = map(int, done.stdout.split())
    assert number in {errno.ENOSPC, errno.EIO}
    assert accepted == listed > 3
    with JobStore.open(path) as store:
        assert len(store.jobs()) == accepted
        add(store, 999)  # there is room again


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS"])
def test_an_error_of_the_disk_before_the_commit_undoes_the_write(tmp_path, name):
    code = """
try:
    add(store, 1)
except OSError as error:
    print(error.errno, store.jobs(), len(store.transitions("job-001")))
"""
    JobStore.open(tmp_path / "store.db").close()
    done = run(code, tmp_path / "store.db", UNIFIED_FAULT=f"store.before-commit:{name}")
    assert done.stdout.split() == [str(getattr(errno, name)), "[]", "0"], done.stderr


def test_a_store_that_may_not_be_written_says_so(tmp_path):
    path = tmp_path / "store.db"
    JobStore.open(path).close()
    code = """
from sqlalchemy import event, Engine
event.listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=ON"))
store.close()
store = JobStore.open(path)
try:
    store.check()
except OSError as error:
    print(error.errno)
"""
    done = run(code, path)
    assert done.stdout.split() == [str(errno.EROFS)], done.stderr
