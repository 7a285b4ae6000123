"""The engine end to end, through the Python API: the contract, control, failure, and what is told."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import unified
from tests.integration.batches import (
    MEMBERS,
    TEST,
    TRAIN,
    Conv,
    alone,
    assert_equals_alone,
    describe,
    make_model,
    make_spec,
    write_folders,
)
from unified import events
from unified.returning import NUM_PROOF_SAMPLES

SCHEDULERS = ["fcfs", "priority", "sjf", "sjf:length=epochs", "round-robin", "round-robin:quantum=3"]


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_member_ends_as_if_it_had_trained_alone(scheduler: str, slots: int) -> None:
    results = list(unified.train([make_spec(name) for name in MEMBERS], scheduler=scheduler, slots=slots))
    assert sorted(result.name for result in results) == sorted(MEMBERS)
    for result in results:
        assert_equals_alone(result)
        assert result.timing.completion >= result.timing.training > 0


def test_the_plan_of_auto_keeps_the_contract_at_the_threads_it_chose() -> None:
    started: dict[str, int] = {}

    def watch(event: events.Event) -> None:
        if isinstance(event, events.TurnStarted):
            assert started.setdefault(event.job, event.threads) == event.threads

    with unified.Engine(listeners=[watch]) as engine:
        engine.submit_all([make_spec(name) for name in MEMBERS])
        for result in engine.run():
            assert result.num_threads == started[result.name]
            assert_equals_alone(result)


def test_a_slot_of_two_threads_equals_the_plain_loop_with_two() -> None:
    with unified.Engine(slots=1, threads=min(2, os.cpu_count() or 1)) as engine:
        engine.submit(make_spec("conv"))
        (result,) = engine.run()
    assert result.num_threads == min(2, os.cpu_count() or 1)
    assert_equals_alone(result)


def test_the_callers_models_stay_as_they_are_and_take_the_weights_on_request() -> None:
    spec = make_spec("mlp")
    before = {name: value.clone() for name, value in spec.model.state_dict().items()}
    (result,) = unified.train([spec], slots=1)
    assert result.reason is None
    for name, value in spec.model.state_dict().items():
        assert torch.equal(value, before[name])
    loaded = result.load_into(make_model("mlp"))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, result.state_dict[name])


@pytest.fixture
def engine() -> Iterator[unified.Engine]:
    with unified.Engine(scheduler="round-robin:quantum=4", slots=1) as engine:
        yield engine


def test_pause_resume_and_checkpoint_leave_no_trace() -> None:
    seen: list[str] = []

    def watch(event: events.Event) -> None:
        seen.append(type(event).__name__)
        if isinstance(event, events.EpochDone) and event.job == "conv" and event.epoch == 1:
            engine.checkpoint("conv")
            engine.pause("conv")
        if isinstance(event, events.JobPaused):
            engine.pause("lstm")
            engine.resume("lstm")
        if isinstance(event, events.JobFinished) and event.job == "mlp":
            engine.resume("conv")

    with unified.Engine(scheduler="round-robin:quantum=4", slots=1, listeners=[watch]) as engine:
        engine.submit_all([make_spec(name) for name in ("conv", "mlp", "lstm")])
        results = list(engine.run())
    assert "JobPaused" in seen
    assert "JobResumed" in seen
    assert len(results) == 3
    for result in results:
        assert_equals_alone(result)


def test_run_returns_when_all_that_is_left_is_paused_and_goes_on_later() -> None:
    with unified.Engine(slots=1) as engine:
        engine.submit(make_spec("conv"))
        engine.pause("conv")
        assert list(engine.run()) == []
        assert engine.state("conv") == unified.JobState.PAUSED
        engine.resume("conv")
        engine.submit(make_spec("mlp"))
        for result in engine.run():
            assert_equals_alone(result)
        assert engine.state("conv") == unified.JobState.FINISHED


def test_a_cancelled_job_is_gone_and_its_neighbours_do_not_notice(tmp_path: Path) -> None:
    def watch(event: events.Event) -> None:
        if isinstance(event, events.EpochDone) and event.job == "endless":
            engine.cancel("endless")

    with unified.Engine(scheduler="round-robin", slots=1, out=tmp_path / "out", listeners=[watch]) as engine:
        engine.submit_all([make_spec("conv", name="endless", epochs=10**6), make_spec("mlp")])
        results = {result.name: result for result in engine.run()}
    assert results["endless"].state == unified.JobState.CANCELLED
    assert not (tmp_path / "out" / "endless").exists()
    with pytest.raises(unified.JobFailedError, match="cancelled"):
        _ = results["endless"].state_dict
    assert_equals_alone(results["mlp"])


class Failing(Conv):
    """Raises in its tenth training forward."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == 10:
            raise self.error
        return super().forward(x)


