"""The pass behind the search: fewer operators, the same answers."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fusion.graph.block import Block
from fusion.graph.feature import Feature, Layout
from fusion.graph.folding import TOLERANCE, simplify
from fusion.graph.parse import parse
from fusion.graph.resample import Resample
from fusion.graph.rescale import Rescale
from fusion.graph.tree import FusedTree, Step


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


class Twice(nn.Module):
    """One convolution under two names of use, each with a norm of its own, and a third without."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        for norm in self.norms:
            x = torch.relu(norm(self.conv(x)))
        return self.head(self.conv(x).mean((2, 3)))


class Side(nn.Module):
    """A norm that cannot be folded: something else takes what the convolution gives."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return torch.relu(self.norm(x)) + x


class Positions(nn.Module):
    """A norm over positions where there are as many positions as channels: folding it would be wrong."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.linear(x))


def cnn(width=4):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        Residual(width),
        nn.Sequential(nn.Conv2d(width, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)),
    )


def settled(model, shape, seed=0):
    """Draw weights, norms' statistics among them, and evaluate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(drawn.abs() + 0.2 if "var" in name else drawn * 0.5)
    return model.eval(), torch.randn(3, *shape, generator=generator)


def sequence_of(model, x, name="first"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # export warns of its own internals
        return parse(model, x, name=name)


@functools.cache
def sequences():
    models = [settled(cnn(width), (3, 9, 9), seed=width) for width in (4, 8)]
    return tuple(sequence_of(model, x, name) for (model, x), name in zip(models, ("first", "second"), strict=True)), models[0][
        1
    ]


@functools.cache
def narrow():
    model, x = settled(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3)), (3, 9, 9))
    return sequence_of(model, x)


def chain(sequence):
    steps, modules = _branch(0, sequence, None, 0)
    return FusedTree(steps, modules, tasks=(sequence.name,), signature=sequence.signature).eval()


def fused(host, guest, *, after, before, adapter=None):
    """The second model's blocks from `before` on take what block `after` of the first gives."""
    steps, modules = _branch(0, host, None, 0)
    source, target = host.blocks[after].output, guest.blocks[before].input
    adapter = adapter or Rescale(source, target, generator=torch.Generator().manual_seed(3))
    name = f"a0_{after}_1_{before}"
    more, theirs = _branch(1, guest, name, before)
    steps += [Step(name=name, source=f"b0_{after}", needs=(), task=None), *more]
    modules |= {name: adapter, **theirs}
    return FusedTree(steps, modules, tasks=(host.name, guest.name), signature=host.signature).eval(), name


def _branch(task, sequence, source, start):
    steps, modules = [], {}
    for index in range(start, len(sequence.blocks)):
        name, block = f"b{task}_{index}", copy.deepcopy(sequence.blocks[index])
        output = sequence.name if index == len(sequence.blocks) - 1 else None
        steps.append(Step(name=name, source=source, needs=tuple(block.needs), task=output))
        modules[name] = block
        source = name
    return steps, modules


def norms_in(tree):
    graphs = [node.programs[0].graph for node in tree.nodes.values() if isinstance(node, Block)]
    return sum("batch_norm" in str(node.target) for graph in graphs for node in graph.nodes)


def assert_alike(tree, simplified, x):
    expected, got = tree(x), simplified(x)
    assert list(expected) == list(got)
    for task, output in expected.items():
        # the bound that the pass promises
        assert_close(got[task], output, rtol=0, atol=TOLERANCE * output.abs().max().item())


@pytest.mark.parametrize(
    ("model", "shape", "num_norms"),
    [
        (cnn(), (3, 9, 9), 4),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(20, 2)), (3, 7), 1),
        (
            nn.Sequential(nn.Conv3d(2, 4, 2, groups=2), nn.BatchNorm3d(4, affine=False), nn.ReLU(), nn.Conv3d(4, 1, 2)),
            (2, 4, 4, 4),
            1,
        ),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3)), (3, 4, 4), 1),
        (
            nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, padding="same"), nn.BatchNorm2d(6, eps=0.1), nn.Conv2d(6, 1, 1)),
            (3, 4, 4),
            1,
        ),
        (Twice(), (3, 4, 4), 2),
    ],
    ids=["2d", "1d", "3d grouped", "transposed", "depthwise", "tied"],
)
def test_norms_are_folded_into_the_layers_before_them(model, shape, num_norms):
    model, x = settled(model, shape)
    tree = chain(sequence_of(model, x))
    result = simplify(tree, x)
    assert (norms_in(tree), norms_in(result.tree)) == (num_norms, 0)
    assert_alike(tree, result.tree, x)
    assert_close(result.tree(x)["first"], model(x), rtol=0, atol=TOLERANCE * model(x).abs().max().item())
    assert sum(int(text.split(": ")[1].split()[0]) for text in result.done) == num_norms


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(Side(), nn.Conv2d(4, 1, 1)), (3, 6, 6)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 1, 1)), (3, 6, 6)),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)), (4, 6, 6)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)), (3, 6, 6)),
    ],
    ids=["result used elsewhere", "no statistics", "transposed with groups", "nothing before it"],
)
def test_a_norm_that_no_layer_can_hold_stays(model, shape):
    model, x = settled(model, shape)
    tree = chain(sequence_of(model, x))
    result = simplify(tree, x)
    assert norms_in(result.tree) == norms_in(tree) == 1
    assert result.done == ()
    assert torch.equal(result.tree(x)["first"], tree(x)["first"])


