"""Multi-Task Zipping: the pairs, the weights for both, and whole networks."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.matching import View, cheapest_pairs, distances, restricted, shared_weights
from fusion.merging.merged import MergedNetwork
from fusion.merging.reading import read_network
from fusion.merging.samples import MergeData, Samples, scores
from fusion.merging.training import TrainConfig
from fusion.merging.union import unite
from fusion.merging.zipping import zip_networks
from tests.unit.merging_models import (
    LeNet,
    TwoBranches,
    images,
    made,
    mlp,
    mobile,
    permuted,
    read_all,
    resnet,
    rows,
    vgg,
)

Orders = list[tuple[list[nn.Module], list[nn.Module]]]
EXACT = 1e-4  #: of outputs around 1, through float32 layers and damped second moments of equal networks


def data_of(inputs: Tensor, tasks: str) -> MergeData:
    """Return data with labels that say nothing."""
    labels = torch.arange(len(inputs)) % 5
    samples = Samples(inputs=inputs, labels=dict.fromkeys(tasks, labels))
    return MergeData(train=samples, validation=samples)


def zipped_of(models: dict[str, nn.Module], inputs: Tensor) -> MergedNetwork:
    """Return networks zipped without training."""
    union = unite(read_all(models, inputs))
    data = data_of(inputs, "".join(models))
    return zip_networks(union, data, retrain_steps=0, train=TrainConfig())


def check_outputs(merged: MergedNetwork, models: dict[str, nn.Module], inputs: Tensor) -> None:
    """Check that each task answers as its network did, alone and with the others."""
    with torch.no_grad():
        together = merged(inputs)
        for task, model in models.items():
            torch.testing.assert_close(together[task], model(inputs), atol=EXACT, rtol=EXACT)
            torch.testing.assert_close(merged(inputs, [task])[task], together[task], atol=1e-6, rtol=0)


def view(seed: int, *, neurons: int, inputs: int) -> View:
    """Return a layer of random weights over random inputs that are not independent."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(neurons, inputs, generator=generator, dtype=torch.float64)
    values = torch.randn(4 * inputs, inputs, generator=generator, dtype=torch.float64)
    values = values + 0.5 * values.roll(1, 1)
    return View(weights=weights, moment=values.T @ values / len(values))


def error(w: Tensor, first: View, second: View) -> Tensor:
    """Return half the squared error of one neuron ``w`` for the first neuron of both."""
    return sum(
        ((w - side.weights[0]) @ side.moment @ (w - side.weights[0]) / 2 for side in (first, second)), torch.zeros(())
    )  # fmt: skip


def test_shared_weights_minimise_the_error_and_the_distance_is_its_least_value() -> None:
    first, second = view(0, neurons=1, inputs=5), view(1, neurons=1, inputs=5)
    start = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([start], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = error(start, first, second)
        value.backward()
        return value

    search.step(closure)
    # the damping is 1e-3 of the second moments, so that what it moves is of that order
    torch.testing.assert_close(shared_weights(first, second)[0], start.detach(), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(distances(first, second)[0, 0], error(start.detach(), first, second), atol=0, rtol=1e-2)


def test_distance_is_the_papers_formula() -> None:
    first, second = view(2, neurons=3, inputs=4), view(3, neurons=2, inputs=4)
    inverse = torch.linalg.inv(torch.linalg.inv(first.moment) + torch.linalg.inv(second.moment))
    gaps = first.weights[:, None] - second.weights[None]
    expected = torch.einsum("ijk,kl,ijl->ij", gaps, inverse, gaps) / 2
    torch.testing.assert_close(distances(first, second), expected, atol=0, rtol=1e-2)  # damping, as above


def test_restricted_layer_has_the_least_error_without_the_inputs_it_lost() -> None:
    full = view(4, neurons=1, inputs=6)
    kept = torch.tensor([0, 2, 5])
    narrow, lost = restricted(full, kept)

    def loss(weights: Tensor) -> float:
        gap = torch.zeros(6, dtype=torch.float64)
        gap[kept] = weights
        gap = gap - full.weights[0]
        return float(gap @ full.moment @ gap / 2)

    assert loss(narrow.weights[0]) == pytest.approx(float(lost[0]), rel=2e-2)  # damping, as above
    for number, sign in itertools.product(range(3), (-1, 1)):
        moved = narrow.weights[0].clone()
        moved[number] += sign * 0.5
        assert loss(moved) > loss(narrow.weights[0])


def test_cheapest_pairs_come_first_and_use_each_side_once() -> None:
    cost = torch.tensor([[3.0, 1.0, 5.0], [2.0, 0.5, 4.0]])
    first, second = cheapest_pairs(cost)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(1, 1), (0, 0)]


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (mlp, rows(64)),
        (LeNet, images(32)),
        (vgg, images(32)),
        (TwoBranches, images(32)),
        (resnet, images(32)),
        (mobile, images(32)),
    ],
    ids=["mlp", "lenet", "vgg", "branches", "resnet", "mobile"],
)
def test_equal_networks_become_one_with_the_same_outputs(build: Callable[[], nn.Module], inputs: Tensor) -> None:
    models = {"a": made(build, 0), "b": made(build, 0)}
    merged = zipped_of(models, inputs)
    check_outputs(merged, models, inputs)
    hidden = [step.space for step in merged.steps if step.space in merged.prunable]
    assert all(set(merged.neurons[space].group.tolist()) == {3} for space in hidden)


