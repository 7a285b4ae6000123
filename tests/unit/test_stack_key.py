"""Which jobs have one signature: equal but for their numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import unified
from tests.unit.test_trainer import Net, make_data, make_job
from unified.datasets import TensorData
from unified.job import JobSpec
from unified.stack_key import stack_key
from unified.submission.umodel_read import load_umodel


def key(model: nn.Module | None = None, **changes: Any) -> str | None:
    inputs, targets = make_data()
    return stack_key(JobSpec.parse(make_job(**changes)), model or Net(), TensorData(inputs=inputs, targets=targets))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other", "seed": 9, "epochs": 7, "drop_last": True, "clip_grad_norm": 0.5, "priority": 3, "metrics": []},
        {"optimizer": {"name": "SGD", "lr": 0.5, "momentum": 0.1, "weight_decay": 0.1}},
        {"lr_scheduler": {"name": "StepLR", "step_size": 1}, "early_stopping": {"metric": "test_loss", "patience": 1}},
        {"epochs": None, "max_steps": 5, "checkpoint": {"every_steps": 3}, "on_nan": "keep"},
    ],
)
def test_a_jobs_own_numbers_do_not_part_it_from_the_others(changes: dict[str, Any]) -> None:
    assert key(**changes) == key() is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        {"loss": {"name": "CrossEntropyLoss", "label_smoothing": 0.1}},
        {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True}},
        {"optimizer": {"name": "Adam", "lr": 0.05}},
    ],
)
def test_what_steps_otherwise_has_another_key(changes: dict[str, Any]) -> None:
    assert key(**changes) not in {key(), None}


@pytest.mark.parametrize(
    "changes", [{"stacking": "never"}, {"stacking": "exact"}, {"precision": "bf16"}, {"optimizer": "Rprop"}]
)
def test_a_job_that_steps_by_itself_has_none(changes: dict[str, Any]) -> None:
    assert key(**changes) is None


def test_models_differ_by_their_structure_not_by_their_weights() -> None:
    dropout, scaled, hooked = Net(), Net(), Net()
    dropout.drop.p = 0.5
    scaled.scale = 2.0
    hooked.conv.register_forward_hook(lambda *_: None)
    assert key(hooked) is None
    assert len({key(), key(dropout), key(scaled), key(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))}) == 4


def test_a_stored_graph_has_the_same_key_whatever_its_weights(tmp_path: Any) -> None:
    keys = set()
    for seed in range(2):
        torch.manual_seed(seed)
        unified.export(Net(), make_data()[0][:2], tmp_path / f"{seed}.umodel")
        keys.add(key(load_umodel(tmp_path / f"{seed}.umodel")))
    assert len(keys) == 1
    assert None not in keys
