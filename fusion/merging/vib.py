"""Noise on every neuron that the network learns to bear where it can: what bears most tells the task least.

Source: Dai et al., *Compressing Neural Networks using the Variational Information Bottleneck* (ICML 2018), which PAM calls P1
(section 6.1). A neuron's values are multiplied by ``mu + sigma * eps``, and the loss grows by ``log(1 + mu^2 / sigma^2) / 2``.
Where we differ: ``mu`` is one for each neuron, ``sigma`` one for each neuron and task. A ``mu`` for each task would give a
shared neuron two values, and what two tasks share would have to be computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion.merging.costs import neuron_costs
from fusion.merging.gates import by_neuron
from fusion.merging.layers import MAKERS, Kind
from fusion.merging.merged import MergedNetwork, Step
from fusion.merging.resizing import keep

_MU_START, _LOG_VARIANCE_START, _SPREAD = 1.0, -9.0, 0.01


class Bottleneck(nn.Module):
    """The noise of a merged network: ``mu`` ``(n,)`` and ``log_variance`` ``(tasks, n)`` by space."""

    def __init__(self, merged: MergedNetwork, *, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.mu = nn.ParameterDict()
        self.log_variance = nn.ParameterDict()
        device = next(merged.parameters()).device
        for space in sorted(merged.prunable):
            size = len(merged.neurons[space])
            self.mu[str(space)] = nn.Parameter(self._draw(_MU_START, size).to(device))
            self.log_variance[str(space)] = nn.Parameter(self._draw(_LOG_VARIANCE_START, len(merged.tasks), size).to(device))

    def _draw(self, mean: float, *size: int) -> Tensor:
        return mean + _SPREAD * torch.randn(size, generator=self.generator)

    def noisy(self, merged: MergedNetwork, task: int) -> _Noise:
        """Return the gate that training of one task uses."""
        return _Noise(self, merged, task)

    def mean(self, merged: MergedNetwork, step: Step, feature: Tensor) -> Tensor:
        """Gate without noise: what is judged, and what :func:`fold` puts into the weights."""
        return feature * by_neuron(merged, step, self.mu[str(step.space)]).to(feature.dtype)

    def scores(self, task: int) -> dict[int, Tensor]:
        """Return ``log mu^2 - log sigma^2`` by space: the paper's rule removes what is at most 0."""
        return {
            int(space): (mu.detach().square().clamp_min(1e-30).log() - self.log_variance[space].detach()[task]).cpu()
            for space, mu in self.mu.items()
        }

    def penalty(self, merged: MergedNetwork) -> Tensor:
        """Return the information that the network lets through, weighted by what each neuron costs.

        The sum over tasks and the neurons they read of ``log(1 + mu^2 / sigma^2) / 2``, times the neuron's share of the
        operations of the task's network: the original's spatial weight, in floating-point operations.
        """
        total = torch.zeros((), device=next(merged.parameters()).device)
        for number in range(len(merged.tasks)):
            costs = neuron_costs(merged, 1 << number)
            whole = sum(float(costs[int(space)].sum()) for space in self.mu)
            for space, mu in self.mu.items():
                reads = (merged.neurons[int(space)].group >> number & 1).to(mu)
                weight = costs[int(space)].to(mu) / max(whole, 1.0) * reads
                ratio = torch.log1p(mu.square() * torch.exp(-self.log_variance[space][number]))
                total = total + 0.5 * (weight * ratio).sum()
        return total

    def resize(self, kept: Mapping[int, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Keep only some neurons, as in the network."""
        for space, positions in kept.items():
            if str(space) in self.mu:
                keep(self.mu[str(space)], positions, 0, optimizer)
                keep(self.log_variance[str(space)], positions, 1, optimizer)


class _Noise:
    """Multiplies what is read by ``mu + sigma * eps``, one ``eps`` for each sample and neuron."""

    def __init__(self, bottleneck: Bottleneck, merged: MergedNetwork, task: int) -> None:
        self.bottleneck, self.merged, self.task = bottleneck, merged, task

    def __call__(self, step: Step, feature: Tensor) -> Tensor:
        mu = self.bottleneck.mu[str(step.space)]
        sigma = torch.exp(0.5 * self.bottleneck.log_variance[str(step.space)][self.task])
        eps = torch.randn((len(feature), len(mu)), generator=self.bottleneck.generator).to(mu)
        if step.is_flat:
            drawn = eps[:, self.merged.channels(step)].repeat_interleave(step.positions, 1)
        else:
            drawn = eps[:, self.merged.channels(step)].view(len(feature), -1, *[1] * len(step.shape))
        factor = by_neuron(self.merged, step, mu) + by_neuron(self.merged, step, sigma) * drawn
        return feature * factor.to(feature.dtype)


def fold(merged: MergedNetwork, bottleneck: Bottleneck) -> None:
    """Put ``mu`` into the weights that read each neuron, in place: the same outputs as with the gate of means."""
    with torch.no_grad():
        for position, step in enumerate(merged.steps):
            source = merged.steps[step.inputs[0]] if step.inputs else step
            if step.kind not in MAKERS or str(source.space) not in bottleneck.mu:
                continue
            weight = merged.part(position).weight
            assert weight is not None
            factor = bottleneck.mu[str(source.space)][merged.channels(source)]
            if step.kind is Kind.LINEAR:
                weight.mul_(factor.repeat_interleave(source.positions)[None])
            else:
                weight.mul_(factor[None, :, None, None])
