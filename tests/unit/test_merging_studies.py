"""The studies of the merging benchmark count what a plan says."""

from __future__ import annotations

from math import inf

from benchmarks.merging_studies import exclusive_neurons, shared_neurons
from fusion.merging.regroup import trace_networks
from tests.unit.merging_networks import LeNet
from tests.unit.merging_regroupings import config, data_for, union_of


def test_counts_are_those_of_the_plan() -> None:
    traces = trace_networks(union_of(LeNet), data_for(LeNet), config())
    for alpha in (0.0, 0.2):
        plan = traces.regroup(alpha)
        row, found = shared_neurons(plan), exclusive_neurons(plan)
        for space in plan.spaces:
            assert row["shared"][space.name] == int((space.neurons.group == 3).sum()) <= row["live"][space.name]
            sets = [set(chosen) for chosen in space.selected.values()]
            sizes = [found[name][space.name] for name in ("only_a", "both", "only_b")]
            assert sizes == [len(sets[0] - sets[1]), len(sets[0] & sets[1]), len(sets[1] - sets[0])]


def test_without_a_limit_every_neuron_is_in_both_sets_and_none_is_shared() -> None:
    plan = trace_networks(union_of(LeNet), data_for(LeNet), config()).regroup(inf)
    found = exclusive_neurons(plan)
    assert set(found["only_a"].values()) == set(found["only_b"].values()) == {0}
    assert shared_neurons(plan)["shared_share"] == 0
