"""How a step of a stack is made of passes: which parameters go through a fused kernel, and which through vector arithmetic.

A fused kernel reads and writes each element once, but takes one set of hyper-parameters: members that differ need a call each.
Vector arithmetic makes several passes over all members, in a handful of calls however many members there are. So kernels are
for large parameters and for members that are alike, vector arithmetic is for many small parameters of many members that differ.
The cheapest way to share the parameters out is taken, by what either was measured to cost on one CPU thread; it is taken anew
only when the members' hyper-parameters become equal or different, and changes nothing but the last digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fusion.stacking.optimizer_rule import Coefficients, Flags, Numbers, Pass, Reals, Rule
from fusion.stacking.stacked_parameter import StackedParameter

Path: TypeAlias = Literal["fastest", "fused", "vector"]
CALL, PIECE = 2.5, 1.2  # microseconds that a fused kernel costs for each run of members, and for each parameter of that run


class Lane(Protocol):
    """A part of each step."""

    def step(self, numbers: list[Numbers]) -> None:
        """Step its parameters by the members' hyper-parameters; the same list means the same numbers as in the step before."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Parameters whose members have made the same steps, of one type and device.

    Args:
        parameters: At least one.
        state: Of each of them.
        steps: `(members,)`, made so far.
        buffered: `(members,)`, whether they have a momentum buffer.
    """

    parameters: list[StackedParameter]
    state: list[dict[str, Tensor]]
    steps: Reals
    buffered: Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring members that a pass steps together."""

    start: int
    stop: int
    is_first: bool

    def part(self, tensor: Tensor) -> Tensor:
        """Give their rows of a tensor, as a view."""
        return tensor[self.start : self.stop]


def lanes(rule: Rule, cohort: Cohort, numbers: list[Numbers], path: Path) -> list[Lane]:
    """Plan the steps of a cohort, until members' hyper-parameters become equal or different."""
    buffering = rule.buffering(np.array(numbers))
    starting = buffering & ~cohort.buffered
    alike = _runs(zip(numbers, cohort.steps.tolist(), starting.tolist(), strict=True), starting)
    is_fused = _shares(rule, cohort, len(alike), path)
    fused, vector = _chosen(cohort, is_fused), _chosen(cohort, [not chosen for chosen in is_fused])
    planned: list[Lane] = []
    if fused.parameters:
        planned.append(_FusedLane(rule, fused, alike))
    if vector.parameters:
        planned.append(_VectorLane(rule, vector, _runs(zip(buffering.tolist(), starting.tolist(), strict=True), starting)))
    return planned


def _runs(traits: Iterable[object], starting: Flags) -> list[Run]:
    listed = list(traits)
    edges = [0, *(index for index in range(1, len(listed)) if listed[index] != listed[index - 1]), len(listed)]
    return [Run(start=start, stop=stop, is_first=bool(starting[start])) for start, stop in pairwise(edges)]


def _shares(rule: Rule, cohort: Cohort, calls: int, path: Path) -> list[bool]:
    """Say which parameters a fused kernel takes, in so many calls."""
    can = [rule.costs is not None and _suits_kernel(parameter.tensor) for parameter in cohort.parameters]
    if rule.costs is None or path == "vector":
        return [False] * len(can)
    if path == "fused" or calls == 1:
        return can
    gains = [  # of vector arithmetic, in microseconds
        calls * PIECE - rule.costs.parameter - rule.costs.element * parameter.tensor.numel() for parameter in cohort.parameters
    ]
    mixed = sum(gain for gain in gains if gain > 0) - rule.costs.start
    whole = sum(gains) + calls * CALL - rule.costs.start
    if whole > max(mixed, 0):
        return [False] * len(can)
    return [able and gain <= 0 for able, gain in zip(can, gains, strict=True)] if mixed > 0 else can


def _suits_kernel(tensor: Tensor) -> bool:
    return tensor.device.type in {"cpu", "cuda"} and tensor.is_contiguous()  # the kernel goes by addresses


