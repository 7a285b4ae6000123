"""T13, and what a pause or a cancel promises: told to stop, a service saves everybody and counts nothing."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.faults.models import Net, Tracing
from tests.faults.service import Service, until
from unified.job_state import RESIDENT, JobState

LOADING, RUNNING, PAUSED, CANCELLED = JobState.LOADING, JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "queue", checkpoint_seconds=600.0)  # what is saved is saved because of the signal
    yield service
    service.close()


def number_after(text, served):
    return served.said.split(text)[1].split()[0]


def go_on(service, *jobs):
    """Serve again, and check that nothing was counted and all is as if nothing had been."""
    begun = [job for job in jobs if service.row(job).steps_done]
    again = service.begin()
    assert number_after("resumed", again) == f"{len(begun)};"
    service.until_ended(*jobs)
    service.check_finished(*jobs)
    for job in jobs:
        row = service.row(job)
        assert (row.num_job_failures, row.num_infra_failures, row.num_blames, row.is_alone) == (0, 0, 0, False)
    assert again.end() == 0, again.said


def check_saved(service, served, *jobs, number=signal.SIGTERM):
    assert served.end(number) == 0, served.said
    assert f"saved {len(jobs)} of {len(jobs)}, attempts counted 0" in served.said
    for job in jobs:
        assert service.row(job).state is JobState.QUEUED
        assert service.row(job).holder is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_between_steps_it_redoes_one_at_most(service, tmp_path, number):
    traces = [tmp_path / f"trace-{index}" for index in (0, 1)]
    jobs = [service.submit(trace.name, Tracing, steps=60, step_seconds=0.02, trace=trace) for trace in traces]
    served = service.begin()
    for job in jobs:
        service.until_step(job, 10)
    check_saved(service, served, *jobs, number=number)
    go_on(service, *jobs)
    for trace in traces:
        assert len(trace.read_text().splitlines()) <= 60 + 4 + 1  # trial steps of the check, and one that is done again


def test_told_to_stop_while_a_job_is_loaded_it_does_not_wait_for_it(service):
    waits = service.submit("waits", steps=30, load_seconds=1.0)
    served = service.begin()
    service.until_state(waits, LOADING)
    check_saved(service, served, waits)
    go_on(service, waits)
    assert service.states(waits).count(RUNNING) == 1


def test_told_to_stop_while_a_checkpoint_is_written_it_finishes_that(service):
    job = service.submit("large", steps=30, width=20_000, job={"checkpoint": {"every_steps": 1}})
    served = service.begin()
    service.until_saved(job)
    check_saved(service, served, job)
    saved = service.queue.store.checkpoints(job)[0]
    assert saved.step == service.row(job).steps_done
    again = service.begin()
    service.until_ended(job)
    service.check_story(job)
    assert f"trains from step {saved.step}\n" in service.log(job)
    assert again.end() == 0, again.said


def test_told_to_stop_while_a_result_is_verified_it_publishes_that(service):
    """Reading the model back takes seconds; the job is not trained again from its last checkpoint."""
    job = service.submit("slow", steps=20, load_seconds=1.0)
    other = service.submit("other", steps=200, step_seconds=0.02)
    served = service.begin()
    until(lambda: list(service.queue.root.job(job).glob("result-*/metrics.jsonl")), "its result is written")
    assert service.row(job).state is RUNNING
    assert served.end() == 0, served.said
    assert "saved 2 of 2, attempts counted 0" in served.said
    service.check_finished(job)
    go_on(service, other)


def test_told_twice_it_ends_at_once_and_the_next_goes_on(service):
    job = service.submit("job", steps=30, step_seconds=0.02)
    stuck = service.submit("stuck", Net, steps=30, step_seconds=3.0)
    served = service.begin()
    until(lambda: (service.queue.status() or {"slots": [{}]})["slots"][0].get("running") == stuck, "a long step")
    served.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)  # two signals within half a second are one that came twice
    assert served.end() == 130, served.said
    assert service.row(stuck).state in RESIDENT
    again = service.begin()
    assert "an earlier supervisor ended without a word" in again.said
    assert service.queue.cancel(stuck, by="its owner", wait_seconds=60).done
    service.until_ended(job)
    service.check_finished(job)
    assert again.end() == 0, again.said


def residents(service):
    """Return who is on the slot by a status that is younger than this call."""
    asked = time.time()
    return until(lambda: fresh(service.queue.status(), asked), "it says how it is")["slots"][0]["residents"] or ["nobody"]


def fresh(status, asked):
    return status if status is not None and status["time"] > asked else None


@pytest.mark.parametrize(("verb", "end"), [("pause", PAUSED), ("cancel", CANCELLED)])
def test_a_pause_or_a_cancel_is_said_to_be_done_when_the_memory_is_free(service, tmp_path, verb, end):
    trace = tmp_path / "trace"
    job = service.submit("job", Tracing, steps=30, step_seconds=0.2, trace=trace)
    beside = service.submit("beside", steps=60, step_seconds=0.02)
    served = service.begin()
    until(lambda: service.row(job).steps_done >= 2 and service.row(beside).steps_done >= 2, "both train")
    assert set(residents(service)) == {job, beside}
    done = getattr(service.queue, verb)(job, by="its owner", wait_seconds=60)
    told = time.monotonic()
    assert (done.done, done.job.state) == (True, end)
    assert job not in residents(service)
    service.until_ended(beside)
    assert max(map(float, trace.read_text().split())) < told  # no step of its went on
    again = getattr(service.queue, verb)(job, by="its owner", wait_seconds=60)
    assert again.done
    if verb == "pause":
        service.queue.resume(job, by="its owner")
        service.until_ended(job)
        service.check_finished(job)
    service.check_story(job)
    service.check_finished(beside)
    assert served.end() == 0, served.said
    assert json.loads(service.queue.root.status.read_text())["is_draining"]
