"""Pruning by whole channels: what goes, what stays, and what is told of it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from serving.counting import count
from serving.errors import ServingError
from serving.networks.programs import read_program, write_program
from serving.networks.reading import read_network
from serving.pruning import Criterion, RatioOf, prune_network
from tests.unit import merging_networks
from tests.unit.serving_networks import MODELS, network_of, panels, texts

RATIOS = [0.0, 0.1, 0.5, 0.9]


def shapes(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, torch.Size]:
    with torch.no_grad():
        return {task: output.shape for task, output in network(*inputs).items()}


def widths(network: fx.GraphModule) -> dict[str, int]:
    return {name: len(value) for name, value in network.state_dict().items() if name.endswith("weight")}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_keep_their_shapes_and_the_network_stays_as_it_is(name, ratio):
    network, inputs = network_of(name), MODELS[name][1]
    before = copy.deepcopy(network.state_dict())
    pruned = prune_network(network, inputs(), ratio)
    assert shapes(pruned.network, inputs(3)) == shapes(network, inputs(3))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    own = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in pruned.network.state_dict().values()}
    assert all(size >= 1 for size in widths(pruned.network).values())


def test_each_layer_loses_its_share_and_outputs_lose_nothing():
    pruned = prune_network(network_of("panels"), panels(), 0.5)
    before, after = widths(network_of("panels")), widths(pruned.network)
    outputs = {f"heads.{task}.2.weight" for task in ("shoe", "first", "count")}
    assert all(after[name] == before[name] // (1 if name in outputs else 2) for name in before)
    assert pruned.kept == ()


def test_what_is_achieved_is_what_is_counted():
    network = network_of("panels")
    pruned = prune_network(network, panels(), 0.3)
    before, after = count(network, panels()), count(pruned.network, panels())
    assert pruned.achieved["parameters"] == pytest.approx(1 - after.num_parameters / before.num_parameters)
    assert pruned.achieved["flops"] == pytest.approx(1 - after.flops / before.flops)
    assert 0.2 < pruned.achieved["channels"] < 0.3  # of eight, two go; of the outputs, none
    assert prune_network(network, panels(), 0).achieved == dict.fromkeys(("channels", "parameters", "flops"), 0.0)


def test_counts_are_those_of_one_sample():
    counts = count(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), (torch.zeros(4, 3),))
    assert counts.num_parameters == 3 * 5 + 5 + 5 + 5
    assert counts.flops == 2 * 3 * 5
    assert counts.num_bytes == 4 * (counts.num_parameters + 10) + 8  # statistics, and the counter of batches


def silenced(network: fx.GraphModule, dead: dict[str, list[int]]) -> fx.GraphModule:
    """Return a copy in which some channels of layers are always 0, whatever comes in."""
    result = copy.deepcopy(network)
    with torch.no_grad():
        for name, places in dead.items():
            layer = result.get_submodule(name)
            layer.weight[places] = 0
            if layer.bias is not None:
                layer.bias[places] = 0
    return result


class Joined(nn.Module):
    """A depth-wise convolution, a concatenation and positions that are flattened with the channels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem, self.depthwise = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.point, self.hidden, self.last = nn.Conv2d(16, 4, 1), nn.Linear(4 * 8 * 12, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = self.point(torch.cat([x, self.depthwise(x)], 1)).relu()
        return {"a": self.last(self.hidden(x.flatten(1)).relu())}


HALF = [0, 3, 4, 6]
DEAD = {
    "panels": {"stem.0": HALF, "stem.1": HALF, "first.0": HALF, "first.1": HALF}
    | {"wide": [1, 2, 5, 7, 8, 11, 14, 15], "features": list(range(4, 12))}
    | {f"heads.{task}.0": [0, 2, 4, 6, 8, 10] for task in ("shoe", "first", "count")},
    "joined": {"stem": HALF, "depthwise": HALF, "point": [1, 2], "hidden": [0, 2, 5]},
}


@pytest.mark.parametrize("name", DEAD)
def test_channels_that_do_nothing_go_first_and_nothing_changes(name):
    network = network_of(name) if name in MODELS else read_network(Joined(), panels(), label=name)
    network = silenced(network, DEAD[name])
    pruned = prune_network(network, panels(), 0.5).network
    for layer, dead in DEAD[name].items():
        assert len(pruned.get_submodule(layer).weight) == len(network.get_submodule(layer).weight) - len(dead)
    with torch.no_grad():
        for task, output in network(*panels(5)).items():
            # the same products, in sums of other lengths
            torch.testing.assert_close(pruned(*panels(5))[task], output, rtol=1e-4, atol=1e-5)


def linear_chain() -> fx.GraphModule:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.last(self.norm(self.first(x)).relu())}

    return read_network(Chain(), (torch.randn(4, 3),), label="chain")


