"""Fused trees of models that were taken apart by ``parse``, against the models themselves."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fusion.graph.block import BlockSequence
from fusion.graph.parse import parse
from fusion.graph.saving import load, read_weights, save
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, Graph, capacities, original
from fusion.search.build import adapter_name, build, graph_of, space_of
from fusion.search.mutation import Pair, Sharing, mutate, mutation_pass, pairs
from tests.unit.fused_trees import assert_same

PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Writing(nn.Module):
    """A residual network that writes in place wherever it can, first of all into what its blocks are given."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(8, classes)
        draw(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(self.body(x)).add_(x)
        x.mul_(1.5)[:, :2] += 1
        x = self.down(torch.relu_(x))
        x = self.drop(x).mean((2, 3))
        return self.head(x)


class Tokens(nn.Module):
    """A transformer whose answer has two parts; one weight is tied, one has two names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Parameter(torch.zeros(1, 4, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        draw(self, seed)
        self.second.weight = self.first.weight
        self.offset = self.second.bias  # a name beside the one that is used

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.layer(self.patches(x).flatten(2).transpose(1, 2) + self.places)
        states = torch.tanh(self.first(x.mean(1)))
        return {"states": states, "scores": self.second(states)}


def draw(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 1, generator=generator)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5, generator=generator)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {"cat": Writing(2, 1).eval(), "dog": Writing(5, 2).eval(), "place": Tokens(3).eval()}


@pytest.fixture(scope="module")
def sequences(models) -> list[BlockSequence]:
    return [parse(model, PICTURES, name=name) for name, model in models.items()]


@pytest.fixture(scope="module")
def start(sequences) -> Graph:
    return original(space_of(sequences, [[1] * len(sequence.blocks) for sequence in sequences]))


def leaves(value: Any) -> list[Tensor]:
    return pytree.tree_leaves(value)


def assert_answers(first: Any, second: Any) -> None:
    assert pytree.tree_structure(first) == pytree.tree_structure(second)
    assert all(torch.equal(one, other) for one, other in zip(leaves(first), leaves(second), strict=True))


def naively(graph: Graph, sequences: list[BlockSequence], tree: FusedTree) -> dict[str, Any]:
    """Run each task's path on its own: the models' own blocks, with the tree's adapters between them."""
    outputs = {}
    for task, name in enumerate(graph.space.tasks):
        path = [graph.space.last(task)]
        while (source := graph.edge(path[0]).source) is not None:
            path.insert(0, source)
        value = PICTURES
        for block in path:
            adapter = graph.edge(block).adapter
            if adapter is not None:
                value = tree.nodes[adapter_name(adapter)](value)
            value = sequences[block.task].blocks[block.op](
                value, *(PICTURES for _ in sequences[block.task].blocks[block.op].needs)
            )
        outputs[name] = value
    return outputs


def test_the_graph_without_mutation_is_the_models(models, sequences, start):
    tree = build(start, sequences, seed=0)
    assert_answers(tree(PICTURES), {name: model(PICTURES) for name, model in models.items()})
    assert sum(p.numel() for p in tree.parameters()) == sum(p.numel() for m in models.values() for p in m.parameters())
    assert sum(p.numel() for p in tree.parameters()) == capacities(start).total


def test_random_passes_match_reference(sequences, start):
    rng = random.Random(0)
    with torch.no_grad():
        for _ in range(20):
            graph = start
            for _ in range(rng.randint(1, 4)):
                found = pairs(graph, sharing=Sharing.ANY)
                graph = mutation_pass(graph, [rng.choice(found)], sharing=Sharing.ANY) or graph
            tree = build(graph, sequences, seed=0)
            expected = naively(graph, sequences, tree)
            assert_answers(tree(PICTURES), expected)
            assert_answers(copy.deepcopy(tree)(PICTURES, tasks=["dog"]), {"dog": expected["dog"]})
            assert graph_of(tree, start.space) == graph


@pytest.mark.parametrize("host", [1, 2, 3])
def test_guest_does_not_change_host(host, models, sequences, start):
    pictures = PICTURES.clone()
    tree = build(mutate(start, Pair(BlockId(0, host), BlockId(1, host))), sequences, seed=0)
    alone = {task: tree(PICTURES.clone(), tasks=[task])[task] for task in tree.tasks}
    features: list[tuple[Tensor, Tensor]] = []
    for node in tree.nodes.values():
        node.register_forward_hook(lambda module, args, output: features.append((args[0], args[0].clone())))
        node.register_forward_pre_hook(lambda module, args: features.append((args[0], args[0].clone())))
    assert_answers(tree(pictures), alone)
    assert torch.equal(alone["cat"], models["cat"](PICTURES))
    assert torch.equal(pictures, PICTURES)
    assert len(features) == 2 * len(tree.nodes)
    assert all(torch.equal(feature, before) for feature, before in features)


def test_a_shared_prefix_of_equal_models_fits_the_users_class(models, sequences, start):
    tree = build(mutate(start, Pair(BlockId(0, 2), BlockId(1, 2))), sequences, seed=0)
    mine = Writing(5, 9).eval()
    mine.load_state_dict(tree.split()["dog"].state_dict())
    assert torch.equal(mine(PICTURES), tree(PICTURES)["dog"])
    tied = Tokens(9).eval()
    tied.load_state_dict(tree.split()["place"].state_dict())
    assert_answers(tied(PICTURES), models["place"](PICTURES))


def test_training_draws_dropout_and_moves_statistics_of_what_is_not_frozen(sequences, start):
    tree = build(mutate(start, Pair(BlockId(0, 2), BlockId(1, 2))), sequences, seed=0)
    tree.freeze(["b0_0", "b0_1"])
    tree.train()
    before = copy.deepcopy(tree.state_dict())
    torch.manual_seed(0)
    first, second = tree(PICTURES)["cat"], tree(PICTURES)["cat"]
    assert not torch.equal(first, second)
    assert_same(tree.state_dict(), before)  # both batch norms are frozen
    tree.freeze(["b0_0"])
    tree(PICTURES)
    moved = [name for name, value in tree.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["nodes.b0_1.norm.running_mean", "nodes.b0_1.norm.running_var", "nodes.b0_1.norm.num_batches_tracked"]


def test_a_tree_trains_as_the_model_does(models, sequences, start):
    tree, model = build(start, sequences, seed=0).train(), copy.deepcopy(models["cat"]).train()
    for module in (tree, model):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        for step in range(2):
            torch.manual_seed(step)  # of the dropout
            output = tree(PICTURES, tasks=["cat"])["cat"] if module is tree else model(PICTURES)
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    assert_same(dict(sorted(tree.split()["cat"].state_dict().items())), dict(sorted(model.state_dict().items())))


def test_two_adapters_of_one_shape_start_apart(sequences, start):
    graph = mutate(mutate(start, Pair(BlockId(2, 1), BlockId(0, 1))), Pair(BlockId(2, 2), BlockId(1, 1)))
    tree = build(graph, sequences, seed=0)
    first, second = tree.nodes["a2_0_0_1"].weight, tree.nodes["a2_1_1_1"].weight
    assert first.shape == second.shape
    assert not torch.equal(first, second)


@pytest.fixture(scope="module")
def fused(sequences, start) -> FusedTree:
    """The transformer behind the first network, through an adapter; the second network behind both."""
    graph = mutate(mutate(start, Pair(BlockId(0, 2), BlockId(2, 1))), Pair(BlockId(2, 1), BlockId(1, 2)))
    return build(graph, sequences, seed=0)


def test_a_saved_tree_of_real_blocks_answers_bitwise(fused, tmp_path):
    save(fused, tmp_path, PICTURES)
    with torch.no_grad():
        expected = fused(PICTURES[:3])
        assert_answers(load(tmp_path)(PICTURES[:3]), expected)
        for task in fused.tasks:
            assert_answers(load(tmp_path, task=task)(PICTURES[:3]), expected[task])
    assert_same(read_weights(tmp_path / "model.safetensors"), fused.state_dict())
    weights = read_weights(tmp_path / "tasks" / "place.safetensors")
    assert weights["second.weight"] is weights["first.weight"]


def test_a_fused_tree_may_be_taken_apart_again(fused):
    whole, one = parse(fused, PICTURES, name="fused"), parse(fused.split()["place"], PICTURES, name="place")
    with torch.no_grad():
        assert_answers(whole(PICTURES), fused(PICTURES))
        assert_answers(one(PICTURES), fused(PICTURES)["place"])
    assert len(one.blocks) >= 4
