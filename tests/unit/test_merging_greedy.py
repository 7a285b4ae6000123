"""The greedy search against a naive one, and what its traces promise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusion.merging.config import EstimatorConfig, LabelMode, Threshold
from fusion.merging.errors import MergeError
from fusion.merging.greedy import trace
from fusion.merging.information import information
from tests.unit.merging_layers import two_nets

SEEDS = st.integers(0, 10**6)
ALPHAS = (0.0, 0.02, 0.1, 0.3, 0.7, 1.0, math.inf)


def _naive_informations(values: Tensor, labels: Tensor, s2: float) -> list[float]:
    kernel = torch.exp((values[:, None] - values[None]).square().sum(dim=2) / (-2 * s2))
    told = []
    for column in labels.T:
        same = (column[:, None] == column).double()
        told.append(float((((kernel * same).sum(1) / same.sum(1)).log() - kernel.mean(1).log()).mean()))
    return told


def _naive_order(values: Tensor, labels: Tensor, s2: float, mode: LabelMode) -> tuple[list[int], list[float]]:
    """The greedy search written down literally, in double precision, for neurons of one value."""
    scaled = values.double() / (2 * values.double().var(dim=0)).sqrt()
    shares = torch.stack([labels.double().mean(0), 1 - labels.double().mean(0)])
    entropies = -(shares * shares.log()).sum(0)

    def told(neurons: list[int]) -> float:
        each = torch.tensor(_naive_informations(scaled[:, neurons], labels, s2), dtype=torch.float64)
        return float(each.mean() if mode == "mean_marginal" else (each / entropies).max() * entropies.mean())

    order: list[int] = []
    values_of: list[float] = []
    while len(order) < values.shape[1]:
        waiting = [neuron for neuron in range(values.shape[1]) if neuron not in order]
        scores = [told([*order, neuron]) for neuron in waiting]
        order.append(waiting[scores.index(min(scores))])
        values_of.append(min(scores))
    return order, values_of


@pytest.mark.parametrize("mode", ["mean_marginal", "max_marginal"])
@pytest.mark.parametrize("seed", range(4))
def test_search_is_the_naive_one(seed: int, mode: LabelMode):
    values, _, labels = two_nets(seed)
    ours = trace(values, labels, EstimatorConfig(label_mode=mode))
    order, informations = _naive_order(values, labels, ours.s2, mode)
    assert [step.neuron for step in ours.steps] == order
    assert [step.information for step in ours.steps] == pytest.approx(informations, abs=1e-5)  # single precision


@given(seed=SEEDS, draws=st.integers(1, 3), positions=st.integers(1, 3))
@settings(deadline=None, max_examples=15)
def test_each_step_is_what_the_set_is_estimated_to_tell(seed: int, draws: int, positions: int):
    values, _, labels = two_nets(seed)
    values = values.reshape(96, 12 // positions, positions)
    config = EstimatorConfig(num_samples=32, num_draws=draws, seed=seed)
    whole = trace(values, labels, config)
    chosen = [step.neuron for step in whole.steps]
    assert sorted(chosen) == list(range(12 // positions))
    for count, step in enumerate(whole.steps, start=1):
        told = information(values, labels, config, neurons=chosen[:count])
        assert step.information == pytest.approx(told.information, abs=1e-5)  # products against sums, single precision
        assert step.null == pytest.approx(told.null, abs=1e-5)
    excesses = [max(0.0, step.information - step.null) for step in whole.steps]
    assert [step.value for step in whole.steps] == [max(excesses[: count + 1]) for count in range(len(excesses))]
    assert whole.total == pytest.approx(excesses[-1], abs=1e-5)


@given(seed=SEEDS, alpha=st.sampled_from(ALPHAS), unit=st.sampled_from(["layer", "entropy", "nats"]))
@settings(deadline=None, max_examples=30)
def test_prefix_of_the_whole_trace_is_the_run_at_its_threshold(seed: int, alpha: float, unit: str):
    values, _, labels = two_nets(seed)
    threshold = Threshold(alpha=alpha, unit=unit)  # pyrefly: ignore
    whole = trace(values, labels, EstimatorConfig())
    ended = trace(values, labels, EstimatorConfig(), ceiling=threshold)
    chosen = whole.prefix(threshold)
    assert ended.prefix(threshold) == chosen
    assert ended.steps == whole.steps[: len(ended.steps)]
    assert ended.is_complete or len(ended.steps) == len(chosen) + 1  # nothing is searched beyond the first that exceeds it
    limit = threshold.nats(total=whole.total, entropy=whole.entropy)
    assert all(step.value <= limit for step in whole.steps[: len(chosen)])


@given(seed=SEEDS, alphas=st.lists(st.sampled_from(ALPHAS), min_size=1, max_size=4))
@settings(deadline=None, max_examples=20)
def test_trace_gone_on_with_is_the_whole_trace(seed: int, alphas: list[float]):
    values, _, labels = two_nets(seed)
    config = EstimatorConfig(num_samples=48)
    grown = None
    for alpha in [*sorted(alphas), math.inf]:
        grown = trace(values, labels, config, ceiling=Threshold(alpha=alpha), start=grown)
    assert grown == trace(values, labels, config)


def test_trace_that_was_ended_does_not_answer_beyond_its_end():
    values, _, labels = two_nets(0)
    ended = trace(values, labels, EstimatorConfig(), ceiling=Threshold(alpha=0.05))
    assert not ended.is_complete
    with pytest.raises(MergeError, match="extend"):
        ended.prefix(Threshold(alpha=0.9))


def test_trace_is_not_gone_on_with_for_other_labels():
    values, labels_a, labels_b = two_nets(0)
    started = trace(values, labels_a, EstimatorConfig(), ceiling=Threshold(alpha=0.05))
    with pytest.raises(MergeError, match="other neurons, labels or options"):
        trace(values, labels_b, EstimatorConfig(), start=started)


def test_equal_neurons_enter_by_index():
    values, _, labels = two_nets(0, neurons=2)
    doubled = values[:, [0, 1, 0, 1, 2, 3]]
    order = [step.neuron for step in trace(doubled, labels, EstimatorConfig()).steps]
    assert order.index(0) < order.index(2)
    assert order.index(1) < order.index(3)


def test_only_candidates_enter_but_the_noise_is_the_layers():
    values, _, labels = two_nets(0)
    whole = trace(values, labels, EstimatorConfig())
    some = trace(values, labels, EstimatorConfig(), candidates=[7, 1, 4])
    assert sorted(step.neuron for step in some.steps) == [1, 4, 7]
    assert (some.s2, some.total, some.num_candidates) == (whole.s2, whole.total, 3)
    assert trace(values, labels, EstimatorConfig(), candidates=[]).prefix(Threshold(alpha=0.1)) == ()
    with pytest.raises(MergeError, match=r"\[12\] are not among the 12"):
        trace(values, labels, EstimatorConfig(), candidates=[0, 12])


@pytest.mark.parametrize("normalise", ["neuron", "network"])
def test_nets_of_other_scale_give_the_same_sets(normalise: str):
    values, _, labels = two_nets(3)
    config = EstimatorConfig(normalise=normalise)  # pyrefly: ignore
    origins = [0] * 6 + [1] * 6
    scaled = torch.cat([values[:, :6] * 2**10, values[:, 6:]], dim=1)  # a power of 2, so that the digits stay the same
    order, other = ([step.neuron for step in trace(one, labels, config, origins=origins).steps] for one in (values, scaled))
    assert order == other


@given(seed=SEEDS)
@settings(deadline=None, max_examples=8)
def test_neurons_of_a_task_are_found(seed: int):
    values, labels_a, labels_b = two_nets(seed, samples=512, neurons=20, bits=5)
    for labels, own in ((labels_b, set(range(20))), (labels_a, set(range(20, 40)))):
        found = set(
            trace(values, labels, EstimatorConfig(seed=seed), ceiling=Threshold(alpha=0.1)).prefix(Threshold(alpha=0.1))
        )
        assert len(found & own) >= 0.9 * len(own)
        assert len(found - own) <= 0.2 * len(found)


def test_sharp_kernels_are_called_saturated():
    values, _, labels = two_nets(0)
    assert not trace(values, labels, EstimatorConfig()).is_saturated
    assert trace(values, labels, EstimatorConfig(gamma=50.0)).is_saturated


def test_seed_decides_the_draws():
    values, _, labels = two_nets(0)
    config = EstimatorConfig(num_samples=32, num_draws=2)
    assert trace(values, labels, config) == trace(values, labels, config)
    assert trace(values, labels, config).steps != trace(values, labels, replace(config, seed=1)).steps
