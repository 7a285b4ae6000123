"""A report of a real small merge, whose curves and rounds are short."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fusion.merging.config import EstimatorConfig, Threshold
from fusion.merging.gains import gains
from fusion.merging.greedy import trace
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import Neurons
from fusion.merging.reading import read_network
from fusion.merging.reconnect import alone, own_groups, reconnect
from fusion.merging.records import ALONE, ORIGINAL, OURS, AlphaRecord, MergeReport, RoundRecord, SchemeRecord
from fusion.merging.report import Scheme, combinations_of, environment, record_curve, record_layers, record_schemes
from fusion.merging.samples import Samples
from fusion.merging.union import Union, unite


def united(num_tasks: int = 2) -> Union:
    """Small perceptrons of the same widths, one for each task."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(num_tasks)]
    example = torch.randn(3, 6)
    return unite([read_network(net, example, name="ABCDEFGH"[number]) for number, net in enumerate(nets)])


def shared_in_part(union: Union) -> MergedNetwork:
    """All networks as one, with every third neuron of each layer shared by all tasks."""
    groups = {}
    for space in (number for number, found in union.spaces.items() if len(found.widths) > 1 and not found.is_input):
        own = own_groups(union, space)
        group = own.group.clone()
        group[::3] = (1 << len(union.tasks)) - 1
        groups[space] = Neurons(origin=own.origin, index=own.index, group=group)
    return reconnect(union, groups)


def samples_for(union: Union, count: int = 40) -> Samples:
    """Inputs with random classes."""
    generator = torch.Generator().manual_seed(1)
    labels = {task: torch.randint(0, 2, (count,), generator=generator) for task in union.tasks}
    return Samples(inputs=torch.randn(count, 6, generator=generator), labels=labels)


def a_report(num_tasks: int = 2) -> MergeReport:
    """A report with a baseline, a curve, rounds and two alphas."""
    union = united(num_tasks)
    samples = samples_for(union)
    singles = tuple(alone(network) for network in union.networks.values())
    floors = dict.fromkeys(union.tasks, 0.25)
    schemes = (
        Scheme(name=ORIGINAL, networks=singles), Scheme(name=ALONE, networks=singles),
        Scheme(name=OURS, networks=(shared_in_part(union),)),
    )  # fmt: skip
    found = record_schemes(schemes, union.tasks, validation=samples, test=None, floors=floors)
    found[OURS] = with_rounds(found[OURS], union.tasks)
    ours = found[OURS]
    told = trace(torch.relu(samples.inputs), samples.labels["B"], EstimatorConfig(num_samples=32, num_draws=1))
    return MergeReport(
        tasks=union.tasks, schemes=found, gains={ALONE: gains(ours.flops, found[ALONE].flops)},
        layers=record_layers(schemes[-1].networks[0], union),
        curves=(record_curve("0", ("A",), told, Threshold(alpha=0.5)),),
        alpha=0.1,
        alphas=(
            AlphaRecord(alpha=0.1, flops=ours.flops, scores=ours.scores, cost=1.0, is_feasible=True),
            AlphaRecord(alpha=0.3, flops=ours.flops, scores=ours.scores, cost=2.0, is_feasible=False),
        ),
        floors=floors, is_held_out=False, settings={"prune": "taylor"}, environment=environment(torch.device("cpu")),
        notes=("a note",), seconds=1.5,
    )  # fmt: skip


def with_rounds(scheme: SchemeRecord, tasks: tuple[str, ...]) -> SchemeRecord:
    """A scheme as if it had been pruned in two rounds, the second undone."""
    rounds = tuple(
        RoundRecord(
            network=tasks,
            number=number,
            scores=scheme.scores,
            flops=scheme.flops,
            is_feasible=not number,
            seconds=float(number),
        )
        for number in range(2)
    )
    assert {record.tasks for record in scheme.combinations} == set(combinations_of(tasks))
    return replace(scheme, rounds=rounds)
