"""What becomes of a policy's decisions in a service, also when it is killed in their middle; nobody's weights change."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch

import unified
from tests.faults.models import Net
from tests.faults.service import JOB, Service, assert_equal, seeded, undisturbed, until
from tests.integration.batches import TEST, TRAIN
from unified import events
from unified.job_state import JobState

STEP_SECONDS = 0.2  #: long against what a command takes to a worker


def slow_job(name: str, steps: int) -> unified.JobSpec:
    data = {"train": TRAIN, "test": TEST}
    return unified.JobSpec(name=name, model=seeded(Net, step_seconds=STEP_SECONDS), data=data, max_steps=steps, **JOB)


def test_a_worker_that_dies_while_it_is_told_to_end_a_turn_costs_nobody_a_bit() -> None:
    workers: list[int] = []
    lost: list[events.WorkerLost] = []

    def strike(event: events.Event) -> None:
        if isinstance(event, events.WorkerStarted):
            workers.append(event.pid)
        elif isinstance(event, events.WorkerLost):
            lost.append(event)
        elif isinstance(event, events.StepsDone) and event.job == "long" and len(workers) == 1 and event.step >= 3:
            engine.resume("short")  # the worker hears of it at once, and heeds it at the end of the step under way
            threading.Timer(STEP_SECONDS / 4, os.kill, [workers[0], signal.SIGKILL]).start()
            workers.append(0)

    with unified.Engine(scheduler="srtf:quantum=1h", slots=1, threads=1, listeners=[strike]) as engine:
        engine.submit_all([slow_job("long", 14), slow_job("short", 4)])
        engine.pause("short")
        results = {result.name: result for result in engine.run()}
    [event] = lost
    assert "long" in event.jobs  # and "short", if the worker was quick
    assert sorted(results) == ["long", "short"]
    for name, steps in {"short": 4, "long": 14}.items():
        assert_equal(results[name].state_dict, undisturbed(steps), name)


def test_a_queue_killed_in_the_middle_of_a_round_knows_who_had_how_much(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    service = Service(tmp_path / "queue", scheduler="drr:quantum=5steps")

    def passes() -> dict[str, float]:
        memory: Any = service.queue.store.load_policy("drr:quantum=5steps") or {"policy": {"passes": {"present": {}}}}
        return memory["policy"]["passes"]["present"]

    try:
        jobs = [service.submit(name, steps=150, step_seconds=0.01) for name in ("one", "two")]
        served = service.begin()
        until(lambda: len(passes()) == 2 and min(passes().values()) > 4, "both have had some rounds")
        before = passes()
        served.process.kill()
        served.wait()
        service.begin()
        until(lambda: len(passes()) == 2 and passes() != before, "the rounds go on")
        after = passes()
        assert all(after[job] >= before[job] for job in jobs), (before, after)
        service.until_ended(*jobs)
        service.check_finished(*jobs)
    finally:
        service.close()


def test_a_queue_refuses_what_would_be_late_and_remembers_whom_it_accepted(tmp_path: Path) -> None:
    service = Service(tmp_path / "queue", scheduler="edf")
    try:
        prompt = service.submit("prompt", steps=20, job={"deadline_seconds": 3600.0})
        hopeless = service.submit("hopeless", steps=20, job={"deadline_seconds": 0.01})
        soft = service.submit("soft", steps=20, job={"deadline_seconds": 0.01, "deadline_kind": "soft"})
        service.begin()
        service.until_ended(prompt, hopeless, soft)
        service.check_finished(prompt, soft)
        row = service.row(hopeless)
        assert row.state is JobState.FAILED
        assert "E-DEADLINE" in row.reason
        assert "the earliest deadline that would be met" in (service.queue.root.rejected / hopeless / "reason.txt").read_text()
        assert [(service.row(job).admission or {}).get("is_accepted") for job in (prompt, hopeless)] == [True, None]
        assert "WILL MISS ITS DEADLINE" in service.log(soft)
    finally:
        service.close()