class Exploding(nn.Module):
    """Divides by what becomes zero: the loss turns NaN after some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) * 1e30


def test_failures_stay_with_their_owners(tmp_path: Path) -> None:
    def bad(name: str, model: nn.Module, **changes: Any) -> unified.JobSpec:
        return unified.JobSpec(model=model, data={"train": TRAIN}, **describe("conv", name=name, metrics=[], **changes))

    jobs = [
        bad("raises", Failing(ValueError("no such luck"))),
        make_spec("conv"),
        bad("out-of-memory", Failing(torch.OutOfMemoryError("tried to allocate 8 TiB"))),
        bad("explodes", Exploding(), optimizer={"name": "SGD", "lr": 1e30}),
        bad("exits", Failing(SystemExit("bye"))),
        make_spec("mlp"),
        bad("wrong-shape", nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Unflatten(1, (3, 1)))),
    ]
    with unified.Engine(scheduler="round-robin:quantum=5", slots=1, out=tmp_path / "out") as engine:
        engine.submit_all(jobs)
        results = {result.name: result for result in engine.run()}
    for name in ("conv", "mlp"):
        assert_equals_alone(results[name])
    assert results["raises"].reason == "ValueError: no such luck at step 10 (epoch 2)"
    assert "lower batch_size (it is 8)" in results["out-of-memory"].reason
    assert "the loss became" in results["explodes"].reason
    assert results["exits"].reason.startswith("SystemExit: bye")
    assert "CrossEntropyLoss refused output (8, 3, 1)" in results["wrong-shape"].reason
    assert "no such luck" in (tmp_path / "out" / "raises" / "job.log").read_text()
    assert not (tmp_path / "out" / "raises" / "result.json").exists()


def test_a_killed_worker_is_replaced_and_everybody_goes_on_exactly() -> None:
    """SIGKILL to the worker in the middle of a step; jobs go on from checkpoints or their beginning."""
    lost: list[events.WorkerLost] = []
    killed = False

    def watch(event: events.Event) -> None:
        nonlocal killed
        if isinstance(event, events.EpochDone) and event.job == "lstm" and event.epoch == 2 and not killed:
            killed = True
            nursery = next(child for child in psutil.Process().children() if "unified.nursery" in child.cmdline())
            for worker in nursery.children():
                os.kill(worker.pid, signal.SIGKILL)
        if isinstance(event, events.WorkerLost):
            lost.append(event)

    names = ["conv", "mlp", "lstm"]
    with unified.Engine(scheduler="round-robin:quantum=4", slots=1, listeners=[watch]) as engine:
        engine.submit_all([make_spec(name, checkpoint={"every_steps": 5}) for name in names])
        results = list(engine.run())
    assert [event.reason for event in lost] == ["killed by SIGKILL"]
    assert "lstm" in lost[0].jobs
    for result in results:
        assert_equals_alone(result)


class Deadly(nn.Module):
    """Kills its process, as a fault in a kernel or the system's memory guard would."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)
        self.parent = os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.requires_grad is False and type(x) is Tensor and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.head(x.flatten(1))


def test_a_job_that_kills_its_worker_fails_after_the_second_time_and_spares_the_others() -> None:
    deadly = unified.JobSpec(model=Deadly(), data={"train": TRAIN}, **describe("conv", name="deadly", metrics=[]))
    with unified.Engine(slots=1, threads=1) as engine:
        engine.submit_all([make_spec("mlp"), deadly, make_spec("lstm")])
        results = {result.name: result for result in engine.run()}
    assert results["deadly"].reason == "its worker died 2 times while it ran (killed by SIGKILL)"
    assert_equals_alone(results["mlp"])
    assert_equals_alone(results["lstm"])


