"""Stores to test, jobs to put in, and a clock that only tests turn. Free of torch: spawned processes import it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import create_engine

from unified.job_state import ENDED, LEGAL_MOVES, RESIDENT, JobState
from unified.queue.clock import Clock
from unified.queue.records import CheckpointRow, JobRow, NewJob
from unified.queue.schema import METADATA
from unified.queue.store import JobStore

S = JobState

#: Every law holds on each of these; further ones are URLs of databases that may be emptied, separated by spaces.
DATABASES = ("sqlite", *os.environ.get("UNIFIED_TEST_DATABASES", "").split())

NEW = NewJob(id="lenet-1", name="lenet", user="ada", spec={"epochs": 2}, content_sha256="aa", num_bytes=100)

#: The shortest way to each state.
WAYS: dict[JobState, tuple[JobState, ...]] = {
    S.QUEUED: (),
    S.LOADING: (S.LOADING,),
    S.RUNNING: (S.LOADING, S.RUNNING),
    S.PAUSING: (S.LOADING, S.PAUSING),
    S.PAUSED: (S.PAUSED,),
    S.CANCELLING: (S.LOADING, S.CANCELLING),
    S.RETRY_WAIT: (S.LOADING, S.RETRY_WAIT),
    S.FINISHED: (S.LOADING, S.RUNNING, S.FINISHED),
    S.FAILED: (S.FAILED,),
    S.DEAD: (S.LOADING, S.DEAD),
    S.CANCELLED: (S.CANCELLED,),
}


class TurnedClock:
    """Clocks that stand still until a test turns them."""

    def __init__(self) -> None:
        self.wall, self.monotonic, self.boot_id = 1_800_000_000.0, 5_000.0, "first boot"

    @property
    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, monotonic=lambda: self.monotonic, boot_id=lambda: self.boot_id)

    def turn(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def empty_database(name: str, folder: Path) -> str | Path:
    """Return where a database of kind ``name`` is, with nothing in it."""
    if name == "sqlite":
        return folder / "store.db"
    engine = create_engine(name)
    METADATA.drop_all(engine)
    engine.dispose()
    return name


def new_job(number: int, **changes: object) -> NewJob:
    return replace(NEW, id=f"job-{number:03}", content_sha256=f"{number:064x}", **changes)


def add(store: JobStore, *numbers: int, **changes: object) -> list[str]:
    return [store.submit(new_job(number, **changes), by="ada").job.id for number in numbers]


def take(store: JobStore, job: str, *, holder: str = "h1", slot: int = 0, seconds: float = 30.0) -> JobRow:
    return store.lease(job, holder=holder, slot=slot, seconds=seconds, reason="its turn", by="supervisor")


def go(store: JobStore, job: str, *states: JobState, **changes: object) -> JobRow:
    """Move a job through ``states``, from wherever it is."""
    row = store.get(job)
    for state in states:
        if state is S.LOADING:
            row = take(store, job)
        else:
            row = store.move(job, state, old=row.state, epoch=row.epoch, reason=f"to {state}", by="test", **changes)
    return row


def bring(store: JobStore, number: int, state: JobState) -> JobRow:
    """Submit a job and bring it to ``state``."""
    [job] = add(store, number)
    return go(store, job, *WAYS[state])


def checkpoint(job: str, epoch: int, step: int) -> CheckpointRow:
    path = f"jobs/{job}/ckpt/{epoch}-{step}.safetensors"
    return CheckpointRow(job=job, epoch=epoch, step=step, path=path, sha256="cc", num_bytes=10, time=1.0)


def check_histories(store: JobStore) -> None:
    """Every job came to where it is by legal moves alone, each with a reason, and each lease was an epoch of its own."""
    for row in store.jobs():
        state, epoch = None, 0
        for move in store.transitions(row.id):
            assert move.old == state
            assert move.new in (LEGAL_MOVES[state] if state is not None else {S.QUEUED})
            assert move.epoch == epoch + (move.new is S.LOADING)
            assert move.reason.strip()
            state, epoch = move.new, move.epoch
        assert (row.state, row.epoch) == (state, epoch)
        check_row(row)


def check_row(row: JobRow) -> None:
    """A job has a lease exactly if it is on a slot, and an end exactly if it has ended."""
    lease = (row.holder, row.lease_expires, row.boot_id, row.slot)
    assert [value is not None for value in lease] == [row.state in RESIDENT] * 4
    assert (row.finished_time is not None) == (row.state in ENDED)
    assert row.not_before is None or row.state is S.RETRY_WAIT


def walk(store: JobStore, limit: int, **query: object) -> Iterator[Sequence[JobRow]]:
    """Yield all pages, one after another."""
    cursor = None
    while True:
        page = store.page(limit=limit, cursor=cursor, **query)
        yield page.jobs
        cursor = page.cursor
        if cursor is None:
            return
