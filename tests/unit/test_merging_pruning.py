"""Importance, noise and turns of pruning, against second ways to work them out."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fusion.merging.costs import neuron_costs
from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.layers import Kind
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import Neurons
from fusion.merging.pruning import PruneConfig, floors_for, flops_by_combination, prune_alternating, prune_singles
from fusion.merging.reading import read_network
from fusion.merging.reconnect import alone, own_groups, reconnect
from fusion.merging.removal import choose
from fusion.merging.resizing import resize
from fusion.merging.samples import MergeData, Samples
from fusion.merging.taylor import taylor_scores
from fusion.merging.training import TrainConfig, Trainer
from fusion.merging.union import Union, unite
from fusion.merging.vib import Bottleneck, fold

RULES = ("remove", "max", "mean", "demote")


def small_cnn(outputs: int, *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, outputs),
    ).eval()  # fmt: skip


def made_up(count: int, *, seed: int = 0) -> Samples:
    """Pictures whose left half tells one label and whose right half another."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 8, 8, generator=generator)
    left, right = torch.randint(2, (2, count), generator=generator)
    inputs[:, 0, :, :4] += 1.5 * left[:, None, None]
    inputs[:, 0, :, 4:] += 1.5 * right[:, None, None]
    return Samples(inputs=inputs, labels={"a": left, "b": right, "c": left ^ right})


@functools.cache
def united(tasks: str) -> Union:
    example = made_up(4).inputs
    return unite([read_network(small_cnn(2, seed=number), example, name=task) for number, task in enumerate(tasks)])


def shared_network(tasks: str = "ab", *, seed: int = 0) -> MergedNetwork:
    """Networks merged at random groups."""
    union = united(tasks)
    generator = torch.Generator().manual_seed(seed)
    groups = {}
    for number, space in union.spaces.items():
        if space.frozen:
            continue
        own = own_groups(union, number)
        full = (1 << len(tasks)) - 1
        is_shared = torch.rand(len(own), generator=generator) < 0.4
        is_shared[0] = True
        groups[number] = Neurons(origin=own.origin, index=own.index, group=torch.where(is_shared, full, own.group))
    return reconnect(union, groups)


@pytest.fixture(scope="module")
def data() -> MergeData:
    return MergeData(train=made_up(256), validation=made_up(128, seed=1), test=made_up(128, seed=2))


def test_importance_is_the_squared_slope_of_the_loss_in_each_neurons_factor(data: MergeData):
    merged = shared_network().double()
    samples = Samples(inputs=data.train.inputs.double(), labels=data.train.labels)
    config = TrainConfig(batch_size=32, seed=3)
    found = taylor_scores(Trainer(merged, samples, config), "a", 2)
    feed = Trainer(merged, samples, config)
    batches = [feed.next_batch() for _ in range(2)]
    for space in merged.prunable:
        for place in range(len(merged.neurons[space])):
            slopes = [_slope(merged, batch, space, place) for batch in batches]
            # central differences of step 1e-5 in double precision: their own error is near 1e-9
            assert found[space][place].item() == pytest.approx(sum(slope**2 for slope in slopes), rel=1e-4, abs=1e-9)


def _slope(merged: MergedNetwork, batch: Samples, space: int, place: int) -> float:
    losses = []
    for sign in (1, -1):

        def gate(step, feature, sign=sign):
            if step.space != space:
                return feature
            factor = torch.ones(len(merged.neurons[space]), dtype=feature.dtype)
            factor[place] += sign * 1e-5
            factor = factor[merged.channels(step)]
            if step.kind is Kind.FLATTEN:
                return feature * factor.repeat_interleave(step.positions)
            return feature * factor.view(1, -1, *[1] * (feature.ndim - 2))

        with torch.no_grad():
            losses.append(float(F.cross_entropy(merged(batch.inputs, ["a"], gate)["a"], batch.labels["a"])))
    return (losses[0] - losses[1]) / 2e-5


def test_neurons_that_a_task_does_not_read_have_no_importance_for_it(data: MergeData):
    merged = shared_network()
    found = taylor_scores(Trainer(merged, data.train, TrainConfig()), "a", 2)
    for space, values in found.items():
        assert bool((values[merged.neurons[space].group == 2] == 0).all())


