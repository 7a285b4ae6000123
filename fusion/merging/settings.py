"""Settings of a whole merge: regrouping, training, pruning, baselines and report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

from fusion.merging.config import RegroupConfig
from fusion.merging.errors import MergeError
from fusion.merging.pruning import Method, PruneConfig
from fusion.merging.training import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSettings:
    """What a merge is to do.

    Attributes:
        alpha: How much neurons of one task may tell about the others, a fraction of what the layer tells; small shares more,
            infinity nothing. None: several are tried, and the one with the least FLOPs is taken.
        alphas: Those that are tried. With infinity among them, what is taken costs no more than networks pruned alone.
        max_drop: How much of its score a task may lose on validation data.
        prune: ``taylor`` (P2), ``vib`` (P1), or None: merge only.
        pair: Whether of the neurons that are to be shared one of each network becomes one, see
            :func:`fusion.merging.merge.merge`; False is the paper's way.
        baselines: Whether to make B1 (each network pruned alone) and B2 (zipped, then pruned), too.
        steps: Training steps after each removal; after the merge it is five times that.
        lr: Adam's learning rate.
        batch_size: Samples of a training step.
        seed: Of everything that is drawn.
        private: Paths of modules that are kept as they are.
        latency_batch: Samples of the forward passes whose latency is measured; 0 for none.
        regroup: Options of regrouping; its alpha is not used, and its seed is that above.

    Raises:
        MergeError: Settings are out of their range; all are named at once.
    """

    alpha: float | None = None
    alphas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, math.inf)
    max_drop: float = 0.01
    prune: Method | None = "taylor"
    pair: bool = True
    baselines: bool = False
    steps: int = 60
    lr: float = 1e-3
    batch_size: int = 64
    seed: int = 0
    private: tuple[str, ...] = ()
    latency_batch: int = 16
    regroup: RegroupConfig = field(default_factory=RegroupConfig)

    def __post_init__(self) -> None:
        problems = [*_problems(self)]
        if problems:
            raise MergeError(f"the settings of the merge: {'; '.join(problems)}")

    @property
    def regroup_config(self) -> RegroupConfig:
        """Options of regrouping with the seed of the merge."""
        return replace(self.regroup, estimator=replace(self.regroup.estimator, seed=self.seed))

    @property
    def train_config(self) -> TrainConfig:
        """How networks are trained."""
        return TrainConfig(lr=self.lr, batch_size=self.batch_size, seed=self.seed)

    @property
    def prune_config(self) -> PruneConfig:
        """How networks are pruned."""
        return PruneConfig(
            method=self.prune or "taylor",
            steps=self.steps,
            mend_steps=3 * self.steps,
            final_steps=3 * self.steps,
            train=self.train_config,
        )


def _problems(settings: MergeSettings) -> Iterator[str]:
    for name, least in (("steps", 0), ("batch_size", 1), ("seed", 0), ("latency_batch", 0)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f"{name} is a whole number from {least}, got {value!r}"
    if not 0 <= settings.max_drop < 1:
        yield f"max_drop is a share of the score from 0 up to 1, got {settings.max_drop!r}"
    if not (math.isfinite(settings.lr) and settings.lr > 0):
        yield f"lr is a finite number above 0, got {settings.lr!r}"
    if settings.prune is not None and settings.prune not in get_args(Method):
        yield f"prune is one of {', '.join(get_args(Method))}, or None; got {settings.prune!r}"
    if not settings.alphas:
        yield "alphas are none"
    for alpha in (*settings.alphas, *(() if settings.alpha is None else (settings.alpha,))):
        if not 0 <= alpha <= 1 and alpha != math.inf:
            yield f"alpha is a fraction from 0 to 1, or infinity; got {alpha!r}"
