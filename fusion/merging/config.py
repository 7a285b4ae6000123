"""Options of the estimator of information and of regrouping, checked together, and the threshold for information."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from fusion.merging.errors import MergeError

Normalise = Literal["neuron", "network", "none"]
LabelMode = Literal["mean_marginal", "max_marginal", "joint"]
AlphaUnit = Literal["layer", "entropy", "nats"]
OnOverlap = Literal["origin", "drop", "share"]
MIN_SAMPLES = 16  #: fewer say nothing about the distribution of a neuron


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """Options of the kernel estimator of mutual information.

    Attributes:
        num_samples: Samples of a draw; its kernels are this number squared per neuron. At least 16.
        num_draws: Draws whose estimates are averaged; all samples make one draw where there are no more than ``num_samples``.
        gamma: Mean squared distance of all neurons of the layer together over twice the variance of the noise: the larger,
            the sharper the kernel and the sooner it saturates. Above 0.
        s2: Variance of the noise, in units of the normalised squared distances, in place of the one that ``gamma`` gives.
        normalise: What squared distances are divided by: each ``neuron``'s mean, the mean over all neurons of its
            ``network``, or ``none``.
        label_mode: Of several attributes, take the ``mean_marginal`` information, the ``max_marginal`` (the largest as
            a fraction of the attribute's entropy), or that about their ``joint`` value.
        bins: Quantile bins of each real-valued target, at least 2.
        num_null: Permutations of the labels whose mean estimate is the null; 0 for none.
        seed: All draws and permutations come from it.

    Raises:
        MergeError: Options are out of their range; all are named at once.
    """

    num_samples: int = 256
    num_draws: int = 2
    gamma: float = 4.0
    s2: float | None = None
    normalise: Normalise = "neuron"
    label_mode: LabelMode = "mean_marginal"
    bins: int = 4
    num_null: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*_problems(self)]
        if problems:
            raise MergeError(f"the options of the estimator: {'; '.join(problems)}")


def _problems(config: EstimatorConfig) -> Iterator[str]:
    """Yield everything that is wrong with the options."""
    least = {"num_samples": MIN_SAMPLES, "num_draws": 1, "bins": 2, "num_null": 0, "seed": 0}
    for name, minimum in least.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            yield f"{name} is a whole number from {minimum}, got {value!r}"
    for name, value in (("gamma", config.gamma), ("s2", 1.0 if config.s2 is None else config.s2)):
        if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            yield f"{name} is a finite number above 0, got {value!r}"
    for name, kinds in (("normalise", get_args(Normalise)), ("label_mode", get_args(LabelMode))):
        if getattr(config, name) not in kinds:
            yield f"{name} is one of {', '.join(kinds)}, got {getattr(config, name)!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """How much a set of neurons may tell about the other tasks' labels: alpha of the paper, in a unit.

    Attributes:
        alpha: At least 0; a fraction is up to 1; infinity lets everything pass.
        unit: Fraction of what all live neurons of the ``layer`` tell together, of the labels' ``entropy``, or ``nats``.
            What a layer tells grows with depth and with ``gamma``, so only a fraction of it means the same in each layer.

    Raises:
        MergeError: An unknown unit or an alpha out of its range.
    """

    alpha: float
    unit: AlphaUnit = "layer"

    def __post_init__(self) -> None:
        problems = []
        if self.unit not in get_args(AlphaUnit):
            problems.append(f"the unit is one of {', '.join(get_args(AlphaUnit))}, got {self.unit!r}")
        if not self.alpha >= 0 or (self.unit != "nats" and 1 < self.alpha < math.inf):
            expected = "at least 0" if self.unit == "nats" else "a fraction from 0 to 1, or infinity"
            problems.append(f"alpha is {expected}, got {self.alpha}")
        if problems:
            raise MergeError(f"the threshold: {'; '.join(problems)}")

    def nats(self, *, total: float, entropy: float) -> float:
        """Return the threshold in nats, where the layer tells ``total`` nats about labels of ``entropy`` nats."""
        scale = {"layer": total, "entropy": entropy, "nats": 1.0}[self.unit]
        return self.alpha if math.isinf(self.alpha) else self.alpha * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class RegroupConfig:
    """Options of regrouping.

    Attributes:
        alpha: How much a set of neurons may tell about the tasks that it does not serve; small shares more, large less, and
            infinity nothing.
        alpha_unit: What alpha is a fraction of, see :class:`~fusion.merging.config.Threshold`.
        on_overlap: A neuron that several sets have goes to its own ``origin``, belongs to none of them as in the paper
            (``drop``), or serves all tasks (``share``).
        max_subset: Largest set of tasks to seek neurons for, from 1 to K - 1; None is K - 1 up to three tasks, 1 beyond.
        max_groups: Most groups that a layer may be cut into.
        min_neurons: That every task keeps in every layer.
        probe_samples: Training samples that tell which neurons vary; as many of them as it draws go to the estimator.
        estimator: Options of the estimator.

    Raises:
        MergeError: Options are out of their range.
    """

    alpha: float = 0.1
    alpha_unit: AlphaUnit = "layer"
    on_overlap: OnOverlap = "origin"
    max_subset: int | None = None
    max_groups: int = 32
    min_neurons: int = 1
    probe_samples: int = 2048
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)

    def __post_init__(self) -> None:
        problems = [
            f"{name} is a whole number from {least}, got {value!r}"
            for name, least in (("max_subset", 1), ("max_groups", 2), ("min_neurons", 1), ("probe_samples", 16))
            if (value := getattr(self, name)) is not None and (not isinstance(value, int) or value < least)
        ]
        if self.on_overlap not in get_args(OnOverlap):
            problems.append(f"on_overlap is one of {', '.join(get_args(OnOverlap))}, got {self.on_overlap!r}")
        try:
            Threshold(alpha=self.alpha, unit=self.alpha_unit)
        except MergeError as error:
            problems.append(str(error))
        if problems:
            raise MergeError(f"the options of regrouping: {'; '.join(problems)}")