def test_full_zip_costs_the_same_for_each_task() -> None:
    merged = zipped_of({"a": made(LeNet, 0), "b": made(LeNet, 1)}, images(32))
    head = 2 * 12 * 5
    assert flops(merged, ["a"]) == flops(merged, ["b"]) == flops(merged) - head


def lenet_orders(net: nn.Module) -> Orders:
    """Return makers and readers of a LeNet's hidden layers."""
    layers = [net.get_submodule(name) for name in ("conv1", "conv2", "fc1", "fc2", "head")]
    return [([maker], [reader]) for maker, reader in itertools.pairwise(layers)]


def resnet_orders(net: nn.Module) -> Orders:
    """Return makers, with their norms, and readers of a (1, 1) ResNet's streams and inner layers."""
    get = net.get_submodule
    first = (["0", "1", "3.body.3", "3.body.4"], ["3.body.0", "4.body.0", "4.skip.0"])
    second = (["4.body.3", "4.body.4", "4.skip.0", "4.skip.1"], ["7"])
    inner = [(["3.body.0", "3.body.1"], ["3.body.3"]), (["4.body.0", "4.body.1"], ["4.body.3"])]
    return [([get(name) for name in makers], [get(name) for name in readers]) for makers, readers in (first, second, *inner)]


@pytest.mark.parametrize(("build", "orders"), [(LeNet, lenet_orders), (resnet, resnet_orders)], ids=["lenet", "resnet"])
def test_shuffled_copy_is_found_again(build: Callable[[], nn.Module], orders: Callable[[nn.Module], Orders]) -> None:
    model = made(build, 0)
    copied = copy.deepcopy(model)
    permuted(copied, orders(copied))
    inputs = images(32)
    torch.testing.assert_close(copied(inputs), model(inputs), atol=1e-5, rtol=1e-5)
    check_outputs(zipped_of({"a": model, "b": copied}, inputs), {"a": model, "b": copied}, inputs)


def test_neurons_without_a_partner_stay_their_own() -> None:
    models = {"a": made(lambda: mlp((10, 8)), 0), "b": made(lambda: mlp((14, 6)), 1)}
    merged = zipped_of(models, rows(64))
    sizes = [merged.neurons[space].sizes() for space in sorted(merged.prunable)]
    assert sizes == [{3: 10, 2: 4}, {1: 2, 3: 6}]
    assert merged(rows(4))["b"].shape == (4, 5)
    cut = merged.part(next(number for number, step in enumerate(merged.steps) if step.name == "2")).masked()
    assert bool((cut[2:, 10:] == 0).all())  # the zipped neurons read nothing of what b has alone


