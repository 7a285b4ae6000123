"""The benchmark runs end to end at its smallest scale and says what it should; no test looks at a time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import cotraining
from benchmarks.equality import are_equal
from benchmarks.modes import MODES, ONE_SLOT, PROCESSES_1, SEQUENTIAL_1
from benchmarks.plain_loop import PlainJob, train_alone
from benchmarks.records import RunRecord
from benchmarks.verdicts import paired, targets

RUN_KEYS = {
    "mix", "mode", "repeat", "makespan", "span", "exit_seconds", "startup", "mean_completion", "p95_completion",
    "steps_per_second", "peak_bytes", "num_samples", "load_before", "is_stopped", "is_equal", "jobs",
}  # fmt: skip
AUTO = "unified, round-robin"


@pytest.mark.slow
def test_every_way_to_train_gives_the_weights_of_training_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("UNIFIED_DATA", raising=False)
    out = tmp_path / "result.json"
    modes = [SEQUENTIAL_1.name, PROCESSES_1.name, AUTO, ONE_SLOT.name]
    chosen = [argument for mode in modes for argument in ("--mode", mode)]
    cotraining.main(["--scale", "tiny", "--mix", "small", *chosen, "--out", str(out)])

    report = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert {"command", "git_commit", "machine", "versions", "settings", "mixes", "ratios", "targets"} <= set(report)
    assert [run["mode"] for run in report["runs"]] == [mode.name for mode in MODES if mode.name in modes]
    for run in report["runs"]:
        assert set(run) == RUN_KEYS
        assert [job["name"] for job in run["jobs"]] == ["conv-wide", "mlp-small", "encoder-small"]
        assert run["is_equal"], f"{run['mode']}: {run['jobs']}"
        assert run["peak_bytes"] > 2**20
        assert 0 < run["startup"] < run["makespan"]
    assert {target["mode"] for target in report["targets"]} == {AUTO, ONE_SLOT.name}


def test_a_recorded_command_names_no_place_on_this_machine(tmp_path):
    settings = cotraining.read_settings(["--quick", "--data", str(tmp_path), "--out", str(tmp_path / "x.json")])
    assert str(tmp_path) not in cotraining.command_line(settings)


def test_ratios_are_taken_within_a_repeat_and_against_the_better_baseline():
    plain = RunRecord(
        mix="small", mode="b1", repeat=0, makespan=10.0, span=0, exit_seconds=0, startup=0, mean_completion=0,
        p95_completion=0, steps_per_second=0, peak_bytes=0, num_samples=0, load_before=0, is_stopped=False, jobs=(),
    )  # fmt: skip
    runs = [
        plain,
        replace(plain, repeat=1, makespan=40.0),
        replace(plain, mode="b2", makespan=20.0),
        replace(plain, mode="b2", repeat=1, makespan=20.0),
        replace(plain, mode="ours", makespan=5.0),
        replace(plain, mode="ours", repeat=1, makespan=5.0),
    ]
    assert paired(runs, "small", "makespan", mode="ours", baselines=["b1", "b2"]) == [0.5, 0.25]
    assert paired(runs, "small", "makespan", mode="ours", baselines=["not run"]) == []


def test_each_further_resident_job_is_held_against_its_bound():
    (reached,) = targets([], [12.0, 40.0, 20.0])
    (missed,) = targets([], [12.0, 40.0, 33.0])
    assert reached.is_reached
    assert not missed.is_reached


def test_weights_are_equal_only_if_every_bit_and_the_order_of_names_is(tmp_path):
    first = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor(3)}
    variants = {
        "same": {"a": first["a"].clone(), "b": torch.tensor(3)},
        "order": {"b": first["b"], "a": first["a"]},
        "sign": {"a": torch.tensor([1.0, -float("nan")]), "b": first["b"]},
        "dtype": {"a": first["a"], "b": torch.tensor(3, dtype=torch.int32)},
        "shape": {"a": first["a"], "b": torch.tensor([3])},
    }
    torch.save(first, tmp_path / "first.pt")
    for name, variant in variants.items():
        torch.save(variant, tmp_path / f"{name}.pt")
    pairs = [(tmp_path / "first.pt", tmp_path / f"{name}.pt") for name in variants]
    assert are_equal(pairs) == [True, False, False, False, False]


def test_the_plain_loop_takes_the_steps_that_its_recipe_says():
    torch.manual_seed(3)
    inputs, targets_ = torch.randn(5, 4), torch.randint(2, (5,))
    model = nn.Linear(4, 2)
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in (model.weight, model.bias))
    recipe = {
        "loss": "CrossEntropyLoss", "optimizer": {"name": "SGD", "lr": 0.5}, "epochs": 2, "batch_size": 5, "seed": 7,
        "lr_scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.1, "every": "epoch"}, "metrics": ["accuracy"],
    }  # fmt: skip
    data = (inputs, targets_)
    state_dict, metrics = train_alone(PlainJob(model=model, train=data, test=data, recipe=recipe), threads=1)

    for lr in (0.5, 0.05):  # full batches: their order does not matter beyond rounding
        gradients = torch.autograd.grad(F.cross_entropy(inputs @ weight.T + bias, targets_), (weight, bias))
        weight, bias = (
            (value - lr * gradient).detach().requires_grad_() for value, gradient in zip((weight, bias), gradients, strict=True)
        )
    torch.testing.assert_close(state_dict["weight"], weight.detach())
    torch.testing.assert_close(state_dict["bias"], bias.detach())
    logits = (inputs @ weight.T + bias).detach()
    assert metrics["test_loss"] == pytest.approx(float(F.cross_entropy(logits, targets_)), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == targets_).float().mean()))
