"""Merging: neurons that do not vary, training after the merge, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.merge import merge, read_models, regroup
from fusion.merging.neurons import Neurons
from fusion.merging.planned import reconnect_plan
from fusion.merging.reconnect import alone
from fusion.merging.recording import record
from fusion.merging.regroup import hidden, trace_networks
from fusion.merging.samples import MergeData, Samples
from fusion.merging.training import TrainConfig
from fusion.merging.zipping import zip_networks
from tests.unit.merging_networks import LeNet, Mlp, ResNet
from tests.unit.merging_regroupings import config, data_for, deviation, networks_of, union_of

EXACT = 1e-5  # single precision, sums in another order


def with_still_neurons(kind: type[nn.Module], paths: tuple[str, ...]) -> dict[str, nn.Module]:
    """Networks whose layers at ``paths`` have a dead first neuron and a constant second one."""
    models = networks_of(kind)
    for model in models.values():
        for path in paths:
            layer = model.get_submodule(path)
            with torch.no_grad():
                layer.weight[:2] = 0
                layer.bias[:2] = torch.tensor([-1.0, 0.7])
    return models


def test_dead_and_constant_neurons_are_left_out_and_change_nothing() -> None:
    models, data = with_still_neurons(LeNet, ("conv1", "conv2", "fc1")), data_for(LeNet)
    union = read_models(models, data)
    plan = regroup(union, data, config(alpha=inf))
    merged = reconnect_plan(union, plan)
    for space in plan.spaces:
        assert {0} <= set(space.dead.index.tolist())
        assert {(fold.origin, fold.index) for fold in space.folded} == {(0, 1), (1, 1)}
        assert len(merged.neurons[space.space]) == len(space.neurons)
    assert deviation(merged, models, data.train.inputs) <= EXACT


class Padded(nn.Module):
    """A convolution that pads reads another."""

    def __init__(self, num_outputs: int, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3), nn.Conv2d(width, 5, 3, padding=1)
        self.head = nn.Linear(5, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))


def test_a_constant_neuron_stays_where_a_reader_pads_or_has_no_bias() -> None:
    for kind, path in ((Padded, "conv1"), (ResNet, "back")):
        data = data_for(LeNet if kind is Padded else ResNet)
        models = with_still_neurons(kind, (path,))
        union = read_models(models, data)
        plan = regroup(union, data, config(alpha=inf))
        assert not any(space.folded for space in plan.spaces)
        assert deviation(reconnect_plan(union, plan), models, data.train.inputs) <= EXACT
        if kind is Padded:
            assert "conv1: neurons that hardly vary stay in their own networks (2)" in plan.notes


def test_a_folded_constant_reaches_neurons_that_could_not_read_it() -> None:
    models, data = with_still_neurons(Mlp, ("layers.3",)), data_for(Mlp)
    union = read_models(models, data)
    merged = reconnect_plan(union, trace_networks(union, data, config()).regroup(0.1))
    plain = reconnect_plan(union, replace(trace_networks(union, data, config()).regroup(0.1), spaces=()))
    head = [position for position, step in enumerate(merged.steps) if step.tasks == 1 and step.kind == "linear"][-1]
    expected = plain.part(head).bias + 0.7 * models["A"].layers[5].weight[:, 1]
    torch.testing.assert_close(merged.part(head).bias, expected)


def test_values_are_those_that_the_networks_have_where_they_are_read() -> None:
    data, models = data_for(LeNet), networks_of(LeNet)
    union = union_of(LeNet)
    space = hidden(union)[0]
    found = record(union, data.train.inputs, [space], keep=40)[space]
    with torch.no_grad():
        expected = [torch.max_pool2d(model.conv1(data.train.inputs[:40]).relu(), 2).flatten(2) for model in models.values()]
    torch.testing.assert_close(found.values, torch.cat(expected, 1))


def test_positions_are_chosen_where_memory_is_short_and_all_of_them_tell_what_varies() -> None:
    data, union = data_for(LeNet), union_of(LeNet)
    space = hidden(union)[0]
    whole = record(union, data.train.inputs, [space], keep=48)[space]
    part = record(union, data.train.inputs, [space], keep=48, max_bytes=4 * 48 * 9 * 5)[space]
    assert part.values.shape == (48, 9, 5)
    assert part.num_positions == whole.values.shape[2] == 36
    assert torch.equal(part.live, whole.live)
    columns = [(whole.values == part.values[:, :, [number]]).all((0, 1)) for number in range(5)]
    assert all(bool(column.any()) for column in columns)


def test_merging_trains_and_leaves_the_networks_alone() -> None:
    data, models = data_for(ResNet), networks_of(ResNet)
    before = {task: {name: value.clone() for name, value in model.state_dict().items()} for task, model in models.items()}
    models["A"].train()
    merged = merge(models, data, alpha=0.1, steps=3, config=config(), pair=False)
    assert models["A"].training
    assert not merged.training
    assert any(neurons.sizes().get(3) for space, neurons in merged.neurons.items() if space)
    for task, model in models.items():
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[task][name])
    assert {task: tuple(answer.shape) for task, answer in merged(data.train.inputs).items()} == {"A": (48, 2), "B": (48, 2)}


@pytest.mark.parametrize("num_tasks", [2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_pairs_are_of_neurons_that_the_plan_shares_and_no_task_costs_more_than_alone(num_tasks: int, alpha: float) -> None:
    data, union = data_for(LeNet, num_tasks), union_of(LeNet, num_tasks)
    plan = trace_networks(union, data, config()).regroup(alpha)
    merged = zip_networks(union, data, retrain_steps=0, train=TrainConfig(), plan=plan)
    assert not merged.training
    for space in plan.spaces:
        planned = {(origin, index): group for origin, index, group in _listed(space.neurons)}
        for origin, index, group in _listed(merged.neurons[space.space]):
            assert group >> origin & 1
            if group != 1 << origin:  # the plan lets it serve these tasks, and others of their networks too
                assert group & ~planned[origin, index] == 0
                assert any(other != origin and group & ~given == 0 for (other, _), given in planned.items())
    for number, network in enumerate(union.networks.values()):
        assert flops(merged, [merged.tasks[number]]) <= flops(alone(network))


def _listed(neurons: Neurons) -> list[tuple[int, int, int]]:
    return list(zip(neurons.origin.tolist(), neurons.index.tolist(), neurons.group.tolist(), strict=True))


def test_a_private_module_that_no_network_has_is_refused() -> None:
    with pytest.raises(MergeError, match="private 'nope': no network has a module of that path; there are, say: conv1"):
        read_models(networks_of(LeNet), data_for(LeNet), private=["nope"])


def with_labels(data: MergeData, **labels: Tensor | None) -> MergeData:
    """Return data with other training labels; None takes them away."""
    given = {task: value for task, value in (dict(data.train.labels) | labels).items() if value is not None}
    return replace(data, train=Samples(inputs=data.train.inputs, labels=given))


def test_everything_that_is_wrong_is_said_at_once() -> None:
    data = with_labels(data_for(Mlp), B=None)
    with pytest.raises(MergeError) as raised:
        merge({"": Mlp(), "B": nn.GRU(5, 3), "C": "no network"}, data)
    said = str(raised.value)
    assert "a task's name is a text that is not empty, got ''" in said
    assert "C: expected a torch.nn.Module, got str" in said
    assert "training samples: no labels of task 'B'" in said
    assert "B: " in said.replace("training samples", "")


@pytest.mark.parametrize(
    ("models", "labels", "message"),
    [
        ({"A": Mlp()}, {}, "at least two networks, got 1"),
        ({"A": Mlp(), "B": LeNet()}, {}, "^B: "),
        ({"A": Mlp(), "B": nn.Linear(5, 2)}, {}, "no corresponding layer at all"),
        (networks_of(Mlp), {"B": torch.zeros(48, dtype=torch.long)}, "B: labels are constant"),
        (networks_of(Mlp), {"B": torch.zeros(40, dtype=torch.long)}, "40 labels of task 'B' for 48 samples"),
        (
            networks_of(Mlp),
            {"B": torch.arange(48)},
            "B: answers .* expected training labels one class below that number for each",
        ),
    ],
    ids=["one network", "another input", "nothing in common", "constant labels", "too few labels", "identifiers as labels"],
)
def test_what_cannot_be_merged_is_refused(models: dict[str, nn.Module], labels: dict[str, Tensor], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        merge(models, with_labels(data_for(Mlp), **labels), config=config())


def test_values_that_are_not_finite_name_network_and_layer() -> None:
    models = networks_of(Mlp)
    with torch.no_grad():
        models["B"].layers[3].bias[0] = inf
    with pytest.raises(MergeError, match=r"^B: layer 'layers.4.relu' has values that are not finite"):
        merge(models, data_for(Mlp), config=config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha is a fraction from 0 to 1, or infinity, got -0.1"),
        ({"alpha": 1.5}, "alpha is a fraction"),
        ({"on_overlap": "keep", "min_neurons": 0}, "min_neurons is a whole number from 1, got 0; on_overlap is one of origin"),
        ({"max_subset": 0}, "max_subset is a whole number from 1, got 0"),
    ],
    ids=["below 0", "above 1", "two at once", "no subset"],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        config(**options)


def test_limits_of_subsets_and_groups() -> None:
    with pytest.raises(MergeError, match="max_subset is at most 1 for 2 tasks, got 2"):
        regroup(union_of(Mlp), data_for(Mlp), config(max_subset=2))
    with pytest.raises(MergeError, match=r"3 tasks with max_subset 2 make 7 groups in a layer, more than max_groups, 6"):
        regroup(union_of(Mlp, 3), data_for(Mlp, 3), config(max_groups=6))
    with pytest.warns(UserWarning, match="max_subset has no effect for two tasks"):
        regroup(union_of(Mlp), data_for(Mlp), config(max_subset=1))


def test_a_plan_of_other_networks_is_refused() -> None:
    plan = regroup(union_of(Mlp), data_for(Mlp), config())
    with pytest.raises(MergeError, match="the plan is of other networks"):
        reconnect_plan(union_of(Mlp, 3), plan)