def _chosen(cohort: Cohort, flags: list[bool]) -> Cohort:
    pairs = [pair for pair, flag in zip(zip(cohort.parameters, cohort.state, strict=True), flags, strict=True) if flag]
    return Cohort(
        parameters=[parameter for parameter, _ in pairs],
        state=[state for _, state in pairs],
        steps=cohort.steps.copy(),
        buffered=cohort.buffered,
    )


def _gradient(parameter: StackedParameter) -> Tensor:
    grad = parameter.tensor.grad
    assert grad is not None, "a plan is made anew when other parameters have gradients"
    return grad.detach()


def _state(rule: Rule, cohort: Cohort, run: Run) -> dict[str, list[Tensor]]:
    held = [key for key in rule.keys if key in cohort.state[0]]
    return {key: [run.part(state[key]) for state in cohort.state] for key in held}


class _FusedLane:
    """Parameters that a fused kernel steps, in a call for each run of members that are alike."""

    def __init__(self, rule: Rule, cohort: Cohort, runs: list[Run]) -> None:
        self._rule, self._parameters, self._runs = rule, cohort.parameters, runs
        values = [parameter.tensor.detach() for parameter in cohort.parameters]
        self._values = [[run.part(value) for value in values] for run in runs]
        self._state = [_state(rule, cohort, run) for run in runs]
        self._steps = torch.from_numpy(cohort.steps).to(device=values[0].device, dtype=torch.float32)
        self._counts = self._steps.unbind()
        self._sizes = [run.stop - run.start for run in runs]

    def step(self, numbers: list[Numbers]) -> None:
        if self._rule.counts_steps:
            self._steps += 1  # where the kernel reads it, so that nothing waits for the device
        for run, values, grads, state in zip(self._runs, self._values, self._gradients(), self._state, strict=True):
            tensors = Pass(values=values, grads=grads, state=state, is_first=run.is_first)
            self._rule.fused(tensors, numbers[run.start], self._counts[run.start])

    def _gradients(self) -> list[list[Tensor]]:
        grads = [_gradient(parameter).contiguous() for parameter in self._parameters]
        if len(self._runs) == 1:
            return [grads]
        return [list(parts) for parts in zip(*(grad.split_with_sizes(self._sizes) for grad in grads), strict=True)]


class _VectorLane:
    """Parameters that vector arithmetic steps, in a pass for each run of members with or without a momentum buffer."""

    def __init__(self, rule: Rule, cohort: Cohort, runs: list[Run]) -> None:
        self._rule, self._parameters, self._runs = rule, cohort.parameters, runs
        values = [parameter.tensor.detach() for parameter in cohort.parameters]
        self._values = [[run.part(value) for value in values] for run in runs]
        self._state = [_state(rule, cohort, run) for run in runs]
        self._steps = cohort.steps
        self._numbers: list[Numbers] | None = None
        self._coefficients: list[Coefficients] = []

    def step(self, numbers: list[Numbers]) -> None:
        if self._rule.counts_steps:
            self._steps += 1
        if self._rule.counts_steps or numbers is not self._numbers:
            self._renew(numbers)
        grads = [_gradient(parameter) for parameter in self._parameters]
        for run, values, state, by in zip(self._runs, self._values, self._state, self._coefficients, strict=True):
            parts = grads if len(self._runs) == 1 else [run.part(grad) for grad in grads]
            self._rule.vector(Pass(values=values, grads=parts, state=state, is_first=run.is_first), by)

    def _renew(self, numbers: list[Numbers]) -> None:
        table = np.array(numbers)
        self._coefficients = [
            _spread(self._rule.coefficients(table[run.start : run.stop], self._steps[run.start : run.stop]), values)
            for run, values in zip(self._runs, self._values, strict=True)
        ]
        self._numbers = numbers


def _spread(coefficients: dict[str, Reals], values: Sequence[Tensor]) -> Coefficients:
    """Lay each coefficient out as `(members, 1, ...)` for each parameter; one copy to the device for all of them."""
    table = torch.from_numpy(np.stack(list(coefficients.values()))).to(device=values[0].device, dtype=values[0].dtype)
    by_rank = {rank: table.view(*table.shape, *[1] * (rank - 1)).unbind() for rank in {value.ndim for value in values}}
    return {name: [by_rank[value.ndim][row] for value in values] for row, name in enumerate(coefficients)}