@pytest.mark.parametrize("tasks", ["ab", "abc"])
def test_what_a_neuron_costs_is_what_its_removal_saves(tasks: str):
    merged = shared_network(tasks)
    for bits in range(1, 1 << len(tasks)):
        names = [name for number, name in enumerate(tasks) if bits >> number & 1]
        costs = neuron_costs(merged, bits)
        for space in merged.prunable:
            for place in range(len(merged.neurons[space])):
                smaller = copy.deepcopy(merged)
                keep = torch.tensor([number for number in range(len(merged.neurons[space])) if number != place])
                try:
                    resize(smaller, {space: keep})
                except MergeError:
                    continue  # the last one of a task
                assert flops(merged, names) - flops(smaller, names) == costs[space][place]


@settings(deadline=None, max_examples=25)
@given(rule=st.sampled_from(RULES), seed=st.integers(0, 50), chunk=st.floats(0.01, 0.9), tasks=st.sampled_from(["ab", "abc"]))
def test_no_turn_leaves_a_task_without_neurons_or_gives_a_neuron_a_task(rule, seed, chunk, tasks):
    merged = shared_network(tasks, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    importance = {
        task: {space: torch.rand(len(merged.neurons[space]), generator=generator) for space in merged.prunable}
        for task in tasks
    }
    before = {task: flops(merged, [task]) for task in tasks}
    groups = {space: neurons.group for space, neurons in merged.neurons.items()}
    removal = choose(merged, tasks[0], importance, chunk=chunk, rule=rule)
    assert removal.kept
    for space, kept in removal.kept.items():
        assert bool(((removal.groups[space] & ~groups[space][kept]) == 0).all())
    resize(merged, removal.kept, removal.groups)
    assert flops(merged, [tasks[0]]) < before[tasks[0]]
    for task in tasks:
        if rule != "demote":  # a neuron that serves fewer tasks may read more
            assert flops(merged, [task]) <= before[task]
        assert bool(torch.isfinite(merged(made_up(2).inputs)[task]).all())


def test_a_shared_neuron_that_one_task_gives_up_meets_the_rule():
    merged = shared_network()
    importance = {task: {space: torch.ones(len(merged.neurons[space])) for space in merged.prunable} for task in "ab"}
    space = min(merged.prunable)
    shared = int((merged.neurons[space].group == 3).nonzero()[0])
    importance["a"][space] = importance["a"][space].clone()
    importance["a"][space][shared] = 0.0  # task a does without it, task b does not
    size = len(merged.neurons[space])
    removed = choose(merged, "a", importance, chunk=1e-9, rule="remove")
    assert removed.kept[space].tolist() == [place for place in range(size) if place != shared]
    demoted = choose(merged, "a", importance, chunk=1e-9, rule="demote")
    assert demoted.kept[space].tolist() == list(range(size))
    assert demoted.groups[space][shared] == 2
    importance["b"][space] = importance["b"][space].clone()
    importance["b"][space][shared] = 2.0
    kept = choose(merged, "a", importance, chunk=1e-9, rule="max", per_flop=False)
    assert shared in kept.kept.get(space, torch.arange(size)).tolist()


def test_noise_of_nothing_is_the_gate_of_means_and_folds_into_the_weights(data: MergeData):
    merged = shared_network()
    bottleneck = Bottleneck(merged, seed=0)
    with torch.no_grad():
        for mu in bottleneck.mu.values():
            mu.copy_(torch.rand_like(mu) + 0.5)
        for variance in bottleneck.log_variance.values():
            variance.fill_(-80.0)  # a deviation below float32's resolution of the values
    trainer = Trainer(merged, data.train, TrainConfig(), bottleneck=bottleneck)
    x = data.validation.inputs
    means = trainer.answer(x)
    for number, task in enumerate(merged.tasks):
        torch.testing.assert_close(merged(x, [task], bottleneck.noisy(merged, number))[task], means[task])
    fold(merged, bottleneck)
    for task, answer in merged(x).items():
        torch.testing.assert_close(answer, means[task], rtol=1e-4, atol=1e-5)  # the same products in another order


def test_the_penalty_is_the_weighted_sum_over_tasks_and_their_neurons():
    merged = shared_network()
    bottleneck = Bottleneck(merged, seed=0)
    expected = 0.0
    for number in range(2):
        costs = neuron_costs(merged, 1 << number)
        whole = sum(float(costs[space].sum()) for space in merged.prunable)
        for space in merged.prunable:
            for place, group in enumerate(merged.neurons[space].group.tolist()):
                if group >> number & 1:
                    mu = bottleneck.mu[str(space)][place].item()
                    variance = torch.exp(bottleneck.log_variance[str(space)][number, place]).item()
                    expected += 0.5 * float(costs[space][place]) / whole * float(torch.log1p(torch.tensor(mu**2 / variance)))
    assert bottleneck.penalty(merged).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["taylor", "vib"])
