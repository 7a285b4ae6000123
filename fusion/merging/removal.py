"""Which neurons a task's turn removes. Pure: importance and costs in, neurons out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fusion.merging.costs import neuron_costs
from fusion.merging.flops import flops
from fusion.merging.merged import MergedNetwork

SharedRule = Literal["remove", "max", "mean", "demote"]
"""A shared neuron that a task gives up is removed for all (the paper); or it counts by the most (or the mean) of what
its tasks say of it, normalized by task, and is then removed; or it goes on for the other tasks alone."""

PATIENCE = 2.0  #: how much more important a small neuron may be than a large one that it goes in place of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Removal:
    """What is left.

    Attributes:
        kept: By space the positions of the neurons that stay, where that is not all of them or their groups change.
        groups: By space their new bits.
    """

    kept: dict[int, Tensor] = field(default_factory=dict)
    groups: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Candidate:
    worth: float
    cost: float
    space: int
    position: int
    group: int


def choose(
    merged: MergedNetwork,
    task: str,
    importance: Mapping[str, Mapping[int, Tensor]],
    *,
    chunk: float,
    rule: SharedRule = "max",
    per_flop: bool = True,
    min_neurons: int = 1,
) -> Removal:
    """Choose the least important neurons of a task until a chunk of its operations is gone.

    Args:
        merged: Is not changed.
        task: Whose turn it is.
        importance: By task and prunable space ``(n,)``, at least 0; of all tasks where the rule is ``max``.
        chunk: Share of the operations of the task run alone. A neuron that would take more than half as much again is passed
            over for others of at most twice its importance, if there are some.
        rule: What becomes of shared neurons.
        per_flop: Rank by importance per operation saved.
        min_neurons: That every task keeps in every space.

    Returns:
        Empty if there is nothing that may go.
    """
    bit = 1 << merged.tasks.index(task)
    budget = chunk * flops(merged, [task])
    candidates = sorted(
        _candidates(merged, task, importance, rule=rule, per_flop=per_flop), key=lambda c: (c.worth, c.space, c.position)
    )
    left = Counter(
        {
            (space, number): int((neurons.group >> number & 1).sum())
            for space, neurons in merged.neurons.items()
            for number in range(len(merged.tasks))
        }
    )
    gone = 0.0
    chosen: dict[int, list[int]] = {}
    passed_over: list[_Candidate] = []
    for candidate in [*candidates, None]:
        is_end = candidate is None or (passed_over and candidate.worth > PATIENCE * passed_over[0].worth)
        if is_end:  # nothing small is of as little worth as what was passed over
            if chosen or not passed_over:
                break
            candidate = passed_over[0]
        losing = bit if rule == "demote" else candidate.group
        numbers = [number for number in range(len(merged.tasks)) if losing >> number & 1]
        if any(left[candidate.space, number] <= min_neurons for number in numbers):
            continue
        if gone + candidate.cost > 1.5 * budget and not is_end:
            passed_over.append(candidate)
            continue
        left.subtract((candidate.space, number) for number in numbers)
        chosen.setdefault(candidate.space, []).append(candidate.position)
        gone += candidate.cost
        if gone >= budget or is_end:
            break
    return _removal(merged, chosen, bit if rule == "demote" else -1)


def _candidates(
    merged: MergedNetwork, task: str, importance: Mapping[str, Mapping[int, Tensor]], *, rule: SharedRule, per_flop: bool
) -> list[_Candidate]:
    number = merged.tasks.index(task)
    costs = neuron_costs(merged, 1 << number)
    shares = {name: _shares(values) for name, values in importance.items()}
    found: list[_Candidate] = []
    for space in sorted(merged.prunable):
        group = merged.neurons[space].group
        worth = shares[task][space]
        if rule in ("max", "mean"):
            serves = [(group >> merged.tasks.index(name) & 1).bool() for name in shares]
            said = torch.stack([torch.where(mask, shares[name][space], 0.0) for name, mask in zip(shares, serves, strict=True)])
            worth = said.amax(0) if rule == "max" else said.sum(0) / torch.stack(serves).sum(0)
        if per_flop:
            worth = worth / costs[space].clamp_min(1.0)
        mine = (group >> number & 1).bool() & ((group & merged.frozen.get(space, 0)) == 0)
        found += [
            _Candidate(float(worth[place]), float(costs[space][place]), space, place, int(group[place]))
            for place in mine.nonzero().flatten().tolist()
        ]
    return found


def _shares(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return importance as shares of a task's whole, so that tasks can be compared."""
    whole = max(sum(float(value.sum()) for value in values.values()), 1e-30)
    return {space: value.double() / whole for space, value in values.items()}


def _removal(merged: MergedNetwork, chosen: Mapping[int, list[int]], losing: int) -> Removal:
    kept: dict[int, Tensor] = {}
    groups: dict[int, Tensor] = {}
    for space, positions in chosen.items():
        group = merged.neurons[space].group.clone()
        group[positions] &= ~losing
        kept[space] = group.nonzero().flatten()
        groups[space] = group[kept[space]]
    return Removal(kept=kept, groups=groups)
