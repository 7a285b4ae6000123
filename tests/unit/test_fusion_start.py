"""How a mutated model starts: its blocks see what they used to see, as far as a linear map over channels can do that."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from fusion.graph.block import BlockSequence
from fusion.graph.feature import Feature, Layout
from fusion.graph.parse import parse
from fusion.graph.rescale import Rescale, start_least_squares
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, Graph, Space, capacities, flops, original
from fusion.search.build import block_name, build, graph_of, space_of
from fusion.search.flops import block_flops
from fusion.search.measuring import measure_table
from fusion.search.mutation import Pair, Sharing, mutate, pairs
from fusion.search.start import Origin, inputs_of, start
from fusion.search.table import AdapterKind, Conditions, Cost, CostTable
from tests.unit.fusion_graphs import SIZES, a_space, unfolded, wander

IMAGES = torch.randn(200, 3, 10, 10, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(50, 3, 10, 10, generator=torch.Generator().manual_seed(1))  # that nothing is fitted to


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def network(width: int, seed: int, *, classes: int = 4) -> nn.Sequential:
    """A convolution, two of them that can be realigned, a residual block that cannot, and a head."""
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(),
        nn.Conv2d(width, width, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        Residual(width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_().add_(0.5)
    return model.eval()


def permuted(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function with the channels of every layer in another order and, up to the last map, of another size."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    width = twin[0].out_channels
    before = None
    with torch.no_grad():
        for place, layer in enumerate((twin[0], twin[2], twin[4])):
            order = torch.randperm(width, generator=generator)
            size = 0.5 + torch.rand(width, generator=generator)
            if before is not None:
                layer.weight.copy_(layer.weight[:, before[0]] / before[1][None, :, None, None])
            if place < 2:
                layer.weight.copy_(layer.weight[order] * size[:, None, None, None])
                layer.bias.copy_(layer.bias[order] * size)
                before = order, size
            else:
                layer.weight.copy_(layer.weight[order])
                layer.bias.copy_(layer.bias[order])
        order_norm(twin[5], order)
        twin[7].conv.weight.copy_(twin[7].conv.weight[order][:, order])
        order_norm(twin[7].norm, order)
        twin[10].weight.copy_(twin[10].weight[:, order])
    return twin


def order_norm(norm: nn.BatchNorm2d, order: Tensor) -> None:
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.copy_(tensor[order])


class Bench:
    """Models in blocks, and what becomes of them when one takes another's input."""

    def __init__(self, *models: nn.Module, stitches: bool = True, inputs: Tensor = IMAGES) -> None:
        self.sequences: list[BlockSequence] = [parse(model, inputs[:2], name=f"t{n}") for n, model in enumerate(models)]
        self.inputs = (inputs,)
        counts = [block_flops(sequence, (inputs[:2],)) for sequence in self.sequences]
        self.original = original(space_of(self.sequences, counts, stitches=stitches))
        self.origin = Origin(build(self.original, self.sequences, seed=0), self.original, self.inputs)

    def mutated(self, *chosen: Pair, aligned: bool = True) -> tuple[FusedTree, Graph]:
        graph = self.original
        for pair in chosen:
            graph = mutate(graph, pair)
        tree = build(graph, self.sequences, seed=0)
        if aligned:
            start(tree, graph, self.origin)
        return tree, graph

    def block(self, task: int, name: str) -> BlockId:
        names = [block.name for block in self.sequences[task].blocks]
        return BlockId(task, next(op for op, full in enumerate(names) if full.startswith(name)))

    def pairs(self, sharing: Sharing = Sharing.PARTIAL) -> list[Pair]:
        return pairs(self.original, sharing=sharing)


@lru_cache
def strangers() -> Bench:
    """Two networks of one architecture that have nothing in common; not to be changed."""
    return Bench(network(6, seed=0), network(6, seed=1))


def answers(tree: FusedTree, inputs: Tensor = OTHERS) -> dict[str, Tensor]:
    with torch.no_grad():
        return tree.eval().run((inputs,))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / (wanted - wanted.mean(0)).norm())


