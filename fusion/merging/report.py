"""From networks to the report: what each scheme costs and how good it is, for every combination of tasks."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy
import torch
from torch import Tensor, nn

from fusion.merging.config import Threshold
from fusion.merging.flops import flops, makers
from fusion.merging.gains import Combination
from fusion.merging.greedy import Trace
from fusion.merging.merged import MergedNetwork, Part
from fusion.merging.neurons import names_of
from fusion.merging.records import CombinationRecord, CurveRecord, LayerRecord, RoundRecord, SchemeRecord
from fusion.merging.samples import Samples, scores
from fusion.merging.union import Union
from fusion.timer import Timing, time_interleaved

MAX_TIMED = 31  #: combinations that are measured; of more, single tasks and all of them together
MAX_SECONDS = 0.5  #: for the latency of a combination under one scheme


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scheme:
    """One way of answering all tasks.

    Attributes:
        name: ``PAM``, ``B1``, ``B2`` or ``original``.
        networks: Together they answer every task once: one merged network, or one for each task.
        rounds: Of their pruning.
    """

    name: str
    networks: tuple[MergedNetwork, ...]
    rounds: tuple[RoundRecord, ...] = ()

    def flops(self, tasks: Collection[str]) -> int:
        """Return the operations for one sample when some tasks are run."""
        return sum(flops(network, mine) for network, mine in self._parts(tasks))

    def scores(self, samples: Samples) -> dict[str, float]:
        """Return each task's score."""
        return {task: value for network in self.networks for task, value in scores(network, samples, network.tasks).items()}

    def specialized(self, tasks: Collection[str], example: Tensor) -> list[nn.Module]:
        """Return plain modules that answer some tasks, fast for inputs like the example; one for each network that has any."""
        return [network.specialize(mine, example=example).eval() for network, mine in self._parts(tasks)]

    @property
    def parameters(self) -> int:
        """Numbers that are stored: what the masks let live."""
        return sum(_num_parameters(network) for network in self.networks)

    def _parts(self, tasks: Collection[str]) -> list[tuple[MergedNetwork, Combination]]:
        parts = [(network, tuple(task for task in network.tasks if task in tasks)) for network in self.networks]
        return [(network, mine) for network, mine in parts if mine]


def combinations_of(tasks: Sequence[str]) -> list[Combination]:
    """Return every non-empty subset, single tasks first.

    >>> combinations_of(["A", "B"])
    [('A',), ('B',), ('A', 'B')]
    """
    return [chosen for size in range(1, len(tasks) + 1) for chosen in combinations(tasks, size)]


def record_schemes(
    schemes: Sequence[Scheme],
    tasks: Sequence[str],
    *,
    validation: Samples,
    test: Samples | None,
    floors: Mapping[str, float],
    latency: Tensor | None = None,
) -> dict[str, SchemeRecord]:
    """Measure schemes, all in the same way.

    Args:
        schemes: Whose networks are in evaluation mode.
        tasks: All of them.
        validation: By which was chosen.
        test: Held out; None: scores are those of the validation data.
        floors: The least score of each task on validation data.
        latency: Inputs ``(batch, …)`` of a measured forward pass; None: latency is not measured.
    """
    every = combinations_of(tasks)
    timed = every if len(every) <= MAX_TIMED else [*every[: len(tasks)], every[-1]]
    times = {} if latency is None else _latencies(schemes, timed, latency)
    return {scheme.name: _record(scheme, every, times, validation, test, floors) for scheme in schemes}


def record_layers(merged: MergedNetwork, union: Union) -> tuple[LayerRecord, ...]:
    """Return the layers of neurons that can be shared or pruned, with their groups."""
    return tuple(
        LayerRecord(
            name=union.spaces[space].name,
            before=dict(union.spaces[space].widths),
            sizes={names_of(group, merged.tasks): size for group, size in sorted(merged.neurons[space].sizes().items())},
        )
        for space in sorted(merged.prunable)
    )


def record_curve(layer: str, tasks: Combination, trace: Trace, threshold: Threshold | None) -> CurveRecord:
    """Return the estimator's curve of one layer and set of tasks."""
    return CurveRecord(
        layer=layer,
        tasks=tasks,
        information=tuple(step.information for step in trace.steps),
        null=tuple(step.null for step in trace.steps),
        value=tuple(step.value for step in trace.steps),
        total=trace.total,
        entropy=trace.entropy,
        s2=trace.s2,
        threshold=None if threshold is None else threshold.nats(total=trace.total, entropy=trace.entropy),
    )


def environment(device: torch.device) -> dict[str, object]:
    """Return what numbers were made with."""
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def _record(
    scheme: Scheme,
    every: Sequence[Combination],
    times: Mapping[tuple[str, Combination], Timing],
    validation: Samples,
    test: Samples | None,
    floors: Mapping[str, float],
) -> SchemeRecord:
    chosen_by = scheme.scores(validation)
    found = chosen_by if test is None else scheme.scores(test)
    return SchemeRecord(
        name=scheme.name,
        scores=found,
        validation=chosen_by,
        combinations=tuple(
            CombinationRecord(
                tasks=names,
                score=sum(found[task] for task in names) / len(names),
                flops=scheme.flops(names),
                latency=times.get((scheme.name, names)),
            )
            for names in every
        ),
        parameters=scheme.parameters,
        rounds=scheme.rounds,
        is_feasible=all(chosen_by[task] >= floors[task] for task in chosen_by),
    )


def _latencies(
    schemes: Sequence[Scheme], timed: Sequence[Combination], inputs: Tensor
) -> dict[tuple[str, Combination], Timing]:
    """Measure every combination under every scheme, all in turns in one loop."""
    runs: dict[tuple[str, Combination], Callable[[], object]] = {
        (scheme.name, names): _run(scheme.specialized(names, inputs), inputs) for names in timed for scheme in schemes
    }
    measured = time_interleaved(list(runs.values()), max_seconds=MAX_SECONDS * len(runs), device=inputs.device)
    return dict(zip(runs, measured, strict=True))


def _run(modules: Sequence[nn.Module], inputs: Tensor) -> Callable[[], object]:
    return lambda: [module(inputs) for module in modules]


def _num_parameters(network: MergedNetwork) -> int:
    total = sum(parameter.numel() for parameter in network.parameters())
    return total - sum(_num_masked(network.part(position)) for position, _ in makers(network))


def _num_masked(part: Part) -> int:
    if part.mask is None or part.weight is None:
        return 0
    return int((part.mask.expand_as(part.weight) == 0).sum())