def test_equal_data_is_one_dataset_whatever_it_is_called(tmp_path: Path) -> None:
    with unified.Engine(scheduler="fcfs", slots=1, out=tmp_path) as engine:
        copies = {"train": (TRAIN[0].clone(), TRAIN[1].clone()), "test": TEST}
        twin = unified.JobSpec(model=make_model("mlp"), data=copies, **describe("mlp", name="twin"))
        engine.submit_all([make_spec("conv"), twin])
        plan = engine.dry_run()
    assert list(plan.shared.values()) == [("conv", "twin")]


def test_members_may_join_while_others_train() -> None:
    joined = False

    def watch(event: events.Event) -> None:
        nonlocal joined
        if isinstance(event, events.EpochDone) and not joined:
            joined = True
            engine.submit(make_spec("mlp"))

    with unified.Engine(scheduler="round-robin", slots=1, listeners=[watch]) as engine:
        engine.submit(make_spec("conv"))
        results = list(engine.run())
    assert {result.name for result in results} == {"conv", "mlp"}
    for result in results:
        assert_equals_alone(result)


def test_a_job_that_cannot_fit_is_refused_with_the_number(engine: unified.Engine) -> None:
    inputs = torch.zeros(4, 1).expand(4, 1).contiguous()
    spec = unified.JobSpec(
        name="huge",
        model=torch.nn.Sequential(nn.Linear(1, 1), _Widen()),
        data={"train": (inputs, torch.zeros(4))},
        loss="MSELoss",
        optimizer="SGD",
        epochs=1,
        batch_size=4,
    )
    with pytest.raises(unified.DoesNotFitError, match=r"job 'huge': needs about .* TiB at batch_size 4"):
        engine.submit(spec)


class _Widen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.ones(1, 10**12, device=x.device)).mean(1)


def test_names_must_differ_and_ended_jobs_cannot_be_steered(engine: unified.Engine) -> None:
    with pytest.raises(unified.UnifiedError, match="two jobs named 'mlp'"):
        engine.submit_all([make_spec("mlp"), make_spec("mlp")])
    engine.submit(make_spec("mlp"))
    with pytest.raises(unified.UnifiedError, match="two jobs named 'mlp'"):
        engine.submit(make_spec("mlp"))
    with pytest.raises(unified.UnifiedError, match="no job named 'nobody'"):
        engine.pause("nobody")
    list(engine.run())
    with pytest.raises(unified.UnifiedError, match="has ended"):
        engine.pause("mlp")


def test_a_result_is_returned_while_the_others_still_train() -> None:
    """The short job's files are complete when its result is yielded, long before the long job ends."""
    with unified.Engine(scheduler="sjf:length=epochs", slots=1) as engine:
        engine.submit_all([make_spec("conv", name="long", epochs=400), make_spec("mlp")])
        results = engine.run()
        first = next(results)
        assert first.name == "mlp"
        assert_equals_alone(first)
        assert engine.state("long") != unified.JobState.FINISHED
        began = time.monotonic()
        results.close()
    assert time.monotonic() - began < 60
    assert alone("mlp")[1]


def test_a_storm_of_pauses_resumes_and_checkpoints_leaves_no_trace() -> None:
    """Commands pile up in the worker's inbox behind an eviction: the next turn must not begin inside the one that ends."""
    names = ["conv", "lstm"]
    with unified.Engine(scheduler="round-robin:quantum=20", slots=1, threads=1) as engine:
        engine.submit_all([make_spec(name, epochs=60) for name in names])

        def storm() -> None:
            random = Random(3)
            for _ in range(40):
                with contextlib.suppress(unified.UnifiedError):  # one that has ended meanwhile
                    engine.pause("conv")
                    engine.resume("conv")
                    for _ in range(random.randrange(6)):
                        engine.checkpoint("lstm")
                time.sleep(random.random() / 20)

        thread = threading.Thread(target=storm)
        thread.start()
        results = list(engine.run())
        thread.join()
        results += list(engine.run())
    assert sorted(result.name for result in results) == names
    for result in results:
        assert_equals_alone(result, epochs=60)