@pytest.mark.parametrize("criterion", Criterion)
def test_a_criterion_says_which_channels_go(criterion):
    network = linear_chain()
    x = torch.randn(8, 3)
    with torch.no_grad():
        network.get_submodule("first").weight.copy_(torch.tensor([1.0, 4, 2, 3])[:, None].expand(4, 3))
        network.get_submodule("norm").weight.copy_(torch.tensor([4.0, 3, 1, 2]))
        network.get_submodule("last").weight.copy_(torch.tensor([1.0, 0, 1, 0]))  # the loss feels the first and the third
    kept = {Criterion.MAGNITUDE: [1, 3], Criterion.BATCH_NORM: [0, 1], Criterion.TAYLOR: [0, 2]}[criterion]
    if criterion is Criterion.MAGNITUDE:
        network.get_submodule("norm").weight.data.fill_(1.0)
        network.get_submodule("last").weight.data.fill_(1.0)
    loss = (lambda module: module(x)["a"].square().sum()) if criterion is Criterion.TAYLOR else None
    pruned = prune_network(network, (x,), 0.5, criterion=criterion, loss=loss).network
    assert torch.equal(pruned.get_submodule("norm").weight, network.get_submodule("norm").weight[kept])
    assert torch.equal(pruned.get_submodule("last").weight, network.get_submodule("last").weight[:, kept])
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.fixture(scope="module")
def steps():
    return [prune_network(network_of("panels"), panels(), step / 100).achieved for step in range(1, 100, 4)]


@pytest.mark.parametrize("ratio_of", [RatioOf.PARAMETERS, RatioOf.FLOPS])
@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.9])
def test_of_parameters_or_flops_at_least_the_ratio_goes_and_no_step_more(steps, ratio_of, ratio):
    network = network_of("panels")
    achieved = prune_network(network, panels(), ratio, ratio_of=ratio_of).achieved
    assert achieved[ratio_of] >= ratio
    assert not [other for other in steps if ratio <= other[ratio_of] < achieved[ratio_of]]


def test_a_ratio_out_of_reach_is_refused_with_what_could_be():
    with pytest.raises(ServingError, match=r"ratio of parameters that pruning can reach, at most 0\.\d\d here; got 0\.9999"):
        prune_network(network_of("panels"), panels(), 0.9999, ratio_of="parameters")


@settings(deadline=None, max_examples=25)
@given(ratio=st.floats(0, 0.99), round_to=st.integers(1, 9))
def test_widths_are_rounded_as_far_as_there_are_channels(ratio, round_to):
    before = widths(network_of("panels"))
    after = widths(prune_network(network_of("panels"), panels(), ratio, round_to=round_to).network)
    for name, width in after.items():
        assert width % round_to == 0 or width == before[name]
        assert before[name] * (1 - ratio) - 0.5 <= width <= before[name]


def test_groups_of_convolutions_and_norms_stay_equal():
    pruned = prune_network(network_of("branches"), panels(), 0.5).network
    assert pruned.get_submodule("depthwise").groups == pruned.get_submodule("stem").out_channels == 4
    assert pruned.get_submodule("grouped").weight.shape == (8, 2, 3, 3)
    assert pruned.get_submodule("norm").weight.shape == (8,)
    assert pruned.get_submodule("twice").weight.shape == (3, 3)
    assert pruned.scale.shape == (3,)


def test_what_attention_reads_keeps_its_width():
    pruned = prune_network(network_of("texts"), texts(), 0.5)
    assert pruned.network.get_submodule("encoder.linear1").out_features == 8
    assert pruned.network.get_submodule("words").embedding_dim == 8
    assert "encoder.linear1" not in pruned.kept


def test_channels_that_are_picked_by_number_keep_their_places():
    merged = merging_networks.random_merged(merging_networks.ResNet, 3, seed=0)
    inputs = (merging_networks.inputs_of(merging_networks.ResNet),)
    network = read_network(merged.specialize(merged.tasks[:2]), inputs, label="merged")
    pruned = prune_network(network, inputs, 0.5)
    assert pruned.kept
    assert shapes(pruned.network, inputs) == shapes(network, inputs)


def test_frozen_weights_and_the_mode_stay():
    network = copy.deepcopy(network_of("panels")).train()
    network.get_submodule("stem").requires_grad_(False)
    pruned = prune_network(network, panels(), 0.5).network
    assert pruned.training
    assert network.training
    assert {name for name, value in pruned.named_parameters() if not value.requires_grad} == {
        "stem.0.weight",
        "stem.1.weight",
        "stem.1.bias",
    }


def test_a_pruned_network_trains_and_is_stored(tmp_path):
    pruned = prune_network(network_of("panels"), panels(), 0.7).network
    optimizer = torch.optim.Adam(pruned.parameters(), 0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = sum(output.square().mean() for output in pruned.train()(*panels()).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    write_program(pruned, panels(), tmp_path)
    with torch.inference_mode():
        expected = copy.deepcopy(pruned).eval().requires_grad_(False)(*panels(9))
        assert all(torch.equal(output, expected[task]) for task, output in read_program(tmp_path)(*panels(9)).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"ratio in \[0, 1\), got 1.0"),
        ({"ratio": -0.1}, "got -0.1"),
        ({"criterion": "age"}, "expected a criterion magnitude or taylor or batchnorm, got 'age'"),
        ({"ratio_of": "bits"}, "expected a ratio of channels or parameters or flops, got 'bits'"),
        ({"round_to": 0}, "expected round_to >= 1"),
        ({"criterion": "taylor"}, "expected a loss for the criterion 'taylor'"),
    ],
)
def test_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ServingError, match=message):
        prune_network(network_of("panels"), panels(), **({"ratio": 0.5} | options))


def test_a_network_of_outputs_alone_cannot_be_pruned():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.layer(x).softmax(-1)}

    with pytest.raises(ServingError, match=r"nothing in this network can be pruned.*: layer"):
        prune_network(read_network(Flat(), (torch.randn(2, 3),), label="flat"), (torch.randn(2, 3),), 0.5)
