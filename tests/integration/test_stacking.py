"""Stacks end to end: jobs of one architecture step as one, and each ends as if it had trained alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import unified
from tests.integration.batches import TEST, Conv, make_data
from tests.plain import train_alone
from unified import events

#: What steps as one may differ by from the plain loop in float32: rounding in another order, over some fifty steps.
TOLERANCE = 1e-4
#: A sample's value that members' models of this file take for a signal to fail.
SIGNAL = 1e4

VARIANTS: dict[str, dict[str, Any]] = {
    "a": {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}, "epochs": 6},
    "b": {"optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9}, "epochs": 9, "clip_grad_norm": 0.5},
    "c": {"lr_scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.7}, "epochs": 7},
    "d": {"lr_scheduler": {"name": "ExponentialLR", "gamma": 0.9, "every": "step"}, "epochs": 8},
}
SIZES = {"a": 45, "b": 45, "c": 61, "d": 40}


def describe(name: str, **changes: Any) -> dict[str, Any]:
    common = {"name": name, "loss": "CrossEntropyLoss", "batch_size": 8, "seed": ord(name[0]), "metrics": ["accuracy"]}
    optimizer = {"optimizer": {"name": "SGD", "lr": 0.03, "momentum": 0.9}}
    return common | optimizer | VARIANTS.get(name[0], {"epochs": 8}) | changes


def model_of(name: str) -> nn.Module:
    torch.manual_seed(ord(name[0]))
    return Conv()


def make(name: str, model: nn.Module | None = None, **changes: Any) -> unified.JobSpec:
    train = make_data(SIZES.get(name[0], 45))
    return unified.JobSpec(model=model or model_of(name), data={"train": train, "test": TEST}, **describe(name, **changes))


def assert_as_alone(result: unified.Result, model: str | None = None, **changes: Any) -> None:
    assert str(result.state) == "finished", result.reason
    name = model or result.name
    before = torch.get_num_threads()
    torch.set_num_threads(result.num_threads or 1)
    try:
        weights, rows = train_alone(model_of(name), describe(name, **changes), make_data(SIZES.get(name[0], 45)), TEST)
    finally:
        torch.set_num_threads(before)
    for key, value in weights.items():
        torch.testing.assert_close(result.state_dict[key], value, rtol=TOLERANCE, atol=TOLERANCE)
    for key, value in rows[-1].items():
        torch.testing.assert_close(result.metrics[key], value, rtol=TOLERANCE, atol=TOLERANCE)


class Watch:
    """Keeps events, and acts on them."""

    def __init__(self) -> None:
        self.seen: list[events.Event] = []
        self.act: Any = lambda event: None

    def __call__(self, event: events.Event) -> None:
        self.seen.append(event)
        self.act(event)

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]


@contextmanager
def stacking(watch: Watch, *, measured: bool = False, **settings: Any) -> Iterator[unified.Engine]:
    """An engine that stacks whatever it may, however slow that is."""
    with unified.Engine(**({"slots": 1, "threads": 1} | settings), listeners=[watch]) as engine:
        stacks = engine._books.stacks
        stacks.least_speedup = 0.0
        if not measured:  # as if every stack had been measured before
            type(stacks).speedup, before = lambda *_: 2.0, type(stacks).speedup
        try:
            yield engine
        finally:
            if not measured:
                type(stacks).speedup = before


@pytest.mark.parametrize(
    ("scheduler", "slots", "measured"),
    [
        ("fcfs", 1, False),
        ("fcfs", 2, True),
        ("sjf", 2, False),
        ("round-robin", 1, True),
        ("round-robin", 2, False),
        ("round-robin:quantum=3", 1, False),
        ("round-robin:quantum=3", 2, True),
    ],
)
def test_every_member_of_a_stack_ends_as_if_it_had_trained_alone(scheduler: str, slots: int, measured: bool) -> None:
    watch = Watch()
    with stacking(watch, scheduler=scheduler, slots=slots, measured=measured) as engine:
        engine.submit_all([make(name) for name in VARIANTS])
        results = list(engine.run())
    assert sorted(result.name for result in results) == sorted(VARIANTS)
    for result in results:
        assert_as_alone(result)
    formed = watch.of(events.StackFormed)
    if not measured:
        assert formed[0].members == (("a", "b", "c", "d") if slots == 1 else formed[0].members)
        assert len(formed[0].members) == 4 // slots


@pytest.mark.parametrize("changes", [{"stacking": "never"}, {"stacking": "exact"}])
def test_only_jobs_that_allow_it_are_stacked(changes: dict[str, Any]) -> None:
    watch = Watch()
    with stacking(watch) as engine:
        engine.submit_all([make("a", **changes), make("b"), make("c"), make("d", **changes)])
        for result in engine.run():
            assert_as_alone(result)
    assert {event.members for event in watch.of(events.StackFormed)} == {("b", "c")}


@pytest.mark.parametrize("settings", [{"stacking": False}, {"deterministic": True}])
def test_a_run_may_forbid_stacks(settings: dict[str, Any]) -> None:
    watch = Watch()
    with stacking(watch, **settings) as engine:
        engine.submit_all([make(name) for name in "ab"])
        for result in engine.run():
            assert_as_alone(result)
    assert not watch.of(events.StackFormed)


def test_a_stack_that_is_slower_is_refused_once_and_nothing_is_lost() -> None:
    watch = Watch()
    with unified.Engine(slots=1, threads=1, scheduler="round-robin:quantum=40", listeners=[watch]) as engine:
        engine._books.stacks.least_speedup = 1e9
        engine.submit_all([make(name, epochs=60) for name in VARIANTS])
        for result in engine.run():
            assert_as_alone(result, epochs=60)
    [refused] = watch.of(events.StackRefused)
    assert refused.reason == "is not faster"
    assert refused.speedup is not None
    assert not watch.of(events.StackFormed)


def test_one_member_may_be_paused_resumed_checkpointed_and_cancelled_in_a_stack(tmp_path: Path) -> None:
    watch = Watch()

    def act(event: events.Event) -> None:
        if isinstance(event, events.EpochDone) and event.epoch == 2:
            {"a": engine.pause, "b": engine.checkpoint, "e": engine.cancel}.get(event.job, lambda _: None)(event.job)
        if isinstance(event, events.JobPaused):
            engine.resume("a")

    watch.act = act
    with stacking(watch, out=tmp_path) as engine:
        engine.submit_all([*(make(name) for name in VARIANTS), make("e", epochs=10**6)])
        results = {result.name: result for result in engine.run()}
    assert str(results.pop("e").state) == "cancelled"
    assert not (tmp_path / "e").exists()
    assert any(event.job == "b" for event in watch.of(events.JobCheckpointed))
    assert watch.of(events.JobResumed)
    for result in results.values():
        assert_as_alone(result)


def test_a_member_that_becomes_ready_joins_the_stack_that_is_running() -> None:
    watch, late = Watch(), []

    def act(event: events.Event) -> None:
        if isinstance(event, events.EpochDone) and not late:
            late.append(engine.submit(make("e")))

    watch.act = act
    with stacking(watch, scheduler="fcfs") as engine:  # under the default it would end the turn of the others, being shorter
        engine.submit_all([make(name, epochs=60) for name in "ab"])
        results = {result.name: result for result in engine.run()}
    assert ("a", "b", "e") in {event.members for event in watch.of(events.StackFormed)}
    ends = {event.job: event.at for event in watch.of(events.JobFinished)}
    assert ends["e"] < ends["a"]
    assert_as_alone(results["e"])
    for name in "ab":
        assert_as_alone(results[name], epochs=60)


def test_the_members_of_a_sweep_step_as_one_and_end_as_the_same_jobs_alone() -> None:
    watch = Watch()
    spec = make("e", sweep={"optimizer": [{"name": "SGD", "lr": 0.03}, {"name": "SGD", "lr": 0.3}], "seed": [1, 2]})
    with stacking(watch) as engine:
        engine.submit(spec)
        results = {result.name: result for result in engine.run()}
    members = spec.members()
    assert watch.of(events.StackFormed)[0].members == tuple(member.name for member in members)
    for member in members:
        assert_as_alone(results[member.name], model="e", optimizer=member.optimizer.model_dump(), seed=member.seed)


class Raising(Conv):
    """Raises when it sees the signal."""

    def forward(self, x: Tensor) -> Tensor:
        if (x >= SIGNAL).any():
            raise ValueError("no such luck")
        return super().forward(x)


def make_one_of(kind: type[nn.Module], name: str, signal: float | None = None) -> unified.JobSpec:
    """Make a job whose model is of ``kind``; with a ``signal`` one of its samples has that value."""
    torch.manual_seed(ord(name[0]))
    model = kind()
    inputs, targets = make_data(SIZES.get(name[0], 45))
    if signal is not None:
        inputs[20] = signal
    return unified.JobSpec(model=model, data={"train": (inputs, targets), "test": TEST}, **describe(name))


@pytest.mark.parametrize(("kind", "signal", "reason"), [(Conv, 3e38, "the loss became nan"), (Raising, SIGNAL, "no such luck")])
def test_a_member_that_fails_leaves_the_others_untouched(kind: type[nn.Module], signal: float, reason: str) -> None:
    watch = Watch()
    with stacking(watch, scheduler="round-robin:quantum=50") as engine:
        engine.submit_all([make_one_of(kind, "a"), make_one_of(kind, "x", signal), make_one_of(kind, "b")])
        results = {result.name: result for result in engine.run()}
    assert reason in str(results["x"].reason)
    assert watch.of(events.StackFormed)[0].members == ("a", "x", "b")
    for name in "ab":
        assert_as_alone(results[name])


def test_a_killed_worker_costs_a_stack_nothing_but_time() -> None:
    watch, killed = Watch(), []

    def act(event: events.Event) -> None:
        if isinstance(event, events.EpochDone) and event.job == "a" and event.epoch == 4 and not killed:
            nursery = next(child for child in psutil.Process().children() if "unified.nursery" in child.cmdline())
            killed.extend(worker.pid for worker in nursery.children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    watch.act = act
    with stacking(watch) as engine:
        engine.submit_all([make(name, epochs=30, checkpoint={"every_steps": 5}) for name in VARIANTS])
        results = list(engine.run())
    assert len(watch.of(events.WorkerLost)) == 1
    assert len(results) == 4
    for result in results:
        assert_as_alone(result, epochs=30, checkpoint={"every_steps": 5})


class Deadly(Conv):
    """Ends its process when it sees the signal, as a fault in a kernel would."""

    def forward(self, x: Tensor) -> Tensor:
        if (x >= SIGNAL).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_who_kills_the_worker_of_a_stack_is_found_and_the_others_finish() -> None:
    watch = Watch()
    with stacking(watch) as engine:
        engine.submit_all([make_one_of(Deadly, "a"), make_one_of(Deadly, "x", SIGNAL), make_one_of(Deadly, "b")])
        results = {result.name: result for result in engine.run()}
    assert results["x"].reason == "its worker died 2 times while it ran (killed by SIGKILL)"
    for name in "ab":
        assert_as_alone(results[name])
