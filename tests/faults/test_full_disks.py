"""T7: disks that are full, fail, or can only be read."""

from __future__ import annotations

import resource

import psutil
import pytest
import torch

from tests.faults.service import Service, assert_equal, undisturbed, until
from unified.job_state import JobState

PAUSED, RUNNING = JobState.PAUSED, JobState.RUNNING
OFTEN = {"checkpoint": {"every_steps": 5}}


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "queue")
    yield service
    service.close()


@pytest.mark.parametrize(
    ("point", "error"),
    [("checkpoint.before-write", "ENOSPC"), ("checkpoint.written", "EIO"), ("checkpoint.before-write", "EROFS")],
)
def test_a_job_without_room_for_a_checkpoint_waits_until_there_is(service, point, error):
    served = service.begin(fault=f"{point}@3:{error}")
    job = service.submit("job", steps=40, step_seconds=0.02, job=OFTEN)
    service.until_ended(job)
    service.check_finished(job)
    states = service.states(job)
    assert states.count(PAUSED) == 1
    steps = service.queue.store.transitions(job)
    paused = next(step for step in steps if step.new is PAUSED)
    assert paused.reason.startswith("disk-full: a checkpoint of "), paused.reason
    assert next(step for step in steps if step.old is PAUSED).reason == "there is room again"
    assert "trains from step 10" in service.log(job)  # the old checkpoint is what it went on from
    assert "NO CHECKPOINT could be written" in service.log(job)
    assert service.row(job).num_job_failures == service.row(job).num_infra_failures == 0
    assert served.end() == 0, served.said


def test_a_limit_of_the_system_pauses_who_exceeds_it_and_nobody_else(service):
    large = service.submit("large", steps=40, width=40_000, step_seconds=0.01, job=OFTEN)
    served = service.begin()
    service.until_step(large, 6)
    service.until_saved(large)
    small = service.submit("small", steps=50, step_seconds=0.02, job=OFTEN)
    limit(served, 4 << 20)
    row = service.until_state(large, PAUSED)
    assert row.reason.startswith("disk-full: a checkpoint of "), row.reason
    assert "File too large" in row.reason
    kept = service.queue.store.checkpoints(large)
    assert kept
    assert all((service.queue.root.path / saved.path).is_file() for saved in kept)
    service.until_ended(small)
    service.check_finished(small)
    limit(served, resource.RLIM_INFINITY)
    service.until_ended(large)
    service.check_story(large)
    assert service.row(large).state is JobState.FINISHED, service.log(large)
    weights = service.queue.root.result(large) / "state_dict.pt"
    assert_equal(torch.load(weights, weights_only=True), undisturbed(40, width=40_000), large)
    assert served.end() == 0, served.said


def limit(served, num_bytes):
    for process in [*served.nursery(), *served.forked()]:
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize("fault", ["store.before-commit@{}:ENOSPC", "store.committed@{}:EIO"])
def test_a_store_that_cannot_be_written_for_a_while_loses_nothing(service, fault):
    jobs = [service.submit(f"job-{index}", steps=30 + index, step_seconds=0.02, job=OFTEN) for index in (0, 1)]
    served = service.begin(fault=",".join(fault.format(nth) for nth in range(9, 120, 5)))
    service.until_ended(*jobs)
    service.check_finished(*jobs)
    assert served.end() == 0, served.said


#: Where a disk may fail while a result is written and published, or a checkpoint made current, and what it costs.
ELSEWHERE = {
    "result.written": 1,
    "publish.before-commit": 1,
    "publish.committed": 0,
    "publish.renamed": 0,
    "checkpoint.before-row": 0,
    "checkpoint.row": 0,
}


def test_a_disk_that_fails_anywhere_else_ends_neither_job_nor_service(service):
    """One fault at each point; a job that cannot hand in its result waits for room like one that cannot save."""
    served = service.begin(fault=",".join(f"{point}@1:ENOSPC" for point in ELSEWHERE))
    job = service.submit("job", steps=30, step_seconds=0.02, job=OFTEN | {"max_retries": 0})
    service.until_ended(job)
    until(service.queue.root.result(job).exists, "its result is brought out")
    until(lambda: "cannot be moved" in served.said, "and that it came late is told")
    service.check_finished(job)
    assert service.states(job).count(PAUSED) == sum(ELSEWHERE.values())
    assert "disk-full: " in "".join(step.reason for step in service.queue.store.transitions(job))
    assert service.row(job).num_job_failures == 0
    assert served.end() == 0, served.said
