"""T4, T10, T11 and T12: what a model does in its own step, and that nobody but its owner notices."""

from __future__ import annotations

import pytest

from tests.faults.models import Faulty, Patient
from tests.faults.service import Service, until
from unified.job_state import ENDED, JobState

FAILED, DEAD, RETRY_WAIT = JobState.FAILED, JobState.DEAD, JobState.RETRY_WAIT
LEASE_SECONDS = 1.2

#: What a model does, how many retries its owner grants, where that ends, and what the reason says.
CASES = [
    ("exception", 0, FAILED, "does not like that step"),
    ("exception", 2, DEAD, "the same failure twice in a row"),
    ("nan", 0, FAILED, "the loss became nan"),
    ("allocate", 2, FAILED, "out-of-memory"),
    ("hog", 2, FAILED, "out-of-memory"),
    ("exit", 0, FAILED, "exit code 3"),
    ("exit", 2, DEAD, "quarantined"),
    ("segfault", 2, DEAD, "SIGSEGV"),
    ("abort", 2, DEAD, "quarantined"),
    ("loop", 0, FAILED, "no step finished for too long"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One slot, so that everybody is everybody's neighbour, and a supervisor for all tests here."""
    service = Service(
        tmp_path_factory.mktemp("models") / "queue", lease_seconds=LEASE_SECONDS, stall_seconds=5.0, heartbeat_seconds=0.2
    )
    service.begin()
    yield service
    assert service.served[0].end() == 0, service.served[0].said
    service.close()


def submit_neighbours(service, name):
    return [service.submit(f"{name}-beside-{side}", steps=30 + side, step_seconds=0.02) for side in (0, 1)]


@pytest.mark.parametrize(("kind", "max_retries", "end", "says"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_a_bad_model_ends_alone(service, kind, max_retries, end, says):
    name = f"{kind}-{max_retries}"
    neighbours = submit_neighbours(service, name)
    culprit = service.submit(name, Faulty, steps=40, kind=kind, step=12, step_seconds=0.02, job={"max_retries": max_retries})
    [row, *_] = service.until_ended(culprit, *neighbours)
    assert (row.state, says in row.reason) == (end, True), (row.reason, service.log(culprit))
    assert row.num_job_failures <= max_retries + 1
    service.check_story(culprit)
    service.check_finished(*neighbours)
    for neighbour in neighbours:
        assert service.row(neighbour).num_job_failures == 0
        assert not service.row(neighbour).is_alone
    letter = service.queue.root.dead(culprit)
    assert letter.is_dir(), f"a dead letter of {culprit}: {service.log(culprit)}"


@pytest.mark.parametrize(("kind", "state"), [("exception", RETRY_WAIT), ("abort", JobState.QUEUED), ("hog", JobState.QUEUED)])
def test_what_happens_once_costs_a_job_nothing_but_time(service, tmp_path, kind, state):
    done = tmp_path / "done"
    beside = [service.submit(f"{kind}-once-beside-{side}", Patient, steps=400 + side, until=done) for side in (0, 1)]
    for neighbour in beside:  # else the job might be alone when it happens, which is another story
        service.until_state(neighbour, JobState.RUNNING)
    job = service.submit(f"{kind}-once", Faulty, steps=30, kind=kind, step=12, once=done)
    service.until_ended(job, *beside)
    service.check_finished(job, *beside)
    assert state in service.states(job)[1:]


def test_a_step_that_holds_the_interpreter_for_longer_than_a_lease_loses_nothing(service, tmp_path):
    leases_lost = service.queue.status()["counters"]["leases_expired"]
    job = service.submit("hold", Faulty, steps=30, kind="hold", step=12, once=tmp_path / "done")
    beside = submit_neighbours(service, "hold")
    service.until_ended(job, *beside)
    service.check_finished(job, *beside)
    assert service.states(job) == [JobState.QUEUED, JobState.LOADING, JobState.RUNNING, JobState.FINISHED]
    assert service.row(job).epoch == 1
    status = service.queue.status()
    assert status["counters"]["leases_expired"] == leases_lost
    assert status["counters"]["fenced_writes"] == 0


def test_a_job_in_an_endless_step_can_be_cancelled(service):
    job = service.submit("stuck", Faulty, steps=30, kind="loop", step=12)
    beside = submit_neighbours(service, "stuck")
    until(lambda: (service.queue.status() or {})["slots"][0]["running"] == job and service.row(job).steps_done >= 10, "loops")
    done = service.queue.cancel(job, by="its owner", wait_seconds=60.0)
    assert (done.done, done.job.state) == (True, JobState.CANCELLED)
    service.until_ended(*beside)
    service.check_finished(*beside)
    service.check_story(job)
    assert service.row(job).state in ENDED
