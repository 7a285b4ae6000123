"""T2, the half of training: a service killed at every point of it, again and again, over one queue."""

from __future__ import annotations

import signal

import pytest

from tests.faults.service import Service, until
from unified.queue.faults import CRASH_POINTS

IN_WORKER = ("checkpoint.before-write", "checkpoint.written", "result.written")
#: Which time of each point; a supervisor writes to its store all the time, so there the moment is drawn over its life.
TIMES = {point: (1,) for point in CRASH_POINTS if not point.startswith(("submit.", "ingest.", "store."))}
TIMES |= {"store.before-commit": (9, 31), "store.committed": (20,)}
CASES = [f"{point}@{nth}" for point, times in TIMES.items() for nth in times]


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "queue")
    yield service
    service.close()


def num_deaths(service, jobs):
    return sum(service.log(job).count("its worker died") for job in jobs)


def until_death(service, jobs, before):
    until(lambda: num_deaths(service, jobs) > before, "a worker dies")


@pytest.mark.slow
def test_a_service_killed_at_every_point_of_training_publishes_each_job_once(service):
    jobs = []
    for number, case in enumerate(CASES):
        often = {"checkpoint": {"every_steps": 5}}
        jobs += [service.submit(f"job-{number}", steps=24 + number, step_seconds=0.02, job=often)]
        before = num_deaths(service, jobs)
        served = service.begin(fault=f"{case}:kill")
        if case.partition("@")[0] in IN_WORKER:
            until_death(service, jobs, before)
            assert served.end(signal.SIGKILL) == -signal.SIGKILL
        else:
            assert served.wait() == -signal.SIGKILL, (case, served.said)
    served = service.begin()
    service.until_ended(*jobs)
    service.check_finished(*jobs)
    assert served.end() == 0, served.said


def test_the_table_of_points_is_the_one_that_is_tested():
    ours = {case.partition("@")[0] for case in CASES}
    assert ours | {point for point in CRASH_POINTS if point.startswith(("submit.", "ingest."))} == set(CRASH_POINTS)
