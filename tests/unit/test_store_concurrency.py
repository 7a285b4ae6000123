"""Several threads and several processes at one store, and processes that die at it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.store_cases import DATABASES, add, check_histories, empty_database, new_job, take
from unified.job_state import JobState
from unified.queue.errors import FencedError
from unified.queue.store import JobStore

S = JobState
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60


@pytest.fixture(params=DATABASES)
def where(request, tmp_path: Path) -> str | Path:
    return empty_database(request.param, tmp_path)


def start(code: str, where: str | Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start ``code`` in a process of its own, which finds the store's place in ``where`` and the arguments in ``sys.argv``."""
    begin = f"import sys\nfrom tests.unit.store_cases import *\nwhere = {str(where)!r}\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def outputs(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    done = [process.communicate(timeout=TIMEOUT)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return done


# Threads


def test_threads_submit_the_same_jobs_once(where):
    with JobStore.open(where) as store, ThreadPoolExecutor(8) as pool:
        submitted = list(pool.map(lambda number: store.submit(new_job(number % 10), by="x"), range(40)))
        assert Counter(each.job.id for each in submitted if each.is_new) == Counter(row.id for row in store.jobs())
        assert len(store.jobs()) == 10
        check_histories(store)


def test_threads_take_each_job_once(where):
    def try_to_take(holder: str) -> list[str]:
        taken = []
        for job in jobs:
            try:
                taken.append(take(store, job, holder=holder).id)
            except FencedError:
                continue
        return taken

    with JobStore.open(where) as store, ThreadPoolExecutor(8) as pool:
        jobs = add(store, *range(12))
        taken = dict(zip("abcdefgh", pool.map(try_to_take, "abcdefgh"), strict=True))
        assert sorted(itertools.chain(*taken.values())) == jobs
        for holder, mine in taken.items():
            assert [row.id for row in store.held_by(holder)] == sorted(mine)
        assert {row.epoch for row in store.jobs()} == {1}


def test_readers_see_whole_transactions(where):
    def read(_: int) -> bool:
        return all(len(store.transitions(row.id)) >= 1 for row in store.jobs())

    with JobStore.open(where) as store, ThreadPoolExecutor(6) as pool:
        writes = [pool.submit(add, store, number) for number in range(30)]
        assert all(pool.map(read, range(30)))
        assert [write.result() for write in writes]


# Processes

WORK = """
store = JobStore.open(where)
me, taken = sys.argv[1], 0
add(store, *range(15))
while left := store.unchecked(100):
    try:
        row = take(store, left[0].id, holder=me)
        for state in (S.RUNNING, S.FINISHED):
            row = store.move(row.id, state, old=row.state, epoch=row.epoch, reason="r", by=me, holder=me)
        taken += 1
    except Exception as error:
        if type(error).__name__ != "FencedError":
            raise
store.close()
print(taken)
"""


def test_processes_make_a_store_at_once_and_share_its_jobs(where):
    done = outputs([start(WORK, where, name) for name in "abcd"])
    assert sum(int(taken) for [taken] in done) == 15
    with JobStore.open(where) as store:
        assert store.counts() == {S.FINISHED: 15}
        assert {row.epoch for row in store.jobs()} == {1}
        check_histories(store)


@pytest.mark.parametrize(("point", "is_kept"), [("store.before-commit", False), ("store.committed", True)])
def test_a_commit_is_the_point_of_no_return_for_a_killed_process(where, point, is_kept):
    with JobStore.open(where) as store:
        add(store, 1)
    code = "store = JobStore.open(where)\nadd(store, 2, 3)\n"
    process = start(code, where, UNIFIED_FAULT=f"{point}@2:kill")
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL
    with JobStore.open(where) as store:
        assert [row.id for row in store.jobs()] == ["job-001", "job-002"] + ["job-003"] * is_kept
        check_histories(store)
        add(store, 2, 3)
        assert len(store.jobs()) == 3


def test_a_stopped_holder_is_fenced_when_it_goes_on(where):
    code = """
store = JobStore.open(where)
row = take(store, "job-001", holder="old", seconds=0.01)
print("taken", flush=True)
input()
from unified.queue.errors import FencedError
from unified.queue.records import Progress
late = store.note([Progress(job=row.id, epoch=row.epoch, steps_done=9)], holder="old")
try:
    store.add_checkpoint(checkpoint(row.id, row.epoch, 9), holder="old")
except FencedError:
    print(*late, store.fenced_writes, *store.renew("old", 30))
store.close()
"""
    with JobStore.open(where) as store:
        add(store, 1)
        process = start_with_input(code, where)
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        while not (expired := store.expired()):
            time.sleep(0.005)
        [row] = expired
        store.move(row.id, S.QUEUED, old=S.LOADING, epoch=1, reason="its supervisor is gone", by="new", holder="old")
        take(store, row.id, holder="new")
        assert process.communicate("go\n", timeout=TIMEOUT)[0].split() == ["job-001", "2"]
        assert (store.get(row.id).steps_done, store.get(row.id).epoch, store.checkpoints(row.id)) == (0, 2, [])


def start_with_input(code: str, where: str | Path) -> subprocess.Popen[str]:
    begin = f"import sys\nfrom tests.unit.store_cases import *\nwhere = {str(where)!r}\n"
    command = [sys.executable, "-c", begin + code]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_forked_process_gets_connections_of_its_own(where):
    code = """
store = JobStore.open(where)
add(store, 1)
child = os.fork()
add(store, *range(10, 20) if child else range(20, 30))
if child:
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), len(store.jobs()))
store.close()
"""
    [done] = outputs([start(code, where)])
    assert done == ["0", "21"]
    with JobStore.open(where) as store:
        check_histories(store)
