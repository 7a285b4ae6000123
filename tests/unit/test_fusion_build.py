"""From models to a space, from a graph to a module with weights, and back."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.rescale import Rescale
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import AdapterId, BlockId, Graph, capacities, original
from fusion.search.build import adapter_name, build, graph_of, space_of
from fusion.search.mutation import Pair, Sharing, mutate, mutation_pass, pairs
from tests.unit.fused_trees import PlainSequence, Takes, assert_same, small_cnn

IMAGES = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def cnns(number: int) -> list[PlainSequence]:
    return [small_cnn(f"task {seed}", seed, num_blocks=4 + seed % 3) for seed in range(number)]


def graph_for(sequences: list[PlainSequence]) -> Graph:
    return original(space_of(sequences, [[1] * len(sequence.blocks) for sequence in sequences]))


def random_graph(graph: Graph, rng: random.Random, sharing: Sharing = Sharing.ANY) -> Graph:
    """Mutate again and again, each time from what is legal now."""
    for _ in range(rng.randint(1, 2 * len(graph.space.tasks))):
        found = pairs(graph, sharing=sharing)
        graph = (found and mutation_pass(graph, [rng.choice(found)], sharing=sharing)) or graph
    return graph


def path_of(graph: Graph, task: int) -> list[BlockId]:
    path = [graph.space.last(task)]
    while (source := graph.edge(path[0]).source) is not None:
        path.insert(0, source)
    return path


def naively(graph: Graph, sequences: list[PlainSequence], tree: FusedTree, images: Tensor) -> dict[str, Any]:
    """Run each task's path on its own: the models' own blocks, with the tree's adapters between them."""
    outputs = {}
    for task, name in enumerate(graph.space.tasks):
        value = images
        for block in path_of(graph, task):
            adapter = graph.edge(block).adapter
            if adapter is not None:
                value = tree.nodes[adapter_name(adapter)](value)
            module = sequences[block.task].blocks[block.op]
            value = module(value, *(images for _ in module.needs))
        outputs[name] = value
    return outputs


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4, 5, 6, 7, 8])
def test_random_graphs_up_to_8_tasks_match_reference(num_tasks):
    sequences = cnns(num_tasks)
    rng = random.Random(num_tasks)
    start = graph_for(sequences)
    with torch.no_grad():
        for _ in range(8):
            graph = random_graph(start, rng)
            tree = build(graph, sequences, seed=0)
            assert tree.tasks == graph.space.tasks
            assert_same(tree(IMAGES), naively(graph, sequences, tree, IMAGES))
            assert sum(parameter.numel() for parameter in tree.parameters()) == capacities(graph).total
            assert graph_of(tree, graph.space) == graph
            some = rng.sample(tree.tasks, rng.randint(1, num_tasks))
            assert_same(tree(IMAGES, tasks=some), tree.only(*some)(IMAGES))


def test_the_graph_without_mutation_is_the_models():
    sequences = cnns(3)
    tree = build(graph_for(sequences), sequences, seed=0)
    assert_same(tree(IMAGES), {sequence.name: sequence.run((IMAGES,)) for sequence in sequences})
    assert not any(isinstance(module, Rescale) for module in tree.modules())
    for sequence in sequences:
        assert_same(tree.split()[sequence.name].state_dict(), sequence.state_dict())


def shared(sequences: list[PlainSequence]) -> Graph:
    """The third block of the second model behind the first block of the first one."""
    return mutate(graph_for(sequences), Pair(BlockId(0, 1), BlockId(1, 2)))


ADAPTER = AdapterId(BlockId(0, 0), BlockId(1, 2))


def test_models_are_copied():
    sequences = cnns(2)
    before = {name: value.clone() for name, value in sequences[0].state_dict().items()}
    tree = build(shared(sequences), sequences, seed=0)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.zero_()
    assert_same(sequences[0].state_dict(), before)


def test_adapters_start_alike_whatever_their_company():
    sequences = cnns(3)
    one = build(shared(sequences), sequences, seed=7)
    more = build(mutate(shared(sequences), Pair(BlockId(2, 1), BlockId(0, 2))), sequences, seed=7)
    other = build(shared(sequences), sequences, seed=8)
    name = adapter_name(ADAPTER)
    assert list(one.nodes)[1] == name == "a0_0_1_2"
    assert_same(one.nodes[name].state_dict(), more.nodes[name].state_dict())
    assert not torch.equal(one.nodes[name].weight, other.nodes[name].weight)


def test_building_draws_no_global_random_number():
    sequences = cnns(2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build(shared(sequences), sequences, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_adapter_weights_survive_mutation():
    sequences = cnns(3)
    base = build(shared(sequences), sequences, seed=0)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.fill_(7)
    graph = mutate(shared(sequences), Pair(BlockId(2, 1), BlockId(0, 2)))
    tree = build(graph, sequences, seed=0, weights=base.state_dict())
    inherited, fresh = set(base.nodes) & set(tree.nodes), set(tree.nodes) - set(base.nodes)
    assert adapter_name(ADAPTER) in inherited
    assert fresh == {"a2_0_0_2"}
    assert all((parameter == 7).all() for name in inherited for parameter in tree.nodes[name].parameters())
    assert_same(tree.nodes["a2_0_0_2"].state_dict(), build(graph, sequences, seed=0).nodes["a2_0_0_2"].state_dict())


def test_inherited_weights_of_other_models_are_refused():
    sequences = cnns(2)
    weights = build(shared(sequences), sequences, seed=0).state_dict()
    weights["nodes.b0_0.layer0.weight"] = torch.zeros(1)
    with pytest.raises(FusionError, match=r"nodes.b0_0.layer0.weight: expected shape .* they come from a tree of other models"):
        build(shared(sequences), sequences, seed=0, weights=weights)


def test_what_is_tied_in_a_model_is_tied_in_the_tree():
    sequences = cnns(2)
    tied = nn.Linear(4, 4)
    for number in (2, 3):
        sequences[1].blocks[number].add_module("tied", tied)
    tree = build(graph_for(sequences), sequences, seed=0)
    assert tree.nodes["b1_2"].tied is tree.nodes["b1_3"].tied
    assert tree.nodes["b1_2"].tied is not tied


def test_a_space_needs_models_of_one_input_and_names_of_their_own():
    sequences = cnns(2)
    counts = [[1] * len(sequence.blocks) for sequence in sequences]
    sequences[1].signature = Takes(names=("pixels",), features=sequences[0].signature.features)
    with pytest.raises(FusionError, match=r"tasks must take the same input signature: 'task 0' .* 'task 1' "):
        space_of(sequences, counts)
    sequences[1].name = "task 0"
    with pytest.raises(FusionError, match="expected a name of its own for each task, got task 0, task 0"):
        space_of(sequences, counts)


def test_a_space_knows_each_block():
    sequences = cnns(2)
    space = space_of(sequences, [range(len(sequence.blocks)) for sequence in sequences])
    info = space.info(BlockId(1, 2))
    block = sequences[1].blocks[2]
    assert (info.name, info.op_type, info.capacity, info.flops, info.needs) == ("layer2", "conv", block.capacity, 2, (0,))
    assert (info.input, info.output) == (block.input, block.output)
