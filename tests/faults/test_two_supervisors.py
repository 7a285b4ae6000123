"""T3 and T6: one root, and a supervisor that comes back too late, or two at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3

import psutil
import pytest

from tests.faults.models import Tracing
from tests.faults.service import Service, kill, until
from unified.job_state import JobState

FENCED = 5


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "queue", lease_seconds=1.0, heartbeat_seconds=0.2)
    yield service
    service.close()


@pytest.fixture
def calm_service(tmp_path):
    """Nobody is stopped or killed in it, so no lease may run out, however busy the machine is."""
    service = Service(tmp_path / "queue", lease_seconds=30.0, heartbeat_seconds=0.2)
    yield service
    service.close()


def is_stopped(served):
    return psutil.Process(served.process.pid).status() == psutil.STATUS_STOPPED


def has_stopped_outside_a_transaction(service, served):
    """Stop it; on one host nobody could write while it holds SQLite's lock, so then it goes on a little."""
    served.process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(served), "it stops")
    with contextlib.closing(sqlite3.connect(service.queue.root.database, timeout=0, isolation_level=None)) as store:
        try:
            store.execute("BEGIN IMMEDIATE")
            store.execute("ROLLBACK")
        except sqlite3.OperationalError:
            served.process.send_signal(signal.SIGCONT)
            return False
    return True


def num_loads(service, job):
    return service.states(job).count(JobState.LOADING)


def take_over(service, jobs, **how):
    """Let another host's supervisor find the root, end the jobs, and leave."""
    second = service.begin(host="another", **how)
    service.until_ended(*jobs)
    return second


@pytest.mark.parametrize("point", ["checkpoint.before-row@1", "publish.before-commit@1", "step"])
def test_a_supervisor_that_was_stopped_for_longer_than_its_lease_changes_nothing_any_more(service, point):
    jobs = [service.submit(f"job-{index}", steps=26 + index, step_seconds=0.02) for index in (0, 1)]
    first = service.begin(fault="" if point == "step" else f"{point}:hold")
    if point == "step":
        until(lambda: all(service.row(job).steps_done >= 10 for job in jobs), "both have begun")
        kill(first.forked(), signal.SIGSTOP)
    else:
        until(first.held.exists, f"it comes to {point}: {first.said}")
    until(lambda: has_stopped_outside_a_transaction(service, first), "it stops between two writes")
    first.held.unlink(missing_ok=True)
    service.queue.root.lock.unlink()
    second = take_over(service, jobs)
    before = {job: service.queue.store.transitions(job) for job in jobs}
    kill([psutil.Process(first.process.pid), *first.forked()], signal.SIGCONT)
    assert first.wait() == FENCED, first.said
    assert "fenced" in first.said
    assert before == {job: service.queue.store.transitions(job) for job in jobs}
    service.check_finished(
        *jobs
    )  # while the second serves: what a worker of the first still writes, somebody has to clear away
    assert second.end() == 0, second.said
    assert max(num_loads(service, job) for job in jobs) == 2


def test_without_a_lock_the_epochs_alone_refuse_late_writes(service):
    """It is not fenced, as it goes by no lock: it lets go of what it has lost, and goes on with what is new."""
    [job] = jobs = [service.submit("job", steps=26, step_seconds=0.02)]
    first = service.begin(fault="publish.before-commit:hold", has_lock=False)
    until(first.held.exists, f"it comes to the end of a job: {first.said}")
    until(lambda: has_stopped_outside_a_transaction(service, first), "it stops between two writes")
    first.held.unlink()
    second = take_over(service, jobs, has_lock=False)
    before = service.queue.store.transitions(job)
    assert second.end() == 0, second.said
    first.process.send_signal(signal.SIGCONT)
    again = service.submit("again", steps=20)
    until(lambda: service.row(again).state is JobState.FINISHED, "the first goes on")
    assert service.queue.store.transitions(job) == before
    counters = until(lambda: json.loads(service.queue.root.status.read_text())["counters"], "it says how it is")
    assert first.end() == 0, first.said
    status = service.queue.root.read_status()
    assert status["pid"] == first.process.pid
    assert status["counters"]["fenced_writes"] >= 1, counters
    assert "came too late" in first.said
    service.check_finished(job, again)


def test_a_second_supervisor_names_the_first_and_leaves(service):
    first = service.begin()
    second = service.start()
    assert second.wait() == 1
    assert f"has a supervisor already: process {first.process.pid}" in second.said
    job = service.submit("job", steps=20)
    service.served.remove(second)
    service.until_ended(job)
    service.check_finished(job)
    assert first.end() == 0, first.said


def test_two_supervisors_without_a_lock_share_the_jobs_and_train_none_twice(calm_service, tmp_path):
    service = calm_service
    pair = [service.begin(has_lock=False, host=host) for host in ("one", "other")]
    jobs = []
    for index in range(6):
        trace = tmp_path / f"trace-{index}"
        jobs.append(service.submit(f"job-{index}", Tracing, steps=30 + index, step_seconds=0.02, trace=trace))
    for index in range(4):  # and both take in what is dropped
        source = service.source(f"dropped-{index}", steps=20)
        shutil.copytree(source, service.queue.root.incoming / f".dropped-{index}")
        (service.queue.root.incoming / f".dropped-{index}").rename(service.queue.root.incoming / f"dropped-{index}.job")
    until(lambda: len(service.queue.store.jobs()) == 10, "all are taken in")
    everybody = [row.id for row in service.queue.store.jobs()]
    service.until_ended(*everybody)
    assert [served.end() for served in pair] == [0, 0], [served.said for served in pair]
    service.check_finished(*everybody)
    for job in everybody:
        assert num_loads(service, job) == 1, [str(move) for move in service.queue.store.transitions(job)]
    for index in range(6):
        num_steps = len((tmp_path / f"trace-{index}").read_text().splitlines())
        assert 30 + index <= num_steps <= 30 + index + 2 * 4  # beside its training: trial steps of the check
    assert all("Traceback" not in served.said for served in pair), [served.said for served in pair]
