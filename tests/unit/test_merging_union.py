"""Networks put together: what corresponds, and that nothing changes as long as no neuron is shared."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS
from fusion.merging.neurons import Neurons
from fusion.merging.reconnect import own_groups, reconnect
from fusion.merging.union import Union, unite
from tests.unit import merging_models as nets
from tests.unit.merging_models import images, made, read_all, rows
from tests.unit.merging_networks import random_groups

IMAGES = {
    "lenet": nets.LeNet,
    "wide lenet": lambda: nets.LeNet((9, 5, 17, 14), outputs=2),
    "normalizing": nets.Normalising,
    "vgg": nets.vgg,
    "short vgg": lambda: nets.vgg((8, "M", 10, "M"), outputs=3),
    "resnet": nets.resnet,
    "deep resnet": lambda: nets.resnet((1, 2), (6, 14), outputs=2),
    "bottleneck": lambda: nets.resnet(bottleneck=True),
    "activation first": lambda: nets.resnet(first=True),
    "mobile": nets.mobile,
    "wide mobile": lambda: nets.mobile(8, 12, 2),
    "convolutions": nets.FullyConvolutional,
    "branches": nets.TwoBranches,
}
ROWS = {"mlp": nets.mlp, "deep mlp": lambda: nets.mlp((20, 16, 12), 2), "reused": nets.Reused}
PAIRS = [
    *(("lenet", other) for other in IMAGES if other != "lenet"),
    *((name, name) for name in IMAGES),
    ("vgg", "short vgg"), ("resnet", "deep resnet"), ("resnet", "bottleneck"), ("mobile", "wide mobile"),
    ("branches", "resnet"), ("activation first", "resnet"),
]  # fmt: skip
TRIPLES = [("resnet", "deep resnet", "bottleneck"), ("vgg", "short vgg", "lenet"), ("lenet", "wide lenet", "normalizing")]


def put_together(kinds, names) -> tuple[dict[str, torch.nn.Module], Union]:
    models = {"ABC"[place]: made(kinds[name], place) for place, name in enumerate(names)}
    inputs = images(2) if kinds is IMAGES else rows(2)
    return models, unite(read_all(models, inputs))


@pytest.mark.parametrize("names", [*PAIRS, *TRIPLES], ids=" + ".join)
def test_images(names):
    check_together(*put_together(IMAGES, names), images(5))


@pytest.mark.parametrize("names", [*combinations_with_replacement(ROWS, 2)], ids=" + ".join)
def test_rows(names):
    check_together(*put_together(ROWS, names), rows(5))


def check_together(models, union, inputs) -> None:
    """Together, alone and cut out again each network answers as it did; the order of nodes is one of execution."""
    merged = reconnect(union)
    with torch.no_grad():
        whole = merged(inputs)
        for task, model in models.items():
            expected = model(inputs)
            # the same sums with zeros between, in another order
            torch.testing.assert_close(whole[task], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(merged(inputs, [task])[task], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(merged.specialize([task])(inputs)[task], expected, rtol=1e-4, atol=1e-5)
    for position, node in enumerate(union.nodes):
        assert all(source < position for source in node.inputs)
        assert all(node.tasks <= union.nodes[source].tasks for source in node.inputs)
    assert len({node.name for node in union.nodes}) == len(union.nodes)
    for task, network in union.networks.items():
        assert sum(task in node.layers for node in union.nodes) == len(network.layers)


@pytest.mark.parametrize("name", IMAGES)
def test_networks_of_one_kind_correspond_but_for_their_outputs(name):
    models = {task: made(IMAGES[name], seed) for seed, task in enumerate("AB")}
    union = unite(read_all(models, images(2)))
    apart = [node for node in union.nodes if node.kind in MAKERS and len(node.layers) == 1]
    ends = {union.nodes[union.outputs[task]].space for task in "AB"}
    assert {node.space for node in apart} == ends
    assert len(ends) == 2


def test_networks_of_other_inputs_are_refused():
    networks = [*read_all({"A": made(nets.LeNet, 0)}, images(2)), *read_all({"B": made(nets.mlp, 0)}, rows(2))]
    with pytest.raises(MergeError, match=r"A takes \(3, 16, 16\), B \(20,\)"):
        unite(networks)


def test_where_networks_part_is_said():
    _, union = put_together(IMAGES, ("vgg", "short vgg"))
    assert any("corresponds to none of another network" in note for note in union.notes)


@settings(deadline=None, max_examples=6)
@given(name=st.sampled_from(["lenet", "resnet", "mobile", "branches", "activation first"]), seed=st.integers(0, 10**6))
def test_an_identical_twin_may_be_shared_at_will_if_all_of_it_is(name, seed):
    """With equal networks, neurons of B left out and A's shared by both, both answer as they did."""
    models = {task: made(IMAGES[name], seed) for task in "AB"}
    union = unite(read_all(models, images(2)))
    groups = {}
    for number, space in union.spaces.items():
        if not space.is_input and len(space.widths) == 2:
            own = own_groups(union, number)
            order = torch.randperm(space.widths["A"], generator=torch.Generator().manual_seed(seed))
            mine = own.take(own.of(1)[order])
            groups[number] = Neurons(origin=mine.origin, index=mine.index, group=torch.full_like(mine.group, 3))
    merged = reconnect(union, groups)
    with torch.no_grad():
        torch.testing.assert_close(merged(images(3))["A"], models["A"](images(3)), rtol=1e-4, atol=1e-5)


def test_a_deeper_block_of_some_tasks_is_cut_out_for_others():
    """Where A and C go on alone, a neuron of B and C is not read by what runs for A and B."""
    depths = {"A": (1, 2), "B": (1, 1), "C": (1, 2)}
    models = {task: made(lambda blocks=blocks: nets.resnet(blocks), seed) for seed, (task, blocks) in enumerate(depths.items())}
    union = unite(read_all(models, images(2)))
    merged = reconnect(union, random_groups(union, 0))
    with torch.no_grad():
        whole = merged(images(3))
        for tasks in (["A", "B"], ["B", "C"], ["A", "C"], ["A"]):
            for task, answer in merged.specialize(tasks, lowering="grouped")(images(3)).items():
                torch.testing.assert_close(answer, whole[task], rtol=1e-4, atol=1e-5)
