"""Networks as people write them are read as layers that answer as they do, or refused by name."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.merging.errors import MergeError
from fusion.merging.layers import Kind
from fusion.merging.reading import read_network
from fusion.merging.reconnect import alone
from tests.unit import merging_models as nets
from tests.unit.merging_models import images, made, rows


def exported() -> nn.Module:
    """A network that came from a file."""
    file = io.BytesIO()
    program = torch.export.export(made(nets.vgg, 0), (images(4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


class Halves(nn.Module):
    """Mixes neurons without a layer that makes new ones."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.head = how, nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "split":
            one, other = x.chunk(2, 1)
            x = torch.cat([other, one], 1)
        elif self.how == "flip":
            x = x.flip(1)
        elif self.how == "mean":
            x = x - x.mean(1, keepdim=True)
        elif self.how == "softmax":
            x = x.softmax(1)
        elif self.how == "transposed":
            x = x.permute(0, 2, 3, 1).reshape(len(x), 4, 14, 14)
        elif self.how == "batch":
            x = x - x.mean(0, keepdim=True)
        elif self.how == "channel":
            x = x * torch.arange(4.0)[:, None, None]
        return self.head(x.mean((2, 3)))


class Several(nn.Module):
    """Answers or takes more than one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return y, y.relu()


READ = {
    "lenet": (nets.LeNet, images),
    "normalizing": (nets.Normalising, images),
    "vgg": (nets.vgg, images),
    "resnet": (nets.resnet, images),
    "bottleneck": (lambda: nets.resnet(bottleneck=True), images),
    "activation first": (lambda: nets.resnet(first=True), images),
    "mobile": (nets.mobile, images),
    "fully convolutional": (nets.FullyConvolutional, images),
    "branches": (nets.TwoBranches, images),
    "reused": (nets.Reused, rows),
    "mlp": (nets.mlp, rows),
}


@pytest.mark.parametrize("name", READ)
def test_layers_answer_as_the_network(name):
    build, inputs_of = READ[name]
    model = made(build, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = alone(read_network(model, inputs_of(2), name="a"))
    for count in (1, 5):
        torch.testing.assert_close(merged(inputs_of(count))["a"], model(inputs_of(count)), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_network_from_a_file_is_read():
    merged = alone(read_network(exported(), images(2), name="a"))
    torch.testing.assert_close(merged(images(5))["a"], made(nets.vgg, 0)(images(5)), rtol=1e-5, atol=1e-6)


def test_what_is_in_training_mode_is_read_as_it_answers():
    model = made(nets.vgg, 1).train()
    merged = alone(read_network(model, images(2), name="a"))
    assert model.training
    torch.testing.assert_close(merged(images(5))["a"], model.eval()(images(5)), rtol=1e-5, atol=1e-6)


def test_double_precision_stays():
    model = made(nets.resnet, 1).double()
    merged = alone(read_network(model, images(2).double(), name="a"))
    answer = merged(images(3).double())["a"]
    assert answer.dtype == torch.float64
    torch.testing.assert_close(answer, model(images(3).double()))


def test_private_attention_keeps_what_it_reads():
    model = made(nets.Attention, 1)
    with pytest.raises(MergeError, match=r"keep it private with private=\['mixing"):
        read_network(model, images(2), name="a")
    network = read_network(model, images(2), name="a", private=["mixing"])
    merged = alone(network)
    torch.testing.assert_close(merged(images(5))["a"], model(images(5)), rtol=1e-5, atol=1e-6)
    widths = {len(merged.neurons[space]) for space in merged.prunable}
    assert widths == {6}  # what attention reads and gives stays


def test_residual_streams_are_one_space_and_alike_branches_too():
    network = read_network(made(nets.resnet, 0), images(2), name="a")
    adds = [layer for layer in network.layers if layer.kind is Kind.JOIN]
    assert len(adds) == 2
    for layer in adds:
        assert {network.layers[source].space for source in layer.inputs} == {layer.space}
    assert [layer.name for layer in network.layers if layer.name == "input"] == ["input"]
    assert len({layer.name for layer in network.layers}) == len(network.layers)


@pytest.mark.parametrize("how", ["split", "flip", "mean", "softmax", "transposed", "batch", "channel"])
def test_what_mixes_neurons_is_refused_by_name(how):
    with pytest.raises(MergeError, match=r"a: .*(private|layer by layer)"):
        read_network(Halves(how).eval(), images(2), name="a")


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Several(), rows(2), "a: gives 2 tensors; expected one"),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 2)), torch.randn(2, 4, 3, 3), "of 2 groups"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), images(2), "no convolution or linear layer between input and output"),
        (nn.Sequential(nn.Linear(20, 4), nn.LayerNorm(4), nn.Linear(4, 2)), rows(2), "'1' .*layer_norm.*not known"),
        (nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 2)), rows(2).double(), "cannot be run on 2 samples of torch.float64"),
        (nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 2)), rows(2).long(), "takes torch.int64"),
        (nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), rows(2), "a: "),
        (nets.Shift(), images(2), "a: "),
    ],
    ids=["outputs", "groups", "nothing", "layer norm", "double", "whole numbers", "sizes", "parameter"],
)  # fmt: skip
def test_refusals(model, inputs, message):
    with pytest.raises(MergeError, match=message):
        read_network(model.eval(), inputs, name="a")


def test_all_that_is_not_understood_is_named_at_once():
    model = nn.Sequential(nn.Linear(20, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)).eval()
    with pytest.raises(MergeError) as caught:
        read_network(model, rows(2), name="a")
    assert ["'1'" in line or "'3'" in line for line in str(caught.value).splitlines()] == [True, True]


class Branching(nn.Module):
    """Does one thing or another by what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(20, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.head(x.relu() if x.sum() > 0 else F.gelu(x))


def test_control_flow_over_values_is_refused():
    with pytest.raises(MergeError, match="a: "):
        read_network(Branching().eval(), rows(2), name="a")
