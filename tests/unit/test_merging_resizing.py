"""Taking neurons out is slicing: of weights, of statistics, of the optimizer's state; what is cut off stays cut off."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.merging.errors import MergeError
from fusion.merging.gates import Gates
from fusion.merging.layers import MAKERS, Kind
from fusion.merging.merged import edges
from fusion.merging.resizing import resize
from tests.unit.merging_networks import KINDS, LeNet, inputs_of, random_merged

SEEDS = st.integers(0, 10**6)


def some(merged, seed: int) -> dict[int, torch.Tensor]:
    """Draw the neurons that stay: every task keeps one in every space."""
    draw, kept = random.Random(seed), {}
    for space in merged.prunable:
        neurons = merged.neurons[space]
        stays = torch.tensor([draw.random() < 0.6 for _ in range(len(neurons))])
        for task in range(len(merged.tasks)):
            mine = neurons.of(1 << task)
            stays[mine[draw.randrange(len(mine))] if len(mine) else []] = True
        kept[space] = stays.nonzero().flatten()
    return kept


def demoted(merged, kept, seed: int) -> dict[int, torch.Tensor]:
    """Draw tasks that neurons lose: one in two shared neurons loses one, if the task has another neuron."""
    draw, groups = random.Random(seed), {}
    for space, positions in kept.items():
        group = merged.neurons[space].group[positions].clone()
        for place in range(len(group)):
            task = 1 << draw.randrange(len(merged.tasks))
            others = int(((group & task) != 0).sum()) - 1
            if draw.random() < 0.5 and int(group[place]) & task and int(group[place]) != task and others:
                group[place] &= ~task
        groups[space] = group
    return groups


def step_of(merged, optimizer, kind) -> None:
    """Train one step on whatever, so that the optimizer has a state."""
    optimizer.zero_grad()
    torch.stack([answer.square().sum() for answer in merged(inputs_of(kind)).values()]).sum().backward()
    optimizer.step()


def forbidden_weights(merged) -> float:
    """Return the largest weight of an edge that there may not be, by the groups as they are."""
    worst = 0.0
    for position, step in enumerate(merged.steps):
        if step.kind in MAKERS:
            source = merged.steps[step.inputs[0]]
            there = edges(merged.groups(step), merged.groups(source))
            there = there.repeat_interleave(source.positions, 1) if step.kind is Kind.LINEAR else there[:, :, None, None]
            worst = max(worst, float((merged.part(position).weight.detach().abs() * ~there).max()))
    return worst


@settings(deadline=None, max_examples=12)
@given(kind=st.sampled_from(KINDS), num_tasks=st.sampled_from([2, 3]), seed=SEEDS)
def test_removal_is_a_gate_of_zero(kind, num_tasks, seed):
    merged = random_merged(kind, num_tasks, seed)
    kept = some(merged, seed)
    factors = {
        space: torch.zeros(len(merged.neurons[space])).index_fill(0, kept.get(space, torch.tensor([], dtype=torch.int64)), 1.0)
        for space in merged.prunable
    }
    inputs = inputs_of(kind)
    with torch.no_grad():
        gated = merged(inputs, gate=Gates(merged, factors))
        resize(merged, kept)
        for task, answer in merged(inputs).items():
            torch.testing.assert_close(answer, gated[task], rtol=1e-4, atol=1e-5)  # the same sums with zeros between
    assert {space: len(merged.neurons[space]) for space in kept} == {space: len(value) for space, value in kept.items()}


@settings(deadline=None, max_examples=12)
@given(kind=st.sampled_from(KINDS), num_tasks=st.sampled_from([2, 3]), seed=SEEDS)
def test_weights_and_the_optimizers_state_are_sliced_alike(kind, num_tasks, seed):
    merged = random_merged(kind, num_tasks, seed)
    resize(merged, {})  # sets the forbidden edges, which the helper shook, back to zero
    optimizer = torch.optim.Adam(merged.parameters())
    step_of(merged, optimizer, kind)
    for parameter in merged.parameters():  # tell-tale: the state is a multiple of the weight
        optimizer.state[parameter]["exp_avg"] = 3 * parameter.detach()
        optimizer.state[parameter]["exp_avg_sq"] = 5 * parameter.detach().abs()
    whole = copy.deepcopy(merged)
    resize(merged, some(merged, seed), None, optimizer)
    for name, parameter in merged.named_parameters():
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], 3 * parameter.detach())
        assert torch.equal(state["exp_avg_sq"], 5 * parameter.detach().abs())
        assert set(parameter.detach().flatten().tolist()) <= set(whole.get_parameter(name).detach().flatten().tolist())
    step_of(merged, optimizer, kind)  # training goes on
    assert all(bool(torch.isfinite(parameter).all()) for parameter in merged.parameters())


@settings(deadline=None, max_examples=12)
@given(kind=st.sampled_from(KINDS), num_tasks=st.sampled_from([2, 3]), seed=SEEDS)
def test_edges_that_may_not_be_are_zero_after_training_and_demotion(kind, num_tasks, seed):
    merged = random_merged(kind, num_tasks, seed)
    resize(merged, {})  # sets the forbidden edges, which the helper shook, back to zero
    optimizer = torch.optim.Adam(merged.parameters(), lr=0.1)
    step_of(merged, optimizer, kind)
    assert forbidden_weights(merged) == 0
    kept = some(merged, seed)
    groups = demoted(merged, kept, seed)
    resize(merged, kept, groups, optimizer)
    assert forbidden_weights(merged) == 0
    for _ in range(2):
        step_of(merged, optimizer, kind)
    merged.eval()
    with torch.no_grad():
        whole = merged(inputs_of(kind))
        for task in merged.tasks:  # a task's answer hangs on its own neurons alone
            torch.testing.assert_close(merged(inputs_of(kind), [task])[task], whole[task], rtol=1e-4, atol=1e-5)
    before = [part.masked().detach().clone() for part in merged.parts.values() if part.weight is not None]
    merged.set_masks()
    assert all(
        torch.equal(one, part.weight)
        for one, part in zip(before, (part for part in merged.parts.values() if part.weight is not None), strict=True)
    )


def test_what_may_not_be_is_refused_and_changes_nothing():
    merged = random_merged(LeNet, 2, 0)
    space = min(merged.prunable)
    before = copy.deepcopy(merged.state_dict())
    sizes = {number: len(neurons) for number, neurons in merged.neurons.items()}
    mine = merged.neurons[space].group == 1
    with pytest.raises(MergeError, match="B would have no neuron left in"):
        resize(merged, {space: mine.nonzero().flatten()})
    every = torch.arange(sizes[space])
    with pytest.raises(MergeError, match="may lose tasks but not gain any"):
        resize(merged, {space: every}, {space: torch.full((sizes[space],), 3)})
    with pytest.raises(MergeError, match="must keep one"):
        resize(merged, {space: every}, {space: torch.zeros(sizes[space], dtype=torch.int64)})
    assert sizes == {number: len(neurons) for number, neurons in merged.neurons.items()}
    assert all(torch.equal(value, before[name]) for name, value in merged.state_dict().items())