def test_twins_in_other_coordinates_fuse_without_any_drop_wherever_they_are_joined():
    model = network(6, seed=0)
    bench = Bench(model, permuted(model, seed=7))
    wanted = answers(build(bench.original, bench.sequences, seed=0))
    assert_close(wanted["t0"], wanted["t1"], rtol=1e-4, atol=1e-4)  # they are twins
    for op in range(1, len(bench.sequences[0].blocks)):
        pair = Pair(BlockId(0, op), BlockId(1, op))
        tree, _ = bench.mutated(pair)
        unaligned, _ = bench.mutated(pair, aligned=False)
        now, before = answers(tree)["t1"], answers(unaligned)["t1"]
        assert relative_error(now, wanted["t1"]) < 0.01, op  # what the ridge of 1e-3 takes away
        assert relative_error(before, wanted["t1"]) > 0.1, op
        sure = wanted["t1"].topk(2).values.diff().abs()[:, 0] > 0.05
        assert torch.equal(now.argmax(1)[sure], wanted["t1"].argmax(1)[sure])  # so that no answer changes
        assert torch.equal(answers(tree)["t0"], wanted["t0"])  # the host is not touched


def test_any_invertible_mixture_at_a_linear_boundary_is_undone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    twin = copy.deepcopy(model)
    mixture = torch.randn(6, 6)
    with torch.no_grad():
        twin[2].weight.copy_(mixture @ model[2].weight)
        twin[2].bias.copy_(mixture @ model[2].bias + 1)
        twin[3].weight.copy_(model[3].weight @ mixture.inverse())
        twin[3].bias.copy_(model[3].bias - twin[3].weight.sum(1))
    inputs = torch.randn(300, 8)
    bench = Bench(model, twin, inputs=inputs)
    tree, _ = bench.mutated(Pair(bench.block(0, "3"), bench.block(1, "3")))
    assert relative_error(answers(tree, inputs)["t1"], answers(bench.mutated()[0], inputs)["t1"]) < 0.02  # the ridge


def test_every_adapter_sees_to_it_that_its_block_is_given_nearly_what_it_was_given():
    bench = Bench(network(6, seed=0), network(6, seed=1), network(9, seed=2))
    num_adapters = 0
    for pair in bench.pairs(Sharing.ANY)[::3]:
        tree, graph = bench.mutated(pair)
        if graph.edge(pair.guest).adapter is None:
            continue
        num_adapters += 1
        step = block_name(pair.guest)
        wanted = bench.origin.given([step])[step]
        now = inputs_of(tree, [step], bench.inputs)[step]
        unaligned = inputs_of(bench.mutated(pair, aligned=False)[0], [step], bench.inputs)[step]
        spread = (wanted - wanted.mean((0, *range(2, wanted.ndim)), keepdim=True)).norm()
        assert (now - wanted).norm() < (unaligned - wanted).norm(), pair
        assert (now - wanted).norm() <= spread * 1.001, pair  # no worse than the mean, which any map can give
    assert num_adapters > 10