def test_a_block_that_would_answer_differently_is_left_as_it_was():
    model, x = settled(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), Positions(), nn.ReLU(), nn.Linear(5, 2)), (5, 5))
    tree = chain(sequence_of(model, x))
    result = simplify(tree, x)
    assert any("undone: its output would differ by" in text for text in result.done)
    assert torch.equal(result.tree(x)["first"], tree(x)["first"])


def test_the_tree_that_was_given_stays_as_it_was_and_shares_nothing():
    (first, second), x = sequences()
    tree, _ = fused(first, second, after=1, before=2)
    before, outputs = copy.deepcopy(tree.state_dict()), tree(x)
    result = simplify(tree.train(), x)
    assert tree.training
    assert not result.tree.training
    for name, value in tree.state_dict().items():
        assert torch.equal(value, before[name])
    for task, output in tree.eval()(x).items():
        assert torch.equal(output, outputs[task])
    theirs = {tensor.untyped_storage().data_ptr() for tensor in tree.state_dict().values()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in result.tree.state_dict().values()}


def test_an_adapter_that_became_the_identity_is_dropped():
    (first, second), x = sequences()
    feature = first.blocks[2].output
    assert feature == second.blocks[3].input
    adapter = Rescale(feature, feature, generator=torch.Generator(), has_map=True)
    with torch.no_grad():
        adapter.weight.copy_(torch.eye(feature.channels))
    tree, name = fused(first, second, after=2, before=3, adapter=adapter)
    result = simplify(tree, x)
    assert name not in result.tree.nodes
    assert f"{name} dropped: it is the identity" in result.done
    assert_alike(tree, result.tree, x)


def test_a_channel_map_is_folded_into_the_unpadded_convolution_behind_it():
    (first, second), x = sequences()
    tree, name = fused(first, second, after=1, before=2)
    with torch.no_grad():
        tree.nodes[name].bias.normal_(generator=torch.Generator().manual_seed(1))
    result = simplify(tree, x)
    assert name not in result.tree.nodes  # it only mapped channels
    assert f"{name}: channel map folded into b1_2 ({second.blocks[2].name})" in result.done
    assert result.tree.nodes["b1_2"].input == first.blocks[1].output
    assert_alike(tree, result.tree, x)


def test_into_a_padded_convolution_only_a_map_without_bias_is_folded():
    guest, x = settled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)), (3, 9, 9))
    tree, name = fused(narrow(), sequence_of(guest, x, "second"), after=0, before=1)
    without_bias = simplify(tree, x).tree
    assert name not in without_bias.nodes
    assert_alike(tree, without_bias, x)
    with torch.no_grad():
        tree.nodes[name].bias.fill_(1)
    with_bias = simplify(tree, x)
    assert isinstance(with_bias.tree.nodes[name], Rescale)
    assert with_bias.done == ()


def test_a_map_that_makes_the_next_layer_cheaper_is_kept():
    (first, second), x = sequences()
    tree, name = fused(second, first, after=1, before=2)
    result = simplify(tree, x)
    # 3 * 3 * 8 inputs for each of 6 outputs at 7 * 7 places cost more than 8 * 4 at 9 * 9 and 3 * 3 * 4 * 6 at 7 * 7
    assert isinstance(result.tree.nodes[name], Rescale)
    assert_alike(tree, result.tree, x)


def test_a_map_before_a_linear_layer_leaves_its_resampling_behind():
    guest = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8))
    guest, x = settled(guest, (3, 9, 9))
    sequence = sequence_of(guest, x, "second")
    assert sequence.blocks[1].input == Feature((6,), Layout.VEC)
    tree, name = fused(narrow(), sequence, after=0, before=1)
    with torch.no_grad():
        tree.nodes[name].bias.fill_(1)
    result = simplify(tree, x)
    assert isinstance(result.tree.nodes[name], Resample)
    assert not list(result.tree.nodes[name].parameters())
    assert_alike(tree, result.tree, x)


def test_an_adapter_that_serves_two_blocks_keeps_its_map():
    (first, second), x = sequences()
    tree, name = fused(first, second, after=1, before=2)
    steps = [*tree.steps]
    modules = dict(tree.nodes.items())
    for step in tree.steps:
        if step.name in ("b1_2", "b1_3"):
            twin = step.name.replace("b1", "b2")
            source = name if step.name == "b1_2" else "b2_2"
            steps.append(Step(name=twin, source=source, needs=step.needs, task=step.task and "third"))
            modules[twin] = copy.deepcopy(modules[step.name])
    tree = FusedTree(steps, modules, tasks=("first", "second", "third"), signature=tree.signature).eval()
    result = simplify(tree, x)
    assert isinstance(result.tree.nodes[name], Rescale)
    assert_alike(tree, result.tree, x)


def test_a_simplified_tree_answers_any_batch_and_subset_and_is_exported():
    (first, second), x = sequences()
    tree, _ = fused(first, second, after=1, before=2)
    result = simplify(tree, x).tree
    more = torch.cat([x, x + 1])
    assert_alike(tree, result, more)
    assert torch.equal(result(x, tasks=["second"])["second"], result(x)["second"])
    assert torch.equal(result.split()["second"](x), result(x)["second"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # export warns of its own internals
        program = torch.export.export(result, (x,), dynamic_shapes={"args": ({0: torch.export.Dim("batch")},)}, strict=False)
    exported = program.module()(more)
    assert torch.equal(exported["second"], result(more)["second"])


def test_what_is_simple_already_is_only_copied():
    (first, second), x = sequences()
    once = simplify(fused(first, second, after=1, before=2)[0], x).tree
    again = simplify(once, x)
    assert again.done == ()
    for task, output in once(x).items():
        assert torch.equal(again.tree(x)[task], output)
