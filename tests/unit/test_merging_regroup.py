"""Regrouping: the sets of Algorithms 2 and 3, their overlaps, the guards, and every alpha from one search."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusion.merging.config import Threshold
from fusion.merging.errors import MergeError
from fusion.merging.guards import Groups, guard
from fusion.merging.merge import regroup
from fusion.merging.merged import Part
from fusion.merging.neurons import Neurons
from fusion.merging.plan import Regrouping
from fusion.merging.planned import reconnect_plan
from fusion.merging.reconnect import own_groups
from fusion.merging.regroup import Traces, hidden, trace_networks
from fusion.merging.searching import Search, doubts, grow, resolve
from tests.unit.merging_layers import two_nets
from tests.unit.merging_networks import KINDS, LeNet, Mlp, ResNet, random_groups
from tests.unit.merging_regroupings import SMALL, config, data_for, deviation, networks_of, union_of

EXACT = 1e-5  # single precision, sums in another order


def search_of(num_neurons: int = 6, bits: int = 3) -> Search:
    """A search over two nets' neurons, each a noisy bit of its own net's labels."""
    values, labels_a, labels_b = two_nets(0, neurons=num_neurons)
    origin = torch.tensor([0] * num_neurons + [1] * num_neurons)
    owners = Neurons(origin=origin, index=torch.arange(num_neurons).repeat(2), group=1 << origin)
    return Search("fc", values, range(2 * num_neurons), {"A": labels_a, "B": labels_b}, owners, bits, SMALL)


def traces_of(kind: type[nn.Module] = Mlp, num_tasks: int = 2, **options: object) -> Traces:
    """Traces of small networks."""
    return trace_networks(union_of(kind, num_tasks), data_for(kind, num_tasks), config(**options))


def found_in(plan: Regrouping) -> list[object]:
    """What a plan says of every neuron."""
    return [[space["neurons"], space["selected"]] for space in plan.document()["spaces"]]


@pytest.mark.parametrize(
    ("on_overlap", "both"), [("origin", [1, 2]), ("drop", [0, 0]), ("share", [3, 3])], ids=["origin", "drop", "share"]
)
def test_a_neuron_in_both_sets_follows_the_rule_and_all_others_their_set(on_overlap: str, both: list[int]) -> None:
    search = search_of(2)  # neurons 0 and 1 of A, 2 and 3 of B
    assert resolve(search, {1: (0, 2, 1), 2: (0, 2)}, on_overlap).tolist() == [both[0], 1, both[1], 3]


def test_each_set_is_filled_from_its_own_network_first() -> None:
    found = grow(search_of(), Threshold(alpha=0.2), 1)
    assert set(found[1][:3]) <= set(range(6))  # what A's neurons tell about B is least
    assert set(found[2][:3]) <= set(range(6, 12))


def test_larger_sets_are_sought_among_what_smaller_ones_leave() -> None:
    traces = traces_of(Mlp, 3, alpha=0.4)
    for search in traces.searches.values():
        found = grow(search, Threshold(alpha=0.4), 2)
        assert set(found) == {1, 2, 4, 3, 5, 6}
        small = {neuron for bits in (1, 2, 4) for neuron in found[bits]}
        large = {neuron for bits in (3, 5, 6) for neuron in found[bits]}
        assert not small & large
        assert set(grow(search, Threshold(alpha=0.4), 1)) == {1, 2, 4}


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_every_alpha_from_one_search_is_what_a_search_for_it_alone_gives(num_tasks: int) -> None:
    alphas = (0.3, 0.05, 0.6, inf, 0.1)
    traces = traces_of(Mlp, num_tasks)
    for alpha in alphas:
        assert found_in(traces.regroup(alpha)) == found_in(traces_of(Mlp, num_tasks).regroup(alpha))


def test_a_larger_alpha_keeps_the_set_of_a_smaller_one() -> None:
    traces = traces_of(LeNet)
    small, large = traces.regroup(0.05), traces.regroup(0.3)
    for before, after in zip(small.spaces, large.spaces, strict=True):
        for bits, chosen in before.selected.items():
            assert after.selected[bits][: len(chosen)] == chosen


@pytest.mark.parametrize("num_tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_limit_each_network_comes_back_as_it_was(kind: type[nn.Module], num_tasks: int) -> None:
    data, union = data_for(kind, num_tasks), union_of(kind, num_tasks)
    plan = regroup(union, data, config(alpha=inf))
    assert all(space.num_shared == 0 for space in plan.spaces)
    assert deviation(reconnect_plan(union, plan), networks_of(kind, num_tasks), data.train.inputs) <= EXACT


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.4])
def test_every_plan_can_be_wired_and_gives_every_neuron_something_to_read(alpha: float) -> None:
    traces = traces_of(ResNet, 3, min_neurons=2)
    plan = traces.regroup(alpha)
    merged = reconnect_plan(traces.union, plan)
    masks = [part.mask for part in merged.parts.values() if isinstance(part, Part) and part.mask is not None]
    assert all(bool(mask.flatten(1).any(1).all()) for mask in masks)
    for space in plan.spaces:
        assert all(len(space.neurons.of(1 << task)) >= 2 for task in range(3))
    assert merged(data_for(ResNet).train.inputs).keys() == set("ABC")


def test_dropping_what_two_sets_have_is_refused_where_it_empties_a_layer() -> None:
    with pytest.raises(MergeError, match=r"on_overlap='drop'.*A has no neuron left.*smaller alpha"):
        traces_of(on_overlap="drop").regroup(inf)


def test_a_group_without_input_goes_home_and_so_do_those_behind_it() -> None:
    union = union_of(LeNet)
    spaces = hidden(union)
    owners = {space: own_groups(union, space) for space in union.spaces if space}
    groups: Groups = {space: neurons.group.clone() for space, neurons in owners.items()}
    for space in spaces[1:]:
        groups[space][:] = 3  # the first layer shares nothing, the others everything
    origins = {space: neurons.group for space, neurons in owners.items()}
    entered = {space: torch.zeros_like(groups[space]) for space in spaces}
    notes = guard(union, groups, origins, entered, spaces, 1)
    assert all(torch.equal(groups[space], origins[space]) for space in spaces)
    assert "conv2: 12 neurons of A+B are back in their own networks, for 'conv1' has no neuron for all" in notes[0]
    assert len(notes) == len(spaces) - 1


def test_a_task_gets_back_those_of_its_neurons_that_tell_most() -> None:
    union = union_of(Mlp)
    spaces = hidden(union)
    owners = {space: own_groups(union, space) for space in union.spaces if space}
    groups: Groups = {space: neurons.group.clone() for space, neurons in owners.items()}
    groups[spaces[0]][:] = 2  # nothing is left to A
    entered = {space: torch.arange(len(groups[space])) for space in spaces}
    notes = guard(union, groups, {space: neurons.group for space, neurons in owners.items()}, entered, spaces, 2)
    assert groups[spaces[0]].tolist() == [2, 2, 1, 1] + [2] * 5
    assert notes == ["layers.0: 2 neurons are back in A, which would keep less than 2"]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS), least=st.integers(1, 3))
def test_after_the_guards_every_group_has_input_and_every_task_neurons(seed: int, kind: type[nn.Module], least: int) -> None:
    union = union_of(kind)
    drawn = random_groups(union, seed)
    owners = {space: own_groups(union, space) for space in union.spaces if space}
    groups = {space: (drawn[space] if space in drawn else owners[space]).group.clone() for space in owners}
    entered = {space: torch.arange(len(groups[space])) for space in drawn}
    for space in drawn:  # one group less, here and there
        groups[space][groups[space] == 1 + seed % 3] = 0
        seed //= 3
    origins = {space: neurons.group for space, neurons in owners.items()}
    guard(union, groups, origins, entered, hidden(union), least)
    again = {space: values.clone() for space, values in groups.items()}
    assert guard(union, again, origins, entered, hidden(union), least) == []
    for space in drawn:
        for number, width in enumerate(union.spaces[space].widths.values()):
            assert int((groups[space] >> number & 1).sum()) >= min(least, width)


def test_what_the_estimator_cannot_see_is_said() -> None:
    search = search_of()
    assert doubts(search, Threshold(alpha=0.2)) == []
    generator = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(32, 2, generator=generator), torch.arange(32)[:, None] % 2
    blind = Search("fc", noise, range(2), {"A": labels, "B": labels}, search.owners.take(torch.tensor([0, 6])), 3, SMALL)
    assert "fc: all neurons together tell no more about B than chance" in doubts(blind, Threshold(alpha=0.2))[0]
    sharp = replace(SMALL, gamma=1000.0)  # every sample is alone, so that any labels look told
    chance = Search("fc", noise, range(2), {"A": labels, "B": labels}, blind.owners, 3, sharp)
    assert any("chance alone tells" in said for said in doubts(chance, Threshold(alpha=inf)))


def test_a_plan_is_a_table_and_json() -> None:
    plan = traces_of(LeNet).regroup(0.1)
    lines = str(plan).splitlines()
    assert lines[0] == "alpha 0.1 of what a layer tells; neurons in several sets: origin"
    assert lines[1].split()[:2] == ["layer", "before"]
    assert [line.split()[0] for line in lines[2:5]] == ["conv1", "conv2", "fc1"]
    document = json.loads(json.dumps(plan.document(), allow_nan=False))
    for space, written in zip(plan.spaces, document["spaces"], strict=True):
        assert sum(written["sizes"].values()) == len(space.neurons) == len(written["neurons"])
    assert json.loads(json.dumps(traces_of().regroup(inf).document(), allow_nan=False))["alpha"] == "inf"