def test_a_block_without_an_adapter_is_realigned_and_answers_more_like_before():
    bench = strangers()
    wanted = answers(build(bench.original, bench.sequences, seed=0))
    gains = []
    for pair in bench.pairs(Sharing.EXACT):
        tree, graph = bench.mutated(pair)
        task = f"t{pair.guest.task}"
        if graph.edge(pair.guest).adapter is None and pair.host.task != pair.guest.task:
            unaligned, _ = bench.mutated(pair, aligned=False)
            errors = [relative_error(answers(some)[task], wanted[task]) for some in (tree, unaligned)]
            gains.append(errors[1] / errors[0])
    assert len(gains) >= 4
    assert sorted(gains)[len(gains) // 2] > 1.1  # through the layers behind it, so a rule and no law


@pytest.mark.parametrize("channels", [40, 200, 1100])
def test_with_few_samples_for_many_channels_an_adapter_does_not_fit_noise(channels):
    generator = torch.Generator().manual_seed(0)
    causes, number = torch.randn(2000, 64, generator=generator), 250
    source, target = (
        torch.relu(causes @ torch.randn(64, channels, generator=generator) / 8) for _ in range(2)
    )  # related, and more so than a linear map can tell
    feature = Feature((channels,), Layout.VEC)
    adapter = Rescale(feature, feature, generator=generator, has_map=True)
    start_least_squares(adapter, [(source[:number], target[:number])], ridge=None)
    with torch.no_grad():
        error = (adapter(source[number:]) - target[number:]).square().sum()
    assert error < 0.85 * (target[number:] - target[:number].mean(0)).square().sum()


def test_two_mutations_are_fitted_one_on_top_of_the_other():
    model = network(6, seed=0)
    bench = Bench(model, permuted(model, seed=7), permuted(model, seed=8))
    wanted = answers(build(bench.original, bench.sequences, seed=0))
    last = len(bench.sequences[0].blocks) - 1
    tree, graph = bench.mutated(Pair(BlockId(0, 2), BlockId(1, 2)), Pair(BlockId(1, last), BlockId(2, last)))
    assert graph.facts().served[BlockId(1, 2)] == {1, 2}
    for task in ("t1", "t2"):
        assert relative_error(answers(tree)[task], wanted[task]) < 0.02  # the ridge, twice


def test_what_is_inherited_is_not_fitted_again():
    bench = Bench(network(6, seed=0), network(9, seed=1))
    pair = next(pair for pair in bench.pairs() if mutate(bench.original, pair).adapters())
    tree, graph = bench.mutated(pair)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.mul_(1.5)  # trained meanwhile
    weights = copy.deepcopy(tree.state_dict())
    origin = Origin(tree, graph, bench.inputs)
    more = next(more for more in pairs(graph) if more.guest.task == 0 and more.host.task == 0)
    child_graph = mutate(graph, more)
    child = build(child_graph, bench.sequences, seed=1, weights=weights)
    start(child, child_graph, origin)
    kept = {
        name: value for name, value in child.state_dict().items() if not name.startswith(f"nodes.{block_name(more.guest)}.")
    }
    adapters = [name for name in kept if name.startswith("nodes.a")]
    assert adapters
    common = [name for name in kept if name in weights]
    for name in common:
        assert torch.equal(kept[name], weights[name]), name


def test_the_original_has_nothing_to_start():
    bench = strangers()
    tree = build(bench.original, bench.sequences, seed=0)
    before = copy.deepcopy(tree.state_dict())
    assert start(tree, bench.original, bench.origin) == 0
    assert_close(tree.state_dict(), before, rtol=0, atol=0)


def test_looking_at_inputs_leaves_mode_gradients_and_random_numbers_alone():
    bench = strangers()
    tree = build(bench.original, bench.sequences, seed=0).train()
    state = torch.get_rng_state()
    before = copy.deepcopy(tree.state_dict())
    seen = inputs_of(tree, ["b1_2", "b0_1"], bench.inputs)
    assert set(seen) == {"b1_2", "b0_1"}
    assert tree.training
    assert not any(value.requires_grad for value in seen.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(tree.state_dict(), before, rtol=0, atol=0)
    assert_close(seen["b1_2"], bench.sequences[1].features(bench.inputs)[2], rtol=0, atol=0)


def test_weights_that_two_blocks_share_are_not_realigned():
    class Tied(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)])
            self.layers[2].weight = self.layers[1].weight

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return self.layers[-1](x)

    models = [Tied(seed).eval() for seed in (0, 1)]
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    pair = Pair(BlockId(0, 1), BlockId(1, 1))
    for stitches in (True, False):  # an adapter stands there instead; where there may be none, the block stays as it is
        bench = Bench(*models, stitches=stitches, inputs=inputs)
        tree, graph = bench.mutated(pair)
        assert (graph.edge(pair.guest).adapter is not None) == stitches
        for name in ("b1_1", "b1_2"):
            [weight] = [value for key, value in tree.nodes[name].named_parameters() if key.endswith("weight")]
            assert torch.equal(weight, models[1].layers[1].weight)
    alone = Pair(BlockId(0, 2), BlockId(1, 2))  # here nobody else is left that uses the weight
    tree, graph = bench.mutated(alone)
    assert BlockId(1, 1) not in graph.blocks()
    assert not torch.equal(tree.nodes["b1_2"].layers.get_submodule("2").weight, models[1].layers[1].weight)