@pytest.mark.parametrize(
    ("builds", "inputs"),
    [
        ([lambda: resnet((1, 1), (8, 12)), lambda: resnet((1, 2), (10, 9)), lambda: resnet((2, 1), (6, 12))], images(32)),
        ([lambda: resnet(first=True), lambda: resnet(first=True, widths=(6, 14))], images(32)),
        ([lambda: resnet(bottleneck=True), lambda: resnet(bottleneck=True, widths=(10, 10))], images(32)),
        ([mobile, lambda: mobile(8, 7), lambda: mobile(5, 12)], images(32)),
        ([lambda: vgg((8, 8, "M", 12, "M")), lambda: vgg((6, 9, "M", 14, "M"), hidden=9)], images(32)),
        ([LeNet, lambda: LeNet((4, 10, 20, 20)), lambda: LeNet((9, 5, 25, 6))], images(32)),
    ],
    ids=["resnet", "before", "bottleneck", "mobile", "vgg", "lenet"],
)
def test_networks_of_any_widths_answer_each_task_as_with_the_others(
    builds: list[Callable[[], nn.Module]], inputs: Tensor
) -> None:
    models = {task: made(build, number) for number, (task, build) in enumerate(zip("abc", builds, strict=False))}
    merged = zipped_of(models, inputs)
    with torch.no_grad():
        together = merged(inputs)
        for task, model in models.items():
            assert together[task].isfinite().all()
            torch.testing.assert_close(merged(inputs, [task])[task], together[task], atol=1e-5, rtol=1e-5)
            # each task's error is bounded by that of answering with the mean: what is left is more than nothing
            expected = model(inputs)
            assert (together[task] - expected).std() < 2 * expected.std()
    for step in merged.steps:
        widths = merged.neurons[step.space].sizes() if step.space in merged.prunable else {}
        assert not widths or max(group.bit_count() for group in widths) == merged_tasks(merged, step.space)


def merged_tasks(merged: MergedNetwork, space: int) -> int:
    """Return how many tasks need a space."""
    return functools.reduce(operator.or_, (step.tasks for step in merged.steps if step.space == space)).bit_count()


def test_three_equal_networks_become_one() -> None:
    models = {task: made(LeNet, 0) for task in "abc"}
    merged = zipped_of(models, images(32))
    check_outputs(merged, models, images(32))
    assert all(set(merged.neurons[space].group.tolist()) == {7} for space in merged.prunable)


def test_networks_of_unequal_depth_are_zipped_as_far_as_they_agree() -> None:
    models = {"a": made(lambda: mlp((12, 8)), 0), "b": made(lambda: mlp((12, 8, 7)), 1)}
    merged = zipped_of(models, rows(64))
    assert [merged.neurons[space].sizes() for space in sorted(merged.prunable)] == [{3: 12}, {3: 8}, {2: 7}]


def test_networks_with_nothing_in_common_are_refused() -> None:
    models = {"a": made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 5)), 0)}
    models["b"] = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(576, 5)), 1)
    with pytest.raises(MergeError, match="no layer in common"):
        zipped_of(models, images())


def test_training_keeps_accuracy_on_digits() -> None:
    digits = load_digits()
    inputs = torch.tensor(np.asarray(digits.data), dtype=torch.float32) / 16
    target = torch.tensor(np.asarray(digits.target))
    labels = {"parity": target % 2, "size": (target >= 5).long()}
    split = {name: Samples(inputs=inputs[part], labels={task: values[part] for task, values in labels.items()})
             for name, part in (("train", slice(0, 1300)), ("validation", slice(1300, None)))}  # fmt: skip
    data = MergeData(train=split["train"], validation=split["validation"])
    networks, alone = [], {}
    for task in labels:
        torch.manual_seed(0)
        model = mlp((40, 30), outputs=2, features=64)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(split["train"].inputs), split["train"].labels[task]).backward()
            optimizer.step()
        networks.append(read_network(model.eval(), inputs[:2], name=task))
        answers = model(split["validation"].inputs).argmax(1)
        alone[task] = float((answers == split["validation"].labels[task]).float().mean())
    told: list[str] = []
    merged = zip_networks(unite(networks), data, retrain_steps=150, train=TrainConfig(lr=3e-3), progress=told.append)
    reached = scores(merged, data.validation, merged.tasks)
    assert all(reached[task] > alone[task] - 0.03 for task in labels), (reached, alone)  # 15 of 497 samples
    assert len(told) == 2
