"""Modules read as graphs of layers, and cut to some of their tasks."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serving.errors import ServingError
from serving.networks.heads import keep_tasks, tasks_of
from serving.networks.layers import Attention
from serving.networks.reading import read_network
from tests.unit import fused_trees, merging_networks
from tests.unit.parsed_models import AuxiliaryHead, StochasticDepth, images, rows
from tests.unit.serving_networks import MODELS, Named, Panels, network_of, panels
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import export


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for task, output in one.items():
        assert torch.equal(output, other[task]), task


@pytest.fixture(scope="module", params=MODELS)
def read(request):
    """Give a module, its network and inputs of a batch that it was not read with; they may not be changed."""
    make, inputs = MODELS[request.param]
    module = make()
    module(*inputs(8))  # running statistics that are not those of the beginning
    return module, read_network(module, inputs(), label=request.param), inputs(7)


def test_answers_bit_for_bit_as_the_module_for_any_batch(read):
    module, network, inputs = read
    assert not network.training
    assert module.training  # as it was
    reference = copy.deepcopy(module).eval()
    # with gradients: without, torch runs an encoder layer as one kernel of its own, which rounds otherwise
    assert_same(reference(*inputs), network(*inputs))
    assert_same(reference(inputs[0][:1]), network(inputs[0][:1]))


def test_trains_bit_for_bit_as_the_module(read):
    module, network, inputs = copy.deepcopy(read[0]), copy.deepcopy(read[1]).train(), read[2]
    for one in (module, network):
        torch.manual_seed(1)  # the same dropout
        outputs = one(*inputs)
        torch.stack([output.square().sum() for output in outputs.values()]).sum().backward()
    own = dict(module.named_parameters())
    assert {name for name, _ in network.named_parameters()} == set(own)
    for name, parameter in network.named_parameters():
        # the same numbers, but sums over several uses of a value are taken in another order
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-4, atol=1e-5, msg=name)
    statistics = dict(module.named_buffers())
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], msg=name)


def test_weights_keep_their_names_and_are_copies(read):
    module, network, _ = read
    state = module.state_dict(keep_vars=True)
    for name, tensor in network.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, state[name])
        assert tensor.data_ptr() != state[name].data_ptr()
        assert tensor.requires_grad == state[name].requires_grad


def test_layers_are_modules_of_torch():
    network = network_of("panels")
    kinds = [type(module) for module in network.modules()]
    assert [kinds.count(kind) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Dropout)] == [3, 2, 7, 1]
    assert network.get_submodule("dropout").p == 0.3
    assert network.get_submodule("first.0").padding == "same"


def test_a_layer_that_is_used_twice_stays_one():
    network = network_of("branches")
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    assert calls.count("twice") == 2


def test_frozen_weights_stay_frozen():
    module = Panels()
    module.stem.requires_grad_(False)
    network = read_network(module, panels(), label="panels")
    assert {name for name, value in network.named_parameters() if not value.requires_grad} == {
        name for name, value in module.named_parameters() if not value.requires_grad
    }


def test_a_network_is_copied_and_pickled_whole(read):
    _, network, inputs = read
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    with torch.no_grad():
        for twin in (copy.deepcopy(network), torch.load(file, weights_only=False)):
            assert_same(network(*inputs), twin(*inputs))


def test_the_dropout_of_attention_follows_the_mode():
    class Attending(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)}

    x = torch.randn(2, 6, 4)
    network = read_network(Attending(), (x,), label="attending")
    assert [type(module) for module in network.modules()].count(Attention) == 1
    expected = F.scaled_dot_product_attention(x, x, x)
    assert torch.equal(network(x)["a"], expected)
    assert not torch.allclose(network.train()(x)["a"], expected)


def test_names_that_python_or_fx_have_for_themselves_can_be_layers():
    names = ("graph", "code", "meta", "in", "plain")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, nn.Linear(4, 4))
            self.heads = nn.ModuleDict({"my-task": nn.Linear(4, 2), "a b": nn.Linear(4, 1)})

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            for name in names:
                x = self.get_submodule(name)(x).relu()
            return {task: head(x) for task, head in self.heads.items()}

    module, x = Odd(), torch.randn(3, 4)
    network = read_network(module, (x,), label="odd")
    assert_same(module(x), network(x))
    assert {"graph_", "in_", "plain"} <= {name for name, _ in network.named_children()}
    assert list(keep_tasks(network, ["a b"])(x)) == ["a b"]


def test_dropout_of_channels_and_averages_of_all_batches_are_kept():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8, momentum=None)
            self.dropout, self.last = nn.Dropout1d(0.5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.last(self.dropout(self.norm(self.conv(x))).mean(2))}

    module, x = Odd(), torch.randn(4, 3, 9)
    module(x)
    network = read_network(module, (x,), label="odd").train()
    assert isinstance(network.get_submodule("dropout"), nn.Dropout1d)
    for _ in range(2):
        module(x + 1), network(x + 1)
    assert torch.equal(network.get_submodule("norm").running_mean, module.norm.running_mean)
    assert network.get_submodule("norm").num_batches_tracked == 3


@pytest.mark.parametrize(
    ("body", "inputs"), [(StochasticDepth(), (rows(),)), (AuxiliaryHead(), (images(),))], ids=["random depth", "auxiliary head"]
)
def test_what_only_training_does_is_left_out(body, inputs):
    module = Named(body, "a")
    network = read_network(module, inputs, label="model")
    with torch.no_grad():
        assert_same(copy.deepcopy(module).eval()(*inputs), network(*inputs))


def fused_tree() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return fused_trees.forked(), (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),)


def specialised() -> tuple[nn.Module, tuple[Tensor, ...]]:
    merged = merging_networks.random_merged(merging_networks.ResNet, 3, seed=0)
    return merged.specialize(merged.tasks[:2]), (merging_networks.inputs_of(merging_networks.ResNet),)


@pytest.mark.parametrize("make", [fused_tree, specialised])
def test_reads_what_fusion_and_merging_make(make):
    module, inputs = make()
    network = read_network(module, inputs, label="model")
    with torch.no_grad():
        assert_same(copy.deepcopy(module).eval()(*inputs), network(*inputs))


def test_reads_a_model_that_was_sent_in(tmp_path):
    export(Panels(), panels(), tmp_path / "panels.umodel")
    module = load_umodel(tmp_path / "panels.umodel")
    network = read_network(module, panels(), label="panels")
    with torch.no_grad():
        assert_same(copy.deepcopy(module).eval()(*panels()), network(*panels()))
    assert nn.Dropout in {type(layer) for layer in network.modules()}


class Wrong(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> object:
        x = self.layer(x)
        if self.kind == "branches":
            return {"a": x if x.sum() > 0 else -x}
        if self.kind == "random":
            return {"a": F.dropout(x, 0.5, training=True)}
        outputs = {"tensor": x, "tuple": (x, x), "nothing": None, "nested": {"a": {"b": x}}, "no batch": {"a": x.sum()}}
        return outputs[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tensor", "got a tensor"),
        ("tuple", "got a tuple"),
        ("nested", "not all tensors"),
        ("no batch", r"expected for task 'a' an output \(batch, ...\)"),
        ("branches", "branches on a tensor value"),
        ("random", "draw at random"),
    ],
)
def test_refuses_what_is_no_network_of_tasks(kind, message):
    with pytest.raises(ServingError, match=f"^mine: .*{message}"):
        read_network(Wrong(kind), (torch.randn(2, 3),), label="mine")


@pytest.mark.parametrize("tasks", [{"shoe"}, {"count", "first"}, {"shoe", "first", "count"}])
def test_a_network_for_some_tasks_answers_them_as_before(tasks):
    network = network_of("panels")
    whole = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    part = keep_tasks(network, tasks)
    assert tasks_of(part) == tuple(task for task in ("shoe", "first", "count") if task in tasks)
    with torch.no_grad():
        expected = network(*panels())
        assert_same({task: expected[task] for task in tasks_of(part)}, part(*panels()))
    heads = {name.split(".")[1] for name in part.state_dict() if name.startswith("heads.")}
    assert heads == tasks
    assert network.state_dict().keys() == whole.keys()


def test_an_input_that_only_other_tasks_read_is_still_taken():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"x": self.one(x), "y": self.two(y)}

    inputs = torch.randn(2, 3), torch.randn(2, 4)
    part = keep_tasks(read_network(Two(), inputs, label="two"), ["y"])
    assert set(part.state_dict()) == {"two.weight", "two.bias"}
    assert part(*inputs)["y"].shape == (2, 2)


def test_a_part_can_be_cut_again_and_shares_nothing():
    network = network_of("panels")
    part = keep_tasks(keep_tasks(network, ["shoe", "first"]), ["first"])
    with torch.no_grad():
        before = network(*panels())["first"]
        for parameter in part.parameters():
            parameter.zero_()
        assert torch.equal(network(*panels())["first"], before)


@pytest.mark.parametrize("tasks", [[], ["shoe", "hat"]])
def test_unknown_tasks_are_refused(tasks):
    network = network_of("branches")
    with pytest.raises(ServingError, match="expected some of the tasks left, right"):
        keep_tasks(network, tasks)


class Encoded(nn.Module):
    """A layer that torch runs as one kernel without derivative in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, steps: Tensor) -> dict[str, Tensor]:
        return {"kind": self.head(self.encoder(steps).mean(1))}


def test_an_archive_with_a_kernel_of_evaluation_trains(tmp_path):
    torch.manual_seed(0)
    module, steps = Encoded(), torch.randn(5, 4, 8)
    export(module, (steps[:2],), tmp_path / "model.umodel")
    network = read_network(load_umodel(tmp_path / "model.umodel"), (steps[:2],), label="archive")
    with torch.no_grad():
        # the kernel and the layers that it stands for round otherwise, in float32
        torch.testing.assert_close(network(steps), module.eval()(steps), rtol=1e-4, atol=1e-4)
    network.train()(steps)["kind"].sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
