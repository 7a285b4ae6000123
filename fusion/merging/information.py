"""A kernel estimator of the information that a set of neurons has about labels, in nats.

With the neurons' values h plus Gaussian noise of variance s2, over N samples, c(i) the class of sample i and N_c its size:

    K_ij = exp(-|h_i - h_j|^2 / (2 s2))
    I = 1/N sum_i [ log(1/N_c(i) sum_{j of class c(i)} K_ij) - log(1/N sum_j K_ij) ]

Source: Kolchinsky and Tracey, *Estimating Mixture Entropy with Pairwise Distances* (2017), as used by Saxe et al. (2018) and by
*Pruning-Aware Merging* (KDD 2021, section 5.2). The paper calls it an upper bound; it is the difference of two, so it is
an estimate. It saturates at the labels' entropy where the kernel is too sharp for the number of samples, whatever the labels:
hence the bandwidth rule of ``Probe.of`` and the null of shuffled labels beside each value. Neither is in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fusion.merging.config import MIN_SAMPLES, EstimatorConfig, LabelMode, Normalise
from fusion.merging.errors import MergeError
from fusion.merging.labels import Classes, attributes, check_class_sizes, shuffled, usable

CONSTANT = 1e-6  #: spread over magnitude of a neuron that only rounding moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a set of neurons is estimated to tell about labels, in nats.

    Attributes:
        information: The estimate, at least 0 up to rounding.
        null: Mean estimate of the same neurons about shuffled labels: what chance gives.
        entropy: Mean entropy of the attributes: what could be told at most.
    """

    information: float
    null: float
    entropy: float

    @property
    def excess(self) -> float:
        """What is told beyond chance, at least 0."""
        return max(0.0, self.information - self.null)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a layer's neurons and the labels are on the draws of samples, and the scale of the noise.

    Attributes:
        values: ``(draws, samples, neurons, positions)``, each neuron's values less its mean, over its scale.
        classes: Labels of the draws.
        nulls: The same labels, permuted: ``num_null`` times as many attributes.
        s2: Variance of the noise.
        mode: How attributes are combined.
    """

    values: Tensor
    classes: Classes
    nulls: Classes | None
    s2: float
    mode: LabelMode

    @classmethod
    def of(cls, values: Tensor, labels: Tensor, config: EstimatorConfig, origins: Sequence[int] | None = None) -> Self:
        """Draw samples and set the variance of the noise.

        The rule is s2 = D / (2 gamma) with D the mean squared distance of two samples in all the neurons together.

        Args:
            values: ``(samples, neurons)`` or ``(samples, neurons, *positions)``: all live neurons of the layer, after their
                activation and pooling.
            labels: As ``attributes`` takes them, for the same samples.
            config: Options.
            origins: Each neuron's network, needed for ``normalise="network"``.

        Raises:
            MergeError: Values or labels that cannot be measured, or that do not fit each other or the options.
        """
        flat = checked(values)
        codes = usable(attributes(labels, bins=config.bins), config.label_mode)
        if len(codes) != len(flat):
            raise MergeError(f"values are of {len(flat)} samples, but labels of {len(codes)}")
        spread = spreads(flat)
        if bad := (~((spread > 0) & spread.isfinite())).nonzero().flatten().tolist():
            raise MergeError(f"neurons {bad} vary by too much or too little for their squares: scale the network's inputs")
        scale = _scales(spread, config.normalise, origins)
        draws = _draws(len(flat), config).to(flat.device)
        drawn = codes.to(flat.device)[draws]
        check_class_sizes(drawn, config.label_mode)
        generator = torch.Generator().manual_seed(config.seed + 1)
        return cls(
            values=((flat - flat.mean(dim=0)) * scale.sqrt()[:, None])[draws],
            classes=Classes.of(drawn),
            nulls=Classes.of(shuffled(drawn, config.num_null, generator)) if config.num_null else None,
            s2=config.s2 or float((spread * scale).sum()) / (2 * config.gamma),
            mode=config.label_mode,
        )

    @property
    def entropy(self) -> float:
        """Mean entropy of the attributes in nats."""
        return float(self.classes.entropies.mean())

    def combine(self, information: Tensor) -> Tensor:
        """Return what ``(..., attributes)`` nats are together, ``(...,)``, comparable with ``entropy``.

        The largest share of an attribute's entropy is given in nats of the mean entropy, so that it is the same share.
        """
        if self.mode != "max_marginal":
            return information.mean(dim=-1)
        entropies = self.classes.entropies
        # an attribute that is constant in all draws has neither information nor entropy
        return (information / entropies.clamp_min(1e-9)).amax(dim=-1) * entropies.mean()

    def kernel(self, neurons: Sequence[int] | None = None) -> Tensor:
        """Return the kernel of a set of neurons, all by default, ``(draws, samples, samples)``, directly from the distances."""
        chosen = self.values if neurons is None else self.values[:, :, list(neurons)]
        squared = torch.cat([distances(draw.flatten(1)[:, None]) for draw in chosen])
        return squared.div_(-2 * self.s2).exp_()

    def estimate(self, kernel: Tensor) -> Estimate:
        """Return the estimate for a set's kernel ``(draws, samples, samples)``, mean over the draws."""
        null = 0.0
        if self.nulls is not None:
            permuted = information_of(kernel, self.nulls).view(-1, self.classes.own.shape[2])
            null = float(self.combine(permuted).mean())
        information = float(self.combine(information_of(kernel, self.classes)))
        return Estimate(information=information, null=null, entropy=self.entropy)


