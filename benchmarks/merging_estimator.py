"""The estimator behind pruning-aware merging: its greedy search against a naive one, and the planted neurons that it finds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fusion.merging.config import EstimatorConfig, Threshold
from fusion.merging.greedy import Trace, trace

NUM_NEURONS, NUM_SAMPLES, NUM_STEPS = 60, 400, 30
NUM_BITS, COPIES = 5, 8  # of the planted layers: a task's labels, and neurons per label
ALPHA = 0.1


def estimator_figures(seed: int = 0) -> dict[str, float]:
    """Return the figures of M1 and M2.

    Returns:
        ``max_abs_difference`` in nats and ``same_order`` (1 or 0) of the first 30 of 60 steps of both searches,
        ``naive_seconds``, ``incremental_seconds`` and ``speedup``, for as many threads as torch is set to;
        ``planted_recovered_share`` and ``planted_foreign_share``, means over both tasks, and ``values_without_null``.
    """
    return _against_naive(seed) | _planted(seed)


def _against_naive(seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (NUM_SAMPLES,), generator=generator)
    weights = torch.rand(NUM_NEURONS, generator=generator)
    values = torch.randn(NUM_SAMPLES, NUM_NEURONS, generator=generator) + labels[:, None] * weights
    config = EstimatorConfig(num_samples=NUM_SAMPLES, num_null=0, seed=seed)
    whole = trace(values, labels, config)
    # a trace ends with the neuron that exceeds its ceiling: this one with the last of as many steps as the naive search makes
    ceiling = Threshold(alpha=whole.steps[NUM_STEPS - 2].value, unit="nats")
    begin = time.perf_counter()
    ours = trace(values, labels, config, ceiling=ceiling)
    took = time.perf_counter() - begin
    begin = time.perf_counter()
    order, informations = naive_greedy(values, labels, s2=ours.s2, num_steps=NUM_STEPS)
    naive_took = time.perf_counter() - begin
    return {
        "max_abs_difference": max(abs(step.information - told) for step, told in zip(ours.steps, informations, strict=True)),
        "same_order": float([step.neuron for step in ours.steps] == order),
        "naive_seconds": naive_took,
        "incremental_seconds": took,
        "speedup": naive_took / took,
    }


def naive_greedy(values: Tensor, labels: Tensor, *, s2: float, num_steps: int) -> tuple[list[int], list[float]]:
    """Order neurons with the formula of the estimator from the beginning for every candidate of every step, in float64.

    Args:
        values: ``(samples, neurons)``, divided here by each neuron's root mean squared distance.
        labels: Classes ``(samples,)``.
        s2: Variance of the noise.
        num_steps: Neurons to choose.

    Returns:
        The neurons and the information of the set with each, in nats.
    """
    scaled = values.double() / (2 * values.double().var(dim=0)).sqrt()
    order: list[int] = []
    informations: list[float] = []
    for _ in range(num_steps):
        told = {c: _naive_information(scaled[:, [*order, c]], labels, s2) for c in range(values.shape[1]) if c not in order}
        best = min(told, key=lambda neuron: told[neuron])
        order.append(best)
        informations.append(told[best])
    return order, informations


def _naive_information(values: Tensor, labels: Tensor, s2: float) -> float:
    kernel = torch.exp((values[:, None] - values[None]).square().sum(dim=2) / (-2 * s2))
    told = -kernel.mean(dim=1).log().sum()
    for label in labels.unique():
        of_class = labels == label
        told = told + kernel[of_class][:, of_class].mean(dim=1).log().sum()
    return float(told / len(labels))


def _planted(seed: int) -> dict[str, float]:
    """Plant neurons of two tasks and shared ones, and look for the tasks' own: each task's have 5 dimensions."""
    values, labels_a, labels_b = planted(seed)
    half = NUM_BITS * COPIES
    own = {"a": set(range(half)), "b": set(range(half, 2 * half))}
    config = EstimatorConfig(seed=seed)
    traces = {"a": trace(values, labels_b, config), "b": trace(values, labels_a, config)}
    found = {task: set(traces[task].prefix(Threshold(alpha=ALPHA))) for task in own}
    return {
        "planted_recovered_share": _mean([len(found[task] & own[task]) / half for task in own]),
        "planted_foreign_share": _mean([len(found[task] - own[task]) / max(1, len(found[task])) for task in own]),
        "values_without_null": float(sum(_without_null(one) for one in traces.values())),
    }


def planted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(512, 100)`` values and the ``(512, 5)`` labels of two tasks that have nothing in common.

    Forty neurons are noisy copies of the first task's labels, forty of the second's, twenty of the sum of one label of each.
    """
    generator = torch.Generator().manual_seed(seed)
    labels_a, labels_b = (torch.randint(0, 2, (512, NUM_BITS), generator=generator) for _ in range(2))
    shared = (labels_a + labels_b).repeat(1, COPIES // 2)
    clean = torch.cat([labels_a.repeat(1, COPIES), labels_b.repeat(1, COPIES), shared], dim=1).float()
    return clean + 0.3 * torch.randn(clean.shape, generator=generator), labels_a, labels_b


def _without_null(one: Trace) -> int:
    return sum(not (math.isfinite(step.null) and step.null != 0) for step in one.steps)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
