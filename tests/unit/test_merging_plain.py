"""Single networks pruned as their owner's module; torch-pruning's view of layers and scores beside ours."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, OWNING, Network
from fusion.merging.merged import MergedNetwork
from fusion.merging.plain import TOLERANCE, pruned_module
from fusion.merging.reading import read_network
from fusion.merging.reconnect import alone
from fusion.merging.resizing import resize
from tests import zoo
from tests.unit.merging_networks import SHAPES, LeNet, Mlp, ResNet, WithPrivate


class Vgg(nn.Module):
    """Convolutions with normalization one after the other, then flattening with several positions, dropout."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 6, 6, 8]
        blocks = [
            [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            for before, after in itertools.pairwise(widths)
        ]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        self.classifier = nn.Sequential(nn.Linear(8 * 4, 10), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


MODELS = {
    Vgg: (3, 16, 16),
    zoo.ResNet18: (3, 32, 32),
    **{kind: SHAPES[kind] for kind in (LeNet, ResNet, Mlp)},
}


def model_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def read(kind: type[nn.Module], model: nn.Module, **options: object) -> Network:
    shape = (MODELS | SHAPES)[kind]
    return read_network(model, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), name="A", **options)


def shrunk(network: Network) -> MergedNetwork:
    """Return it without a third of its neurons, and with other weights."""
    merged = alone(network)
    widths = {space: len(merged.neurons[space]) for space in merged.prunable}
    resize(merged, {space: (torch.arange(width) % 3 != 1).nonzero().flatten() for space, width in widths.items()})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return merged


@pytest.mark.parametrize("kind", MODELS)
def test_the_owners_module_answers_as_the_pruned_network(kind):
    model = model_of(kind)
    network = read(kind, model)
    merged = shrunk(network)
    assert [step.name for step in merged.steps] == [layer.name for layer in network.layers]
    sizes = [parameter.numel() for parameter in model.parameters()]
    pruned = pruned_module(model, network, merged)
    assert type(pruned) is kind
    assert sum(parameter.numel() for parameter in pruned.parameters()) == sum(p.numel() for p in merged.parameters())
    inputs = torch.randn(5, *MODELS[kind])
    expected = merged(inputs)["A"]
    torch.testing.assert_close(
        pruned(inputs), expected, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(expected.detach().abs().max()))
    )
    assert [parameter.numel() for parameter in model.parameters()] == sizes
    F.mse_loss(pruned.train()(inputs), torch.zeros_like(expected)).backward()  # it can be trained on


@pytest.mark.parametrize("kind", MODELS)
def test_torch_pruning_sees_the_same_layers_of_neurons(kind):
    model = model_of(kind)
    network = read(kind, model)
    names = {module: name for name, module in model.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(model, (network.example,), verbose=False)
    theirs = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        ends = [(names.get(item.dep.target.module), item.dep.handler.__name__) for item in group]
        ends = [(name, "in" if "in_channels" in handler else "out") for name, handler in ends if name is not None]
        theirs.add(frozenset(ends))
    spaces: dict[int, set[tuple[str, str]]] = {}
    for layer in network.layers:
        if layer.kind in OWNING:
            spaces.setdefault(layer.space, set()).add((layer.name, "out"))
        if layer.kind in MAKERS:
            spaces.setdefault(network.layers[layer.inputs[0]].space, set()).add((layer.name, "in"))
    del spaces[network.layers[0].space]  # the input's channels
    assert theirs == {frozenset(ends) for ends in spaces.values()}


def test_torch_prunings_taylor_scores_are_the_squared_gradients_of_gates():
    model = model_of(LeNet)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)  # torch-pruning's score of a layer's rows leaves the bias out
    network = read(LeNet, model)
    merged = alone(network)
    scorer = torch_pruning.importance.GroupTaylorImportance(multivariable=True, normalizer=None, group_reduction="sum")
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):
        inputs = torch.randn(8, *SHAPES[LeNet], generator=generator)
        targets = torch.randint(0, 3, (8,), generator=generator)
        gates = {space: torch.ones(len(merged.neurons[space]), requires_grad=True) for space in merged.prunable}

        def gate(step, value, gates=gates):
            each = gates[step.space].repeat_interleave(step.positions) if step.is_flat else gates[step.space]
            return value * each.view(1, -1, *[1] * (value.ndim - 2))

        F.cross_entropy(merged(inputs, gate=gate)["A"], targets).backward()
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        graph = torch_pruning.DependencyGraph().build_dependency(model, (network.example,), verbose=False)
        makers = {step.space: step.name for step in merged.steps if step.kind in MAKERS and step.space in gates}
        for space, name in makers.items():
            module = model.get_submodule(name)
            remove = torch_pruning.prune_linear_out_channels if name == "fc1" else torch_pruning.prune_conv_out_channels
            group = graph.get_pruning_group(module, remove, list(range(len(module.weight))))
            theirs = scorer(group[:1]).square()  # of the layer's rows alone; with those that read them it would count twice
            torch.testing.assert_close(theirs, gates[space].grad.square(), rtol=1e-4, atol=1e-9)  # sums in other orders


def test_what_private_layers_learned_is_kept():
    model = model_of(WithPrivate)
    network = read(WithPrivate, model, private=["private"])
    merged = shrunk(network)
    pruned = pruned_module(model, network, merged)
    assert not torch.equal(pruned.private.norm.weight, model.private.norm.weight)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.same, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.same(self.same(self.first(x).relu()).relu()).relu())


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 6, 3), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().view(-1, 24))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Twice(), (4,), "layer 'same_1' is used more than once"),
        (Literal(), (1, 4, 4), "does its forward write out a size of features"),
    ],
)
def test_refusals(model, shape, message):
    network = read_network(model, torch.randn(2, *shape), name="A")
    with pytest.raises(MergeError, match=message):
        pruned_module(model, network, shrunk(network))


def test_the_network_of_another_is_refused():
    model = model_of(Mlp)
    network = read(Mlp, model)
    other = alone(read_network(model, network.example, name="B"))
    with pytest.raises(MergeError, match="expected the merged network of A alone; got one of B"):
        pruned_module(model, network, other)