def test_graph_table_and_module_agree_on_stitched_adapters():
    bench = Bench(network(6, seed=0), network(6, seed=1), network(6, seed=2))
    space = bench.original.space
    stitched = [BlockId(task, op) for task in range(3) for op, info in enumerate(space.blocks[task]) if info.stitched]
    assert [space.info(block).name.split(".")[0] for block in stitched] == ["7", "7", "7"]
    host, guest, other = stitched
    graph = mutate(mutate(bench.original, Pair(host, guest)), Pair(host, other))
    adapters = graph.adapters()
    assert [adapter.target for adapter in adapters] == [guest, other]  # each speaks the language of one model
    tree = build(graph, bench.sequences, seed=0)
    assert all(isinstance(module, Rescale) for name, module in tree.nodes.items() if name.startswith("a"))
    assert graph_of(tree, space) == graph
    blocks = sum(space.info(block).capacity for block in graph.blocks())
    assert sum(parameter.numel() for parameter in tree.parameters()) == capacities(graph).total == blocks + 2 * (6 * 6 + 6)
    feature = space.info(guest).input
    assert flops(graph) == sum(space.info(block).flops for block in graph.blocks()) + 2 * 2 * 6 * math.prod(feature.shape)
    table = table_of(space, adapter_seconds=100.0)
    assert table.predict(graph) == len(graph.blocks()) + 2 * 100.0
    assert CostTable.from_json(table.to_json()).predict(graph) == table.predict(graph)
    assert Space.from_json(space.to_json()) == space
    assert measured_kinds(bench) >= {AdapterKind(feature, feature)}


def table_of(space: Space, adapter_seconds: float) -> CostTable:
    """Every block takes a second, every adapter so many."""
    blocks = [BlockId(task, op) for task, infos in enumerate(space.blocks) for op in range(len(infos))]
    features = {info.input for infos in space.blocks for info in infos}
    return CostTable(
        space,
        conditions=Conditions(device="cpu", num_threads=1, dtype="float32", batch_size=1),
        blocks={block: Cost(seconds=1.0, iqr_seconds=0.0, working_bytes=0) for block in blocks},
        adapters={
            AdapterKind(one, other): Cost(seconds=adapter_seconds, iqr_seconds=0.0, working_bytes=0)
            for one in features
            for other in features
        },
    )


def measured_kinds(bench: Bench) -> set[AdapterKind]:
    generator = torch.Generator().manual_seed(0)
    space = bench.original.space
    table = measure_table(space, bench.sequences, bench.inputs, batch_size=1, max_seconds=0.2, generator=generator)
    return set(table.adapters)


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_with_stitches_too_graphs_of_one_key_cost_the_same_and_are_one_tree(seed):
    rng = random.Random(seed)
    plain = a_space(4, 4, 4)
    blocks = [tuple(replace(info, stitched=rng.random() < 0.5) for info in infos) for infos in plain.blocks]
    space = Space(tasks=plain.tasks, blocks=tuple(blocks))
    table = table_of(space, adapter_seconds=0.25)
    seen: dict[str, tuple[object, ...]] = {}
    for _ in range(60):
        graph, _ = wander(original(space), rng, rng.randint(1, 4))
        told = (capacities(graph).total, flops(graph), table.predict(graph), unfolded(graph))
        assert seen.setdefault(graph.key(), told) == told
        assert Graph.from_json(space, graph.to_json()) == graph


def test_who_shares_an_adapter_does_not_depend_on_who_came_first():
    plain = a_space(3, 3, 3, features=[*SIZES[:3]])
    stitched = replace(plain.blocks[1][2], stitched=True)
    space = Space(tasks=plain.tasks, blocks=(plain.blocks[0], (*plain.blocks[1][:2], stitched), plain.blocks[2]))
    joins = [Pair(BlockId(0, 1), BlockId(1, 2)), Pair(BlockId(0, 1), BlockId(2, 2))]
    one, other = (mutate(mutate(original(space), first), second) for first, second in (joins, joins[::-1]))
    assert one.key() == other.key()
    assert len(one.adapters()) == len(other.adapters()) == 2
    assert capacities(one) == capacities(other)