def test_pruning_makes_every_combination_cheaper_within_the_floors(data: MergeData, method: str):
    merged = shared_network()
    Trainer(merged, data.train, TrainConfig(lr=3e-3)).train(150)
    trained = _scores(merged, data)
    before = flops_by_combination(merged)
    config = PruneConfig(method=method, chunk=0.3, steps=30, mend_steps=20, final_steps=20, train=TrainConfig(lr=3e-3))
    told = []
    pruned = prune_alternating(merged, data, floors_for(trained, 0.05), config, progress=told.append)
    assert pruned.is_feasible
    assert pruned.network is merged
    assert all(pruned.scores[task] >= trained[task] - 0.05 for task in merged.tasks)
    assert pruned.scores == _scores(merged, data)
    after = flops_by_combination(merged)
    assert all(after[names] < before[names] for names in before)
    assert after[("a",)] <= after[("a", "b")] <= after[("a",)] + after[("b",)]
    assert list(told) == list(pruned.rounds)


def _scores(merged: MergedNetwork, data: MergeData) -> dict[str, float]:
    answers = merged(data.validation.inputs)
    return {task: float((answers[task].argmax(1) == data.validation.labels[task]).double().mean()) for task in merged.tasks}


def test_a_snapshot_brings_back_the_very_network_and_its_training(data: MergeData):
    merged = shared_network()
    trainer = Trainer(merged, data.train, TrainConfig(seed=1), bottleneck=Bottleneck(merged, seed=0), kl=0.1)
    trainer.train(5)
    snapshot = trainer.snapshot()
    before = trainer.answer(data.validation.inputs)
    trainer.train(5)
    importance = {"a": taylor_scores(trainer, "a", 1)}
    removal = choose(merged, "a", importance, chunk=0.4, rule="remove")
    trainer.resize(removal.kept, removal.groups)
    trainer.train(5)
    trainer.restore(snapshot)
    after = trainer.answer(data.validation.inputs)
    assert all(torch.equal(before[task], after[task]) for task in merged.tasks)
    assert all(parameter.shape == state["exp_avg"].shape for parameter, state in trainer.optimizer.state.items())


def test_single_networks_are_pruned_each_alone(data: MergeData):
    example = data.train.inputs[:2]
    networks = {task: alone(read_network(small_cnn(2, seed=0), example, name=task)) for task in "ab"}
    for network in networks.values():
        Trainer(network, data.train, TrainConfig(lr=3e-3)).train(100)
    floors = {task: _scores(network, data)[task] - 0.05 for task, network in networks.items()}
    config = PruneConfig(chunk=0.3, steps=10, mend_steps=10, final_steps=0, max_rounds=3)
    told = []
    pruned = prune_singles(networks, data, floors, config, progress=lambda task, done: told.append((task, done.number)))
    assert {task for task, _ in told} == {"a", "b"}
    assert list(pruned) == ["a", "b"]


def test_floors_and_options_that_do_not_fit_are_refused(data: MergeData):
    with pytest.raises(MergeError, match="missing: b"):
        prune_alternating(shared_network(), data, {"a": 0.5}, PruneConfig())
    with pytest.raises(MergeError, match="max_drop"):
        floors_for({"a": 0.9}, 1.5)
    with pytest.raises(MergeError, match="taylor"):
        PruneConfig(method="magnitude")  # type: ignore[arg-type]
    with pytest.raises(MergeError, match="min_chunk"):
        PruneConfig(chunk=0.01, min_chunk=0.1)


def test_combinations_come_by_size():
    names = list(flops_by_combination(shared_network("abc")))
    assert names == [combination for size in (1, 2, 3) for combination in itertools.combinations("abc", size)]
