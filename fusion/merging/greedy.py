"""The greedy search for the largest set of neurons that tells little about labels (*Pruning-Aware Merging*, Algorithm 2).

One pass without a threshold orders the neurons; the set of any threshold alpha is a beginning of that order. Where we differ
from the paper: a neuron is tested before it is added, where the paper tests the set and so exceeds alpha by one neuron; and
what is compared with alpha is the estimate less the null of shuffled labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import inf

import torch
from torch import Tensor

from fusion.merging.config import EstimatorConfig, Threshold
from fusion.merging.errors import MergeError
from fusion.merging.information import Estimate, Probe, distances

CHUNK_BYTES = 8 * 2**20  #: of what a step or the distances hold for a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A neuron's entry into the set.

    Attributes:
        neuron: Its index.
        information: Estimate for the set with it, in nats.
        null: Mean estimate for the same set and shuffled labels, in nats.
        value: Largest excess of the information over the null until here, in nats, at least 0: never falls.
    """

    neuron: int
    information: float
    null: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The order in which neurons enter the set.

    Attributes:
        steps: One per neuron.
        total: Excess over the null of all neurons of the layer together, in nats.
        entropy: Mean entropy of the labels' attributes in nats.
        s2: Variance of the noise.
        num_candidates: Neurons that could enter.
    """

    steps: tuple[Step, ...]
    total: float
    entropy: float
    s2: float
    num_candidates: int

    @property
    def is_complete(self) -> bool:
        """Whether all candidates have entered."""
        return len(self.steps) == self.num_candidates

    @property
    def reached(self) -> float:
        """The value of the last step in nats, 0 without one."""
        return self.steps[-1].value if self.steps else 0.0

    @property
    def is_saturated(self) -> bool:
        """Whether the null passes half of the entropy somewhere: there a smaller gamma or more samples are needed."""
        return any(step.null > self.entropy / 2 for step in self.steps)

    def prefix(self, threshold: Threshold) -> tuple[int, ...]:
        """Return the largest set whose value is at most the threshold, in the order of entry.

        Raises:
            MergeError: The trace was ended before the threshold: extend it.
        """
        limit = threshold.nats(total=self.total, entropy=self.entropy)
        chosen = tuple(step.neuron for step in takewhile(lambda step: step.value <= limit, self.steps))
        if len(chosen) == len(self.steps) and not self.is_complete:
            raise MergeError(f"the trace ends at {self.reached:.4g} nats, the threshold is {limit:.4g}: extend the trace to it")
        return chosen


def trace(
    values: Tensor,
    labels: Tensor,
    config: EstimatorConfig,
    *,
    origins: Sequence[int] | None = None,
    candidates: Sequence[int] | None = None,
    ceiling: Threshold | None = None,
    start: Trace | None = None,
) -> Trace:
    """Order neurons so that each next one leaves the set with the least information about the labels.

    The candidate with the least estimate enters, the first of equal ones. An estimate is the mean over the draws of samples,
    each with kernels and a null of its own; attributes are combined after that mean.

    Args:
        values: ``(samples, neurons)`` or ``(samples, neurons, *positions)``, all live neurons of the layer.
        labels: Classes, attributes or real values, as ``attributes`` takes them.
        config: Options.
        origins: Each neuron's network, needed for ``normalise="network"``.
        candidates: Neurons that may enter, by index; all by default. The noise is that of the whole layer whatever they are.
        ceiling: Ends the trace with the first neuron that exceeds it; none by default.
        start: A trace of the same arguments with a lower ceiling, which is gone on with as if it had not ended.

    Raises:
        MergeError: As ``Probe.of``; a candidate that does not exist; or ``start`` is of other arguments.
    """
    probe = Probe.of(values, labels, config, origins)
    allowed = sorted(set(range(values.shape[1]) if candidates is None else candidates))
    if outside := [neuron for neuron in allowed if not 0 <= neuron < values.shape[1]]:
        raise MergeError(f"candidates {outside} are not among the {values.shape[1]} neurons")
    total = probe.estimate(probe.kernel()).excess
    limit = (ceiling or Threshold(alpha=inf)).nats(total=total, entropy=probe.entropy)
    begun = Trace(steps=(), total=total, entropy=probe.entropy, s2=probe.s2, num_candidates=len(allowed))
    steps = list(_continued(start, begun))
    growing = _GrowingSet(probe, allowed)
    for step in steps:
        growing.add(step.neuron)
    value = steps[-1].value if steps else 0.0
    while len(steps) < len(allowed) and value <= limit:
        neuron = growing.least_informed()
        growing.add(neuron)
        told = growing.estimate()
        value = max(value, told.excess)
        steps.append(Step(neuron=neuron, information=told.information, null=told.null, value=value))
    return replace(begun, steps=tuple(steps))


def _continued(start: Trace | None, begun: Trace) -> tuple[Step, ...]:
    """Return the steps that a trace begins with, if it is of the same search."""
    if start is None:
        return ()
    if replace(start, steps=()) != begun:
        raise MergeError("start is a trace of other neurons, labels or options: trace these from the beginning")
    return start.steps


class _GrowingSet:
    """The kernel of a set of neurons, and those of the candidates.

    Squared distances add over neurons, so a set's kernel is the product of theirs. Kernels are ``(rows, neurons, samples)``,
    the rows being the samples of all draws: the sums of all candidates over a row's classes are then one product of matrices.
    """

    def __init__(self, probe: Probe, candidates: Sequence[int]) -> None:
        self._probe = probe
        self._waiting = list(candidates)
        self._stored = {neuron: place for place, neuron in enumerate(candidates)}
        self._kernels = _kernels(probe, candidates)
        rows, _, samples = self._kernels.shape
        self._kernel = self._kernels.new_ones(rows, samples)
        self._shares = _shares(probe)

    def least_informed(self) -> int:
        """Return the candidate with which the set tells least, the first of equal ones."""
        scores = self._probe.combine(self._informations())
        least = (scores == scores.min()).nonzero()[0, 0]
        return self._waiting[int(least)]

    def add(self, neuron: int) -> None:
        """Move a candidate into the set."""
        self._kernel *= self._kernels[:, self._stored[neuron]]
        self._waiting.remove(neuron)
        if 2 * len(self._waiting) < len(self._stored):
            self._kernels = self._kernels[:, self._places()]
            self._stored = {neuron: place for place, neuron in enumerate(self._waiting)}

    def estimate(self) -> Estimate:
        """Return the estimate for the set."""
        draws, samples = self._probe.values.shape[:2]
        return self._probe.estimate(self._kernel.view(draws, samples, samples))

    def _places(self) -> list[int]:
        return [self._stored[neuron] for neuron in self._waiting]

    def _informations(self) -> Tensor:
        """Return the estimates for the set with each candidate, ``(candidates, attributes)``."""
        rows, stored, _ = self._kernels.shape
        columns = self._shares.shape[1]
        size = max(1, CHUNK_BYTES // (4 * stored * columns))
        logs = self._kernel.new_zeros(columns, stored)
        for first in range(0, rows, size):
            part = slice(first, first + size)
            # the few rows of shares times the transposed kernels: faster than the kernels times few columns
            means = torch.bmm(self._kernel[part, None] * self._shares[part], self._kernels[part].transpose(1, 2))
            logs += means.log_().sum(dim=0)
        logs = logs[:, self._places()].T / rows
        return logs[:, :-1] - logs[:, -1:]


def _kernels(probe: Probe, neurons: Sequence[int]) -> Tensor:
    """Return the kernels of single neurons, ``(draws * samples, neurons, samples)``."""
    draws, samples = probe.values.shape[:2]
    kernels = probe.values.new_empty(draws, samples, len(neurons), samples)
    size = max(1, CHUNK_BYTES // (4 * samples * samples))
    for draw in range(draws):
        for first in range(0, len(neurons), size):
            chosen = list(neurons[first : first + size])
            exponents = distances(probe.values[draw][:, chosen]).div_(-2 * probe.s2)
            torch.exp(exponents.transpose(0, 1), out=kernels[draw, :, first : first + size])
    return kernels.view(draws * samples, len(neurons), samples)


def _shares(probe: Probe) -> Tensor:
    """Return each sample's share in the mean over a row's class, ``(draws * samples, attributes + 1, samples)``.

    The last one is for the mean over all samples.
    """
    own = probe.classes.own.transpose(1, 2)
    draws, num_attributes, samples = own.shape
    shares = probe.values.new_full((draws, samples, num_attributes + 1, samples), 1 / samples)
    same = (own[:, :, :, None] == own[:, :, None]).to(shares.dtype)
    shares[:, :, :-1] = (same / same.sum(dim=3, keepdim=True)).transpose(1, 2)
    return shares.view(draws * samples, num_attributes + 1, samples)
