"""A batch of several users on one slot: code of one user's shares no process with jobs of another's, and all train as alone."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import unified
from tests.faults.service import Service, until
from tests.integration.batches import TEST, TRAIN, assert_equals_alone, describe, make_model, write_folder
from tests.integration.own_models import Tracked
from tests.plain import train_alone
from unified import events
from unified.queue.reasons import explain

TRAINING = {"loss": "CrossEntropyLoss", "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9}, "epochs": 2, "batch_size": 8}

#: The jobs with code, and whose they are; handed in in this order, between them two that run none.
TRACKED = {"ann-1": "ann", "bob-1": "bob", "ann-2": "ann", "bob-2": "bob"}
DATA = {"mlp": "carl", "conv": "ann"}


def tracked() -> Tracked:
    torch.manual_seed(3)
    return Tracked()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("users")
    (root / "data").mkdir()
    torch.save(TRAIN, root / "data" / "train.pt")
    torch.save(TEST, root / "data" / "test.pt")
    for name, user in TRACKED.items():
        (root / name).mkdir()
        torch.save(tracked(), root / name / "model.pt")
        files = {"model": "model.pt", "data": {"train": "../data/train.pt", "test": "../data/test.pt"}}
        (root / name / "job.json").write_text(json.dumps(TRAINING | files | {"name": name, "user": user}))
    for name, user in DATA.items():
        write_folder(root / name, make_model(name), describe(name, user=user))
    return [root / name for name in ("ann-1", "bob-1", "mlp", "ann-2", "bob-2", "conv")]


@pytest.mark.parametrize("scheduler", ["fcfs", "round-robin:quantum=3steps"])
def test_no_process_hosts_code_of_one_user_and_a_job_of_another(folders: list[Path], scheduler: str) -> None:
    seen: list[events.Event] = []
    with unified.Engine(trust=True, slots=1, threads=1, scheduler=scheduler, stacking=False, listeners=[seen.append]) as engine:
        engine.submit_folders(folders)
        results = {result.name: result for result in engine.run()}
    weights, _ = train_alone(tracked(), TRAINING, TRAIN, TEST)
    for name in TRACKED:
        found = dict(results[name].state_dict)
        assert found.pop("pid").item() in pids_of(seen)[name]
        assert all(torch.equal(found[key], value) for key, value in weights.items() if key != "pid")
    for name in DATA:
        assert_equals_alone(results[name])
    users: dict[int, set[str]] = defaultdict(set)
    for name, pids in pids_of(seen).items():
        for pid in pids:
            users[pid].add((TRACKED | DATA)[name])
    for name in TRACKED:
        for pid in pids_of(seen)[name]:
            assert users[pid] == {TRACKED[name]}, (name, users)


@pytest.mark.slow
def test_in_a_queue_another_user_waits_for_a_process_and_gets_it(tmp_path: Path) -> None:
    service = Service(tmp_path / "queue", scheduler="fcfs")
    try:
        first = service.submit("first", steps=100_000, step_seconds=0.01, job={"user": "ann"})
        service.begin()
        service.until_step(first, 1)
        other = service.submit("other", steps=3, job={"user": "bob"})
        until(
            lambda: "process of its own user's" in service.row(other).reason, f"the reason is told: {service.row(other).reason}"
        )
        also = service.submit("also", steps=3, job={"user": "ann"})
        lines = explain(service.row(other), service.queue.store, service.queue.root.read_status(), now=time.time())
        assert any("hosts only its user's jobs" in line for line in lines), lines
        service.queue.cancel(first, by="ann")
        service.until_ended(other, also)
        service.check_finished(other, also)
        *ended, last = service.queue.store.workers(0)
        assert [worker.how for worker in ended] == ["replaced for another user's jobs"] * 2
        assert last.how is None
    finally:
        service.close()


def pids_of(seen: list[events.Event]) -> dict[str, set[int]]:
    """Return the processes in which each job was."""
    pids: dict[str, set[int]] = defaultdict(set)
    living = 0
    for event in seen:
        if isinstance(event, events.WorkerStarted):
            living = event.pid
        elif isinstance(event, events.JobHosted):
            pids[event.job].add(living)
    return pids
