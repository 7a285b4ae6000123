"""Memory and company in a real engine and a real queue: a large job gets its turn, and everybody is told why they wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import unified
from tests.faults.service import Service, until
from tests.integration.batches import TRAIN
from tests.integration.command_line import unified_command
from unified import events


def job(name: str, width: int = 1, epochs: int = 1) -> unified.JobSpec:
    return unified.JobSpec(
        name=name,
        model=nn.Sequential(nn.Flatten(), nn.Linear(64, 64 * width), nn.Linear(64 * width, 3)),
        data={"train": TRAIN},
        loss="CrossEntropyLoss",
        optimizer={"name": "SGD", "lr": 0.1},
        epochs=epochs,
        batch_size=5,
    )


def test_a_large_job_is_not_starved_by_small_ones() -> None:
    """It fits beside none of them, and one of them always runs unless they wait for it."""
    begun: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.TurnStarted):
            begun.append(event.job)

    with unified.Engine(slots=2, threads=1, scheduler="fcfs", stacking=False, listeners=[listen]) as engine:
        small = [f"small-{number}" for number in range(8)]
        engine.submit_all([job(name, epochs=30) for name in small[:2]])
        engine.submit(job("large", width=400))
        engine.submit_all([job(name, epochs=30) for name in small[2:]])
        demands = {record.name: record.demand for record in engine._ledger.all()}
        engine._planner.capacity_bytes = demands["large"].peak_bytes + demands["small-0"].resident_bytes // 2
        assert 2 * demands["small-0"].peak_bytes < engine._planner.capacity_bytes
        results = list(engine.run())
    assert all(result.state == "finished" for result in results)
    assert set(begun[:2]) == set(small[:2])
    assert begun.index("large") <= 4, begun  # one or two may end before both of the first have


@pytest.mark.slow
def test_everybody_is_told_why_they_wait(tmp_path: Path) -> None:
    service = Service(tmp_path / "queue", scheduler="srtf:quantum=200ms")
    try:
        long = service.submit("long", steps=500_000, step_seconds=0.01)
        service.begin()
        service.until_step(long, 20)
        short = service.submit("short", steps=50_000, step_seconds=0.01)
        last = service.submit("last", steps=5_000_000, step_seconds=0.01)
        alone = service.submit("alone", steps=50_000_000, step_seconds=0.01, job={"exclusive": True})
        reasons = {
            short: "trains",
            long: "parked on slot 0; under srtf:quantum=200ms: ",
            last: "slots: it is next; under srtf:quantum=200ms: ",
            alone: "alone: waits for a slot of its own until ",
        }

        def are_told() -> bool:
            return all(service.row(name).reason.startswith(reason) for name, reason in reasons.items())

        until(are_told, f"the reasons are told: {[service.row(name).reason for name in reasons]}")

        def are_listed() -> bool:  # asked again: between two turns they are others for a moment
            listed = unified_command("ls", "--root", service.path, "--json").stdout
            return all(reason in listed for reason in reasons.values())

        until(are_listed, "the reasons are listed")
        told = unified_command("explain", alone, "--root", service.path).stdout
        assert "alone: waits for a slot of its own until" in told
        assert "Scheduler srtf:quantum=200ms: " in told
        assert "left of it; the shortest goes first" in told
    finally:
        service.close()
