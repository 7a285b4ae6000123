"""T1: everything that can be killed is killed at random times, and each accepted job ends once, as if nothing had been."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import psutil
import pytest

from tests.faults.models import Net
from tests.faults.service import Service, kill, seeded, until
from tests.integration.command_line import environment
from unified.job_state import ENDED

NUM_JOBS, NUM_KILLS, SEED = 16, 18, 1


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "queue", slots=2)
    yield service
    service.close()


class Storm:
    """Kills one thing after another, and starts again what nobody else would."""

    def __init__(self, service, folders):
        self.service, self.chance = service, random.Random(SEED)
        self.folders = folders
        self.kills: list[str] = []
        self.served = service.begin(http=True)
        self.submitter = self.submit()

    def submit(self):
        """Submit everything from the beginning: what was accepted before is the same job again."""
        command = [sys.executable, "-m", "unified", "submit", "--root", str(self.service.path), "--no-wait", *self.folders]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())

    def strike(self):
        kinds = ["worker"] * 8 + ["supervisor"] * 5 + ["http"] * 2 + ["nursery"] * 2
        kind = "submitter" if self.submitter.poll() is None else self.chance.choice(kinds)
        if kind == "submitter":
            self.submitter.kill()
            self.submitter.wait()
            self.submitter = self.submit()
            if len(self.kills) > 3:
                self.submitter.wait()
        elif kind == "supervisor":
            kill([psutil.Process(self.served.process.pid)])
        else:
            victims = {"worker": self.served.forked, "http": self.served.http, "nursery": self.served.nursery}[kind]()
            if victims:
                kill([self.chance.choice(victims)])
        self.kills.append(kind)
        if kind == "supervisor":
            self.served.wait()
            self.served = self.service.begin(http=True)


@pytest.mark.slow
def test_a_storm_of_kills_loses_no_job_and_publishes_none_twice(service):
    make = lambda: seeded(Net, step_seconds=0.03)  # noqa: E731
    folders = [service.source(f"job-{index}", make(), steps=60 + index) for index in range(NUM_JOBS)]
    storm = Storm(service, folders)
    for _ in range(NUM_KILLS):
        time.sleep(storm.chance.uniform(0.1, 1.6))
        storm.strike()
    assert storm.submitter.wait() == 0
    jobs = [row.id for row in service.queue.store.jobs()]
    assert len(jobs) == NUM_JOBS, storm.kills
    until(lambda: all(service.row(job).state in ENDED for job in jobs), f"all end: {storm.served.said}")
    service.check_finished(*jobs)
    assert storm.served.end() == 0, storm.served.said
    assert {"worker", "supervisor"} <= set(storm.kills)
    assert list(service.queue.root.rejected.iterdir()) == []
