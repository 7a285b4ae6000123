"""Turns that are ended early for the sake of others, in the real engine: nothing of it shows in anybody's weights."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

import unified
from schedulers import base, registry
from tests.integration.batches import assert_equals_alone, make_spec
from unified import events

NAMES = ["conv", "mlp"]
POLICIES = [
    "srtf:quantum=20ms",
    "drr:quantum=20ms",
    "aging(srtf(quantum=20ms))",
    "fair(las(quantum=20ms))",
    "edf:quantum=20ms",
]


class Restless:
    """A policy whose turns are ended early at random, whenever somebody waits who did not before."""

    def __init__(self, inner: str) -> None:
        self.inner: Any = registry.create(inner)
        self.needs = self.inner.needs
        self.random = Random(7)

    def select(self, now: float, ready: Sequence[base.JobView], slots: Sequence[base.SlotView]) -> list[base.Grant]:
        return self.inner.select(now, ready, slots)

    def on_event(self, event: base.Event) -> None:
        if isinstance(self.inner, base.Observes):
            self.inner.on_event(event)

    def victims(
        self, now: float, running: Sequence[base.JobView], wanted: Sequence[base.JobView], slots: Sequence[base.SlotView]
    ) -> list[str]:
        return [self.random.choice(running).id] if self.random.random() < 0.9 else []


class Turns:
    """Keeps the ends of turns, as a listener."""

    def __init__(self) -> None:
        self.ended: list[events.TurnEnded] = []

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TurnEnded):
            self.ended.append(event)

    def preempted(self) -> set[str]:
        return {event.job for event in self.ended if event.is_preempted}


@pytest.mark.parametrize("policy", POLICIES)
def test_turns_that_end_early_at_random_leave_no_trace(policy: str) -> None:
    turns = Turns()
    with unified.Engine(scheduler=Restless(policy), slots=1, threads=1, listeners=[turns]) as engine:
        engine.submit_all([make_spec(name, epochs=9) for name in NAMES])
        results = list(engine.run())
    assert sorted(result.name for result in results) == NAMES
    for result in results:
        assert_equals_alone(result, epochs=9)
    assert turns.preempted()


def test_a_shorter_job_that_becomes_ready_takes_the_slot_at_the_next_step() -> None:
    turns = Turns()

    def resume(event: events.Event) -> None:
        if isinstance(event, events.StepsDone) and event.job == "conv" and engine.state("mlp") is unified.JobState.PAUSED:
            engine.resume("mlp")

    with unified.Engine(scheduler="srtf:quantum=1h", slots=1, threads=1, listeners=[turns, resume]) as engine:
        engine.submit_all([make_spec("conv", epochs=50), make_spec("mlp")])
        engine.pause("mlp")
        results = {result.name: result for result in engine.run()}
    assert list(results) == ["mlp", "conv"]
    assert_equals_alone(results["conv"], epochs=50)
    assert turns.preempted() == {"conv"}
    assert [event.is_preempted for event in turns.ended if event.job == "conv"] == [True, False]


def test_a_deadline_that_cannot_be_kept_is_refused_and_a_soft_one_is_told_to_be_missed() -> None:
    told: list[events.Event] = []
    with unified.Engine(scheduler="edf", slots=1, threads=1, listeners=[told.append]) as engine:
        with pytest.raises(unified.InvalidSubmission, match=r"earliest deadline that would be met") as error:
            engine.submit_all([make_spec("conv", deadline_seconds=3600.0), make_spec("mlp", deadline_seconds=1e-6)])
        assert [(problem.code, problem.job) for problem in error.value.problems] == [("E-DEADLINE", "mlp")]
        engine.submit_all(
            [make_spec("mlp", deadline_seconds=1e-6, deadline_kind="soft"), make_spec("conv", deadline_seconds=3600.0)]
        )
        finished = [result.name for result in engine.run()]
    assert finished == ["conv", "mlp"]
    assert [event.job for event in told if isinstance(event, events.DeadlineAtRisk)] == ["mlp"]
