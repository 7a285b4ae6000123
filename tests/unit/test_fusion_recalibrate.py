"""BatchNorm statistics after a mutation, against torch's own in training mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.parse import parse
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, original
from fusion.search.build import build, space_of
from fusion.search.mutation import Pair, mutate
from fusion.search.recalibrate import affected_steps, recalibrate
from tests.unit.fusion_models import apart, chains, samples, shared


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def norm_of(tree: FusedTree, step: str) -> nn.BatchNorm1d:
    norm = tree.nodes[step][1]
    assert isinstance(norm, nn.BatchNorm1d)
    return norm


def test_statistics_are_those_of_all_samples_whatever_the_batches() -> None:
    tree = shared(chains(dropout=0.5)).eval()
    inputs = samples(60)
    seen = tree.nodes["b1_1"][0](tree.nodes["b0_0"](inputs)).double()
    assert recalibrate(tree, [(inputs[:7],), (inputs[7:40],), (inputs[40:],)]) == ["b1_1"]
    norm = norm_of(tree, "b1_1")
    torch.testing.assert_close(norm.running_mean, seen.mean(0).float())
    torch.testing.assert_close(norm.running_var, seen.var(0, correction=1).float())


def test_of_one_batch_they_are_those_that_training_finds() -> None:
    first, second = chains()
    tree = shared((first, second), adapter_seed=5).eval()
    deeper = nn.Sequential(tree.nodes["b1_1"], copy.deepcopy(second.blocks[0]))
    tree.nodes["b1_1"] = deeper
    inputs = samples(50)
    reference = copy.deepcopy(deeper).train()
    for part in reference.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = 1.0
    with torch.no_grad():
        reference(tree.nodes["a0_0_1_1"](tree.nodes["b0_0"](inputs)))
    recalibrate(tree, [(inputs,)])
    for name, value in reference.named_buffers():
        if "running" in name:  # the second one saw what the first one made of the batch
            torch.testing.assert_close(deeper.get_buffer(name), value)


def test_only_what_sees_other_values_than_in_its_model_is_renewed() -> None:
    tree = shared(chains(), adapter_seed=3).eval()
    before, weights = statistics(tree), [parameter.clone() for parameter in tree.parameters()]
    recalibrate(tree, [(samples(),)])
    changed = {name for name, value in statistics(tree).items() if not torch.equal(value, before[name])}
    assert changed == {"nodes.b1_1.1.running_mean", "nodes.b1_1.1.running_var"}  # not the count of training batches
    assert all(torch.equal(one, other) for one, other in zip(weights, tree.parameters(), strict=True))


def test_what_stands_behind_is_affected_too() -> None:
    assert affected_steps(shared(chains())) == ["b1_1", "b1_2"]
    assert affected_steps(shared(chains(), adapter_seed=1)) == ["a0_0_1_1", "b1_1", "b1_2"]


def test_models_side_by_side_stay_as_they_are() -> None:
    tree = apart(chains()).eval()
    before = statistics(tree)
    assert affected_steps(tree) == []
    assert recalibrate(tree, [(samples(),)]) == []
    assert all(torch.equal(value, before[name]) for name, value in statistics(tree).items())


def test_frozen_buffers_are_unchanged_by_recalibration() -> None:
    tree = shared(chains(), adapter_seed=3)
    tree.freeze(["b1_1"])
    before = statistics(tree)
    assert recalibrate(tree, [(samples(),)]) == []
    assert all(torch.equal(value, before[name]) for name, value in statistics(tree).items())


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_random_states_are_as_before_and_dropout_does_not_act(training: bool) -> None:
    tree = shared(chains(dropout=0.9)).train(training)
    again = copy.deepcopy(tree)
    modes, state = [part.training for part in tree.modules()], torch.get_rng_state()
    recalibrate(tree, [(samples(),)])
    recalibrate(again, [(samples(),)])
    assert [part.training for part in tree.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in statistics(again).items():
        assert torch.equal(value, tree.get_buffer(name))


def test_a_single_value_leaves_the_statistics() -> None:
    tree = shared(chains()).eval()
    before = statistics(tree)
    recalibrate(tree, [(samples(1),)])
    assert all(torch.equal(value, before[name]) for name, value in statistics(tree).items())


def test_blocks_of_captured_models_are_renewed() -> None:
    torch.manual_seed(0)
    models = [
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5),
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
        ).eval()
        for _ in range(2)
    ]  # fmt: skip
    images = torch.randn(32, 1, 8, 8) * 3 + 1
    sequences = [parse(model, images[:2], name=f"task{number}") for number, model in enumerate(models)]
    space = space_of(sequences, [[1] * len(sequence.blocks) for sequence in sequences])
    graph = mutate(original(space), Pair(BlockId(0, 2), BlockId(1, 1)))
    tree = build(graph, sequences, seed=0)
    before = statistics(tree)
    assert recalibrate(tree, [(images,)]) == ["b1_1", "b1_2"]
    changed = {name.rpartition(".")[0] for name, value in statistics(tree).items() if not torch.equal(value, before[name])}
    assert changed == {"nodes.b1_1.4", "nodes.b1_2.7"}
    taken: list[Tensor] = []
    tree.nodes["b1_1"].register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        tree.run([images])
        seen = nn.functional.conv2d(taken[0], models[1][3].weight, models[1][3].bias)
    norm = tree.nodes["b1_1"]
    torch.testing.assert_close(norm.get_buffer("4.running_mean"), seen.mean((0, 2, 3)))
    torch.testing.assert_close(norm.get_buffer("4.running_var"), seen.transpose(0, 1).flatten(1).var(1))
