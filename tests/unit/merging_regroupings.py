"""Samples for the small networks of the tests, and regroupings of them with a small estimator."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from fusion.merging.config import EstimatorConfig, RegroupConfig
from fusion.merging.merge import read_models
from fusion.merging.samples import MergeData, Samples
from fusion.merging.union import Union
from tests.unit.merging_networks import inputs_of

SMALL = EstimatorConfig(num_samples=32, num_draws=1, num_null=1)


def config(**options: Any) -> RegroupConfig:
    """Return options with a small estimator."""
    return RegroupConfig(**({"estimator": SMALL, "probe_samples": 48} | options))


def data_for(kind: type[nn.Module], num_tasks: int = 2, rows: int = 48) -> MergeData:
    """Return samples; the label of task number ``k`` is whether the input's mean, or a part of it, is above 0."""
    parts = []
    for seed in (0, 1):
        inputs = inputs_of(kind, rows, seed)
        flat = inputs.flatten(1)
        labels = {"ABCD"[task]: (flat[:, task :: task + 1].mean(1) > 0).long() for task in range(num_tasks)}
        parts.append(Samples(inputs=inputs, labels=labels))
    return MergeData(train=parts[0], validation=parts[1])


def networks_of(kind: type[nn.Module], num_tasks: int = 2) -> dict[str, nn.Module]:
    """Return networks by task, of unequal widths."""
    return {"ABCD"[task]: kind(num_outputs=2, width=4 + task, seed=task).eval() for task in range(num_tasks)}


@cache
def union_of(kind: type[nn.Module], num_tasks: int = 2) -> Union:
    """Return these networks put together."""
    return read_models(networks_of(kind, num_tasks), data_for(kind, num_tasks))


def deviation(merged: nn.Module, models: dict[str, nn.Module], inputs: torch.Tensor) -> float:
    """Return how far a merged network's answers are from the single networks', at most."""
    with torch.no_grad():
        answers = merged(inputs)
        return max(float((answers[task] - model(inputs)).abs().max()) for task, model in models.items())
