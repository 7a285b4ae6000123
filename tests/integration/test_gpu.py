"""On a GPU: the contract in deterministic mode, memory, and failure; skipped without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unified
from tests.integration.batches import MEMBERS, TEST, TRAIN, describe, make_model, make_spec
from tests.plain import train_alone
from unified import events

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("scheduler", ["fcfs", "round-robin:quantum=3"])
def test_members_on_a_gpu_equal_the_plain_loop_there(scheduler: str) -> None:
    samples: list[events.MemorySampled] = []

    def watch(event: events.Event) -> None:
        if isinstance(event, events.MemorySampled):
            samples.append(event)

    with unified.Engine(scheduler=scheduler, device="cuda:0", deterministic=True, listeners=[watch]) as engine:
        engine.submit_all([make_spec(name) for name in MEMBERS])
        results = list(engine.run())
    assert len(results) == len(MEMBERS)
    assert samples
    assert all(sample.bytes_in_use > 0 for sample in samples)
    for result in results:
        assert str(result.state) == "finished", result.reason
        weights, rows = alone_on_gpu(result.name)
        for key, value in weights.items():
            assert torch.equal(result.state_dict[key], value), (result.name, key)
        assert {key: result.metrics[key] for key in rows[-1]} == rows[-1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_gpu_equals_the_plain_loop_under_autocast(precision: str) -> None:
    with unified.Engine(device="cuda:0", deterministic=True) as engine:
        engine.submit(make_spec("mlp", precision=precision))
        (result,) = engine.run()
    weights, _ = alone_on_gpu("mlp", precision=precision)
    for key, value in weights.items():
        assert torch.equal(result.state_dict[key], value), key


def test_a_paused_job_goes_on_exactly_on_a_gpu() -> None:
    def watch(event: events.Event) -> None:
        if isinstance(event, events.EpochDone) and event.job == "conv" and event.epoch == 1:
            engine.pause("conv")
        if isinstance(event, events.JobFinished):
            engine.resume("conv") if engine.state("conv") == unified.JobState.PAUSED else None

    with unified.Engine(scheduler="round-robin", device="cuda:0", deterministic=True, listeners=[watch]) as engine:
        engine.submit_all([make_spec("conv"), make_spec("mlp")])
        results = {result.name: result for result in engine.run()}
    weights, _ = alone_on_gpu("conv")
    for key, value in weights.items():
        assert torch.equal(results["conv"].state_dict[key], value), key


def alone_on_gpu(name: str, **changes: Any) -> Any:
    """Return what the plain loop makes of the member on the GPU, brought back to the CPU."""
    train, test = ((x.cuda(), y.cuda()) for x, y in (TRAIN, TEST))
    weights, rows = train_alone(make_model(name).cuda(), describe(name, **changes), train, test)
    return {key: value.cpu() for key, value in weights.items()}, rows
