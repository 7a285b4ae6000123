"""What retention removes and, more so, what it keeps: with a real store and real folders, at times of our own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.job_state import ENDED, RESIDENT, JobState
from unified.queue.config import ServiceConfig
from unified.queue.errors import UnknownJobError
from unified.queue.records import CheckpointRow, JobRow, NewJob
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.service.leftovers import is_lost_checkpoint, is_lost_result
from unified.service.retention import DiskState, disk_state, sweep

DAY = 86_400.0
MONTH = ServiceConfig(keep_results_days=30, keep_rejected_days=14)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.make(tmp_path / "root")


@pytest.fixture
def store(root: Root) -> Iterator[JobStore]:
    store = JobStore.open(root.database)
    yield store
    store.close()


def submit(root: Root, store: JobStore, job: str) -> JobRow:
    """Accept a job, with a file in each of its folders."""
    for folder in (root.spec(job), root.checkpoints(job), root.result(job), root.dead(job), root.path / "tensorboard" / job):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_text(job)
    return store.submit(NewJob(id=job, name=job, user="ann", spec={}, content_sha256="0" * 64), by="ann").job


def fail(store: JobStore, job: str) -> None:
    row = store.get(job)
    store.move(job, JobState.FAILED, old=row.state, epoch=row.epoch, reason="invalid", by="supervisor")


def load(store: JobStore, job: str) -> JobRow:
    row = store.lease(job, holder="me", slot=0, seconds=30, reason="placed", by="supervisor")
    return store.move(job, JobState.RUNNING, old=row.state, epoch=row.epoch, reason="loaded", by="supervisor", holder="me")


def checkpoint(root: Root, store: JobStore, job: str, epoch: int, step: int, *, has_row: bool) -> Path:
    path = root.checkpoints(job) / f"{epoch:06d}-{step:012d}.json"
    path.write_text("{}")
    path.with_suffix(".pt").write_text("state")
    row = CheckpointRow(job=job, epoch=epoch, step=step, path=root.relative(path), sha256="0", num_bytes=7, time=time.time())
    if has_row:
        store.add_checkpoint(row, holder="me")
    return path


def in_days(days: float) -> float:
    return time.time() + days * DAY


def names(root: Root, folder: str) -> list[str]:
    return sorted(path.name for path in (root.path / folder).iterdir())


def test_jobs_that_ended_long_ago_go_with_all_their_files(root: Root, store: JobStore) -> None:
    for job in ("old", "waiting"):
        submit(root, store, job)
    fail(store, "old")
    assert sweep(root, store, MONTH, in_days(29)) == []
    assert len(sweep(root, store, MONTH, in_days(31))) == 1
    with pytest.raises(UnknownJobError):
        store.get("old")
    for folder in ("jobs", "results", "dead", "tensorboard"):
        assert names(root, folder) == ["waiting"]
    assert names(root, ".removed") == []
    assert store.get("waiting").state is JobState.QUEUED


def test_an_age_of_0_keeps_everything(root: Root, store: JobStore) -> None:
    submit(root, store, "old")
    fail(store, "old")
    (root.rejected / "entry").mkdir()
    keep = ServiceConfig(keep_results_days=0, keep_rejected_days=0)
    assert sweep(root, store, keep, in_days(10_000)) == []
    assert store.get("old").state is JobState.FAILED


@pytest.mark.parametrize("was_forgotten", [False, True])
def test_a_removal_that_a_crash_interrupted_is_finished(root: Root, store: JobStore, was_forgotten: bool) -> None:
    row = submit(root, store, "old")
    fail(store, "old")
    trash = root.path / ".removed" / f"{row.submit_time!r} old"
    trash.mkdir(parents=True)
    root.job("old").rename(trash / "job")
    if was_forgotten:
        store.forget("old")
    sweep(root, store, MONTH, in_days(31 if not was_forgotten else 0))
    assert names(root, ".removed") == []
    assert not root.job("old").exists()
    with pytest.raises(UnknownJobError):
        store.get("old")


def test_a_job_that_was_requeued_during_its_removal_gets_its_files_back(root: Root, store: JobStore) -> None:
    row = submit(root, store, "old")
    trash = root.path / ".removed" / f"{row.submit_time!r} old"
    trash.mkdir(parents=True)
    root.job("old").rename(trash / "job")
    sweep(root, store, MONTH, in_days(31))
    assert (root.spec("old") / "file").read_text() == "old"
    assert names(root, ".removed") == []
    assert store.get("old").state is JobState.QUEUED


def test_a_new_job_of_a_removed_ones_id_is_another_job(root: Root, store: JobStore) -> None:
    trash = root.path / ".removed" / "123.5 old"
    (trash / "job").mkdir(parents=True)
    submit(root, store, "old")
    fail(store, "old")
    sweep(root, store, MONTH, in_days(1))
    assert store.get("old").state is JobState.FAILED
    assert (root.spec("old") / "file").exists()
    assert names(root, ".removed") == []


def test_rejected_entries_and_uploads_go_by_age(root: Root, store: JobStore) -> None:
    (root.rejected / "entry").mkdir()
    (root.rejected / "entry" / "reason.json").write_text("{}")
    (root.rejected / "lone.json").write_text("{}")
    (root.rejected / "link").symlink_to(root.data)
    (root.uploads / "abc").write_text("x")
    os.utime(root.rejected / "entry", (0, 0))  # as copied by 'cp -p': what counts is when it came here
    assert sweep(root, store, MONTH, in_days(13)) == []
    assert len(sweep(root, store, MONTH, in_days(15))) == 4
    assert names(root, "rejected") + names(root, "uploads") == []
    assert root.data.is_dir()


def test_what_is_under_construction_goes_when_it_has_not_changed_for_a_day(root: Root, store: JobStore) -> None:
    submit(root, store, "a")
    for folder in (root.incoming, root.files, root.job("a"), root.checkpoints("a"), root.uploads, root.path):
        (folder / ".tmp-1" / "deep").mkdir(parents=True)
    (root.incoming / "ready.job").mkdir()
    (root.incoming / ".other").mkdir()
    assert sweep(root, store, MONTH, in_days(0.9)) == []
    slow = root.incoming / ".tmp-1" / "deep" / "file"
    slow.write_text("still being copied")
    os.utime(slow, (in_days(1), in_days(1)))
    assert len(sweep(root, store, MONTH, in_days(1.1))) == 5
    assert names(root, "incoming") == [".other", ".tmp-1", "ready.job"]
    assert not list(root.path.rglob("ckpt/.tmp-*"))


def test_a_shared_file_goes_only_without_links_and_not_while_it_is_new(root: Root, store: JobStore) -> None:
    submit(root, store, "a")
    for name in ("used", "unused"):
        (root.files / name).write_text(name)
    os.link(root.files / "used", root.spec("a") / "data.pt")
    assert sweep(root, store, MONTH, in_days(0.9)) == []
    assert len(sweep(root, store, MONTH, in_days(1.1))) == 1
    assert names(root, "files") == ["used"]
    fail(store, "a")
    sweep(root, store, MONTH, in_days(31))
    assert names(root, "files") == []


def test_checkpoints_of_lost_epochs_go_and_current_ones_stay(root: Root, store: JobStore) -> None:
    submit(root, store, "a")
    load(store, "a")
    lost = checkpoint(root, store, "a", 1, 5, has_row=False)
    current = [checkpoint(root, store, "a", 1, step, has_row=True) for step in (10, 20)]
    under_way = checkpoint(root, store, "a", 1, 30, has_row=False)
    root.working_result("a", 0).mkdir()
    root.working_result("a", 1).mkdir()
    assert len(sweep(root, store, MONTH, time.time())) == 3
    assert not lost.exists()
    assert not lost.with_suffix(".pt").exists()
    assert all(path.exists() and path.with_suffix(".pt").exists() for path in [*current, under_way])
    assert root.working_result("a", 1).exists()
    assert not root.working_result("a", 0).exists()
    row = store.get("a")
    store.move("a", JobState.QUEUED, old=row.state, epoch=row.epoch, reason="lost", by="supervisor", holder="me")
    assert len(sweep(root, store, MONTH, time.time())) == 3
    assert all(path.exists() for path in current)
    assert not under_way.exists()
    assert not root.working_result("a", 1).exists()


def test_folders_of_jobs_that_the_store_does_not_know_are_left_alone(root: Root, store: JobStore) -> None:
    path = root.checkpoints("stranger") / "000001-000000000001.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    sweep(root, store, MONTH, in_days(1000))
    assert path.exists()


def test_what_cannot_be_removed_does_not_keep_the_rest(root: Root, store: JobStore, caplog, monkeypatch) -> None:
    (root.rejected / "a").mkdir()
    (root.rejected / "b").mkdir()
    rmtree = shutil.rmtree

    def refuse(path: Path, *args: Any) -> None:
        if path.name == "a":
            raise PermissionError(1, "not permitted")
        rmtree(path, *args)

    monkeypatch.setattr("shutil.rmtree", refuse)
    assert len(sweep(root, store, MONTH, in_days(15))) == 1
    assert names(root, "rejected") == ["a"]
    assert "cannot be removed" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_came_without_leave_to_write_go_too(root: Root, store: JobStore) -> None:
    (root.rejected / "entry" / "deep").mkdir(parents=True)
    (root.rejected / "entry" / "deep" / "file").write_text("x")
    for folder in (root.rejected / "entry" / "deep", root.rejected / "entry"):
        folder.chmod(0)
    assert len(sweep(root, store, MONTH, in_days(15))) == 1
    assert names(root, "rejected") == []


def test_a_second_sweep_finds_nothing_left_to_do(root: Root, store: JobStore) -> None:
    submit(root, store, "a")
    fail(store, "a")
    (root.rejected / "entry").mkdir()
    assert sweep(root, store, MONTH, in_days(50))
    assert sweep(root, store, MONTH, in_days(50)) == []


def test_the_disk_is_low_by_the_limit_of_the_settings(root: Root) -> None:
    assert not disk_state(root, ServiceConfig(min_free_bytes=0)).is_low
    state = disk_state(root, ServiceConfig(min_free_bytes=1 << 62))
    assert state.is_low
    assert not state.has_room
    assert str(state).startswith("disk-full: ")


def test_between_low_and_room_lies_a_quarter() -> None:
    found = [DiskState(free_bytes=free, min_free_bytes=100) for free in (99, 100, 124, 125)]
    assert [state.is_low for state in found] == [True, False, False, False]
    assert [state.has_room for state in found] == [False, False, False, True]


def test_a_disk_without_room_for_names_is_full_too() -> None:
    state = DiskState(free_bytes=1 << 40, min_free_bytes=1, free_files=3)
    assert state.is_low
    assert "room for 3 more files" in str(state)


keys = st.tuples(st.integers(1, 4), st.integers(0, 9))


def row_of(state: JobState, epoch: int) -> JobRow:
    nothing: dict[str, Any] = dict.fromkeys(JobRow.__dataclass_fields__)
    return JobRow(**nothing | {"id": "a", "state": state, "epoch": epoch})


@given(key=keys, state=st.sampled_from(JobState), epoch=st.integers(0, 4), rows=st.sets(keys, max_size=3))
def test_a_checkpoint_that_is_or_may_become_current_is_never_lost(key, state: JobState, epoch: int, rows: set) -> None:
    is_ahead = key >= max(rows, default=key)
    is_later = key[0] > epoch  # of a worker that took the job after its row was read
    is_under_way = state in RESIDENT and key[0] == epoch
    if key in rows or (is_ahead and (is_later or is_under_way)):
        assert not is_lost_checkpoint(key, row_of(state, epoch), rows)


@given(epoch=st.integers(0, 4), state=st.sampled_from(JobState), current=st.integers(0, 4))
def test_a_result_that_is_or_may_become_published_is_never_lost(epoch: int, state: JobState, current: int) -> None:
    is_lost = is_lost_result(epoch, row_of(state, current))
    if epoch > current or (epoch == current and state in RESIDENT | {JobState.FINISHED}):
        assert not is_lost
    if epoch < current or (epoch == current and state in ENDED - {JobState.FINISHED}):
        assert is_lost