def information(
    values: Tensor,
    labels: Tensor,
    config: EstimatorConfig,
    *,
    neurons: Sequence[int] | None = None,
    origins: Sequence[int] | None = None,
) -> Estimate:
    """Estimate what a set of neurons tells about labels, directly from the distances.

    Args:
        values: ``(samples, neurons)`` or ``(samples, neurons, *positions)``, all live neurons of the layer.
        labels: Classes, attributes or real values, as ``attributes`` takes them.
        config: Options.
        neurons: The set, by index; all by default. The noise is that of the whole layer whatever the set.
        origins: Each neuron's network, needed for ``normalise="network"``.

    Raises:
        MergeError: As ``Probe.of``.

    Example:
        >>> classes = torch.arange(64) % 2
        >>> told = information(classes[:, None].float() * 9, classes, EstimatorConfig(gamma=50))
        >>> round(told.information / told.entropy, 3)
        1.0
    """
    probe = Probe.of(values, labels, config, origins)
    return probe.estimate(probe.kernel(neurons))


def distances(values: Tensor) -> Tensor:
    """Return the squared distances of samples in each neuron, summed over its positions.

    Args:
        values: ``(samples, neurons, positions)``; nearer to 0 is more exact.

    Returns:
        ``(neurons, samples, samples)``, at least 0, and 0 on the diagonal.
    """
    rows = values.transpose(0, 1)
    lengths = rows.square().sum(dim=2)
    squared = torch.baddbmm(lengths[:, None, :], rows, rows.transpose(1, 2), alpha=-2).add_(lengths[:, :, None]).clamp_min_(0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared


def information_of(kernel: Tensor, classes: Classes) -> Tensor:
    """Return the estimate from kernels ``(draws, samples, samples)`` for each attribute, ``(attributes,)``, mean over draws."""
    means = (kernel @ classes.members) / classes.sizes[:, None]
    return (means.gather(2, classes.own).log() - kernel.mean(dim=2, keepdim=True).log()).mean(dim=(0, 1))


def spreads(flat: Tensor) -> Tensor:
    """Return the mean squared distance of two different samples in each neuron, of ``(samples, neurons, positions)``."""
    return 2 * flat.var(dim=0).sum(dim=1)


def inactive(values: Tensor) -> tuple[Tensor, Tensor]:
    """Find the neurons that tell nothing because they do not vary.

    Args:
        values: ``(samples, neurons)`` or ``(samples, neurons, *positions)``, the whole probe set.

    Returns:
        Two masks ``(neurons,)``: dead neurons, zero everywhere, and constant ones, which are not: a position's spread over the
        samples is at most 1e-6 of the neuron's largest magnitude.

    Raises:
        MergeError: Values are not finite, or of fewer than 16 samples.
    """
    flat = _flat(values)
    largest = flat.abs().amax(dim=(0, 2))
    spread = (flat.amax(dim=0) - flat.amin(dim=0)).amax(dim=1)
    dead = largest == 0
    return dead, (spread <= CONSTANT * largest) & ~dead


def checked(values: Tensor) -> Tensor:
    """Return values as ``(samples, neurons, positions)`` single precision if every neuron of them varies.

    Raises:
        MergeError: As ``inactive``, or neurons do not vary.
    """
    flat = _flat(values)
    dead, constant = inactive(flat)
    if still := (dead | constant).nonzero().flatten().tolist():
        raise MergeError(f"neurons {still} do not vary on the probe samples: remove them first, see inactive()")
    return flat


def _flat(values: Tensor) -> Tensor:
    """Return values as ``(samples, neurons, positions)`` in single precision, or say why they cannot be measured."""
    if values.ndim < 2 or not values.numel():
        raise MergeError(f"values are (samples, neurons) or (samples, neurons, *positions), got {tuple(values.shape)}")
    if len(values) < MIN_SAMPLES:
        raise MergeError(f"the estimator needs at least {MIN_SAMPLES} samples, got {len(values)}: give more probe data")
    flat = values.detach().float().reshape(*values.shape[:2], -1)
    broken = (~flat.isfinite()).any(dim=2).any(dim=0).nonzero().flatten().tolist()
    if broken:
        raise MergeError(f"neurons {broken} have values that are not finite: mend the network or its inputs")
    return flat


def _scales(spread: Tensor, normalise: Normalise, origins: Sequence[int] | None) -> Tensor:
    """Return what each neuron's squared distances are multiplied by, ``(neurons,)``."""
    if normalise == "none":
        return torch.ones_like(spread)
    if normalise == "neuron":
        return 1 / spread
    if origins is None or len(origins) != len(spread):
        given = "none" if origins is None else len(origins)
        raise MergeError(f"normalise='network' needs the network of each of the {len(spread)} neurons, got {given}")
    which = torch.as_tensor(origins, device=spread.device)
    scale = torch.empty_like(spread)
    for origin in which.unique():
        scale[which == origin] = 1 / spread[which == origin].mean()
    return scale


def _draws(total: int, config: EstimatorConfig) -> Tensor:
    """Return the samples of the draws ``(draws, samples)``: no sample twice in a draw, and in two draws only if need be."""
    size = config.num_samples
    if total <= size:
        return torch.arange(total)[None]
    generator = torch.Generator().manual_seed(config.seed)
    draws: list[Tensor] = []
    while len(draws) < config.num_draws:
        draws.extend(torch.randperm(total, generator=generator)[: total // size * size].split(size))
    return torch.stack(draws[: config.num_draws])