class DeadlyOnTheWayOut(nn.Module):
    """Ends its process when it is evaluated on as many samples as only the proof of its result has."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)
        self.parent = os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == NUM_PROOF_SAMPLES and not self.training and os.getpid() != self.parent and type(x) is Tensor:
            os._exit(3)
        return self.head(x.flatten(1))


def test_a_job_that_kills_its_worker_on_its_way_out_takes_the_blame_itself() -> None:
    bad = unified.JobSpec(
        model=torch.nn.Sequential(DeadlyOnTheWayOut()), data={"train": TRAIN}, **describe("mlp", name="bad", metrics=[])
    )
    with unified.Engine(slots=1, threads=1) as engine:
        engine.submit_all([bad, make_spec("lstm", epochs=40)])
        results = {result.name: result for result in engine.run()}
    assert results["bad"].reason is not None
    assert results["bad"].reason.startswith("its worker died 2 times")
    assert_equals_alone(results["lstm"], epochs=40)


class Meddling(Conv):
    """Turns the process's switches, in training and on its way out."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_flush_denormal(True)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1 + torch.get_num_threads() % 2)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(5)
        output = super().forward(x)
        torch.set_default_device("meta")
        return output


def test_switches_that_a_member_turns_are_back_for_the_others() -> None:
    # Two of them, as two processes read jobs: each of the others is read after one.
    meddling = [
        unified.JobSpec(model=Meddling(), data={"train": TRAIN}, **describe("conv", name=name, metrics=[], epochs=2))
        for name in ("meddling", "meddling-too")
    ]
    with unified.Engine(scheduler="round-robin:quantum=3", slots=1, threads=1) as engine:
        engine.submit_all([*meddling, make_spec("conv"), make_spec("lstm")])
        results = {result.name: result for result in engine.run()}
    for name in ("conv", "lstm"):
        assert_equals_alone(results[name])


def test_cancel_deletes_nothing_that_the_run_did_not_write(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "jobs", ["mlp"])
    (tmp_path / "out" / "mlp").mkdir(parents=True)
    (tmp_path / "out" / "mlp" / "precious").write_text("mine")
    with unified.Engine(out=tmp_path / "out", slots=1) as engine, pytest.raises(unified.UnifiedError, match="choose another"):
        engine.submit_folders([folder])
    with unified.Engine(out=folder, slots=1) as engine, pytest.raises(unified.UnifiedError, match="is a job folder"):
        engine.submit_folders([folder / "mlp"])
    with unified.Engine(out=tmp_path / "new", slots=1) as engine:
        engine.submit_folders([folder])
        engine.cancel("mlp")
        (result,) = engine.run()
    assert result.state == unified.JobState.CANCELLED
    assert (folder / "mlp" / "model.umodel").is_file()
    assert (tmp_path / "out" / "mlp" / "precious").read_text() == "mine"


def test_a_place_for_results_that_cannot_be_had_fails_that_job_alone(tmp_path: Path) -> None:
    def block(event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            (tmp_path / "out" / "conv").write_text("in the way")

    with unified.Engine(out=tmp_path / "out", slots=1, listeners=[block]) as engine:
        engine.submit_all([make_spec("conv"), make_spec("mlp")])
        results = {result.name: result for result in engine.run()}
    assert "its folder for results cannot be made" in (results["conv"].reason or "")
    assert_equals_alone(results["mlp"])


def test_a_listener_that_fails_and_a_second_run_do_not_end_the_first(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: events.Event) -> None:
        if type(event).__name__ == "EpochDone":
            raise RuntimeError("no good")

    with unified.Engine(slots=1, listeners=[fail]) as engine:
        engine.submit_all([make_spec("mlp"), make_spec("conv")])
        running = engine.run()
        first = next(running)
        with pytest.raises(unified.UnifiedError, match="running already"):
            list(engine.run())
        results = [first, *running]
    assert "a listener failed on EpochDone" in caplog.text
    for result in results:
        assert_equals_alone(result)
