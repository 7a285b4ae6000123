"""Prune a merged network for each of its tasks in turn, as far as every task stays good enough (PAM, sections 5.1 and 6.1).

A round removes a chunk of the operations of each task's subgraph, by what that task says of its neurons, and trains all tasks
after each removal. When a task falls below its floor, the network is trained further as long as that helps; if it does not
come back, the round is undone and the next one removes half as much for the tasks that failed. The same loop prunes single
networks (baseline 1) and zipped ones (baseline 2). The paper states neither floors nor steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import names_of, subsets
from fusion.merging.removal import SharedRule, choose
from fusion.merging.samples import Loss, MergeData, scores
from fusion.merging.taylor import taylor_scores
from fusion.merging.training import Snapshot, TrainConfig, Trainer
from fusion.merging.vib import Bottleneck, fold

Method = Literal["taylor", "vib"]
LEAST_PROGRESS = 0.1  #: share of what is missing that training must make up for to go on


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """How a network is pruned.

    Attributes:
        method: ``taylor`` (P2) or ``vib`` (P1).
        chunk: Share of a task's operations that a turn removes, at first; in (0, 1).
        min_chunk: When a task fails with less than this, its turns are over.
        steps: Training steps after each turn.
        mend_steps: Training steps when a task is below its floor after a round.
        max_mends: How often they are taken, as long as what is missing shrinks by a tenth each time, before a round is undone.
        final_steps: Training steps at the end.
        score_batches: Batches that importance is summed over.
        per_flop: Divide importance by the operations that the neuron's removal saves; False for the literal score.
        shared_rule: What becomes of a shared neuron that one of its tasks gives up; see :mod:`fusion.merging.removal`.
        min_neurons: That each task keeps in every space.
        kl: Weight of the bottleneck's penalty, for ``vib``.
        max_rounds: At most so many.
        train: How it is trained.
    """

    method: Method = "taylor"
    chunk: float = 0.12
    min_chunk: float = 0.02
    steps: int = 60
    mend_steps: int = 180
    max_mends: int = 4
    final_steps: int = 200
    score_batches: int = 8
    per_flop: bool = True
    shared_rule: SharedRule = "max"
    min_neurons: int = 1
    kl: float = 0.05
    max_rounds: int = 100
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.method not in ("taylor", "vib"):
            raise MergeError(f"method: expected 'taylor' or 'vib', got {self.method!r}")
        if not 0 < self.min_chunk <= self.chunk < 1:
            raise MergeError(f"expected 0 < min_chunk <= chunk < 1, got {self.min_chunk} and {self.chunk}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone:
    """What a round came to.

    Attributes:
        number: From 0, which is the network before any pruning.
        scores: On validation data, by task.
        flops: By task combination.
        is_feasible: Whether every task is at its floor or above.
        seconds: Since the pruning began.
    """

    number: int
    scores: Mapping[str, float]
    flops: Mapping[tuple[str, ...], int]
    is_feasible: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruned:
    """A pruned network.

    Attributes:
        network: The smallest that was good enough; the one given, trained further, if none was.
        scores: Its own, on validation data.
        rounds: All that were tried.
        is_feasible: Whether it is good enough.
    """

    network: MergedNetwork
    scores: Mapping[str, float]
    rounds: tuple[RoundDone, ...]
    is_feasible: bool


def prune_alternating(
    merged: MergedNetwork,
    data: MergeData,
    floors: Mapping[str, float],
    config: PruneConfig,
    *,
    losses: Mapping[str, Loss] | None = None,
    progress: Callable[[RoundDone], None] | None = None,
) -> Pruned:
    """Prune a network, in place, for all of its tasks in turn.

    Args:
        merged: Of one task or several.
        data: Training data teach and tell importance, validation data decide.
        floors: The least score of each task on validation data.
        config: How.
        losses: By task; by default what the labels call for.
        progress: Told of every round.

    Raises:
        MergeError: If a task has no floor.
    """
    missing = [task for task in merged.tasks if task not in floors]
    if missing:
        raise MergeError(f"expected a floor for every task; missing: {', '.join(missing)}")
    return _Pruner(merged, data, floors, config, losses, progress).run()


class _Pruner:
    def __init__(
        self,
        merged: MergedNetwork,
        data: MergeData,
        floors: Mapping[str, float],
        config: PruneConfig,
        losses: Mapping[str, Loss] | None,
        progress: Callable[[RoundDone], None] | None,
    ) -> None:
        self.merged, self.data, self.floors, self.config = merged, data, floors, config
        self.bottleneck = Bottleneck(merged, seed=config.train.seed) if config.method == "vib" else None
        self.trainer = Trainer(merged, data.train, config.train, losses=losses, bottleneck=self.bottleneck, kl=config.kl)
        self.progress = progress
        self.chunks = dict.fromkeys(merged.tasks, config.chunk)
        self.rounds: list[RoundDone] = []
        self.started = time.perf_counter()
        self.best: Snapshot | None = None

    def run(self) -> Pruned:
        self._warm_up()
        for number in range(1, self.config.max_rounds + 1):
            if not self._round(number):
                break
        if self.best is not None:
            self.trainer.restore(self.best)
        self._finish()
        if self.bottleneck is not None:
            fold(self.merged, self.bottleneck)
        found = scores(self.merged, self.data.validation, self.merged.tasks)
        return Pruned(
            network=self.merged, scores=found, rounds=tuple(self.rounds), is_feasible=not self._failing(found)
        )  # fmt: skip

    def _warm_up(self) -> None:
        """Train until every task is at its floor, for a while: merging alone may cost accuracy. The best network stays."""
        if self.bottleneck is not None:
            self.trainer.train(self.config.steps)
        least = math.inf
        for mends_left in reversed(range(5)):
            found = self._scores()
            failing = self._look(0, found)
            short = self._shortfall(found)
            if self.best is None or short < least:
                self.best, least = self.trainer.snapshot(), short
            if not failing or not mends_left:
                break
            self.trainer.train(self.config.mend_steps)
        assert self.best is not None
        self.trainer.restore(self.best)

    def _round(self, number: int) -> bool:
        """Remove a chunk for each task that has turns left; return whether there is more to do."""
        turns = [task for task in self.merged.tasks if self.chunks[task] >= self.config.min_chunk]
        removed = [self._turn(task) for task in turns]
        if not any(removed):
            return False
        failing = self._look(number, self._mend())
        if not failing:
            self.best = self.trainer.snapshot()
            return True
        assert self.best is not None
        self.trainer.restore(self.best)
        blamed = [task for task in turns if task in failing] or turns
        for task in blamed:
            self.chunks[task] /= 2
        return any(chunk >= self.config.min_chunk for chunk in self.chunks.values())

    def _mend(self) -> dict[str, float]:
        """Train on while a task is below its floor, as long as that brings it nearer; return the scores in the end."""
        found = self._scores()
        short = self._shortfall(found)
        for _ in range(self.config.max_mends if short else 0):
            self.trainer.train(self.config.mend_steps)
            found = self._scores()
            now = self._shortfall(found)
            if not now or now > (1 - LEAST_PROGRESS) * short:
                break
            short = now
        return found

    def _turn(self, task: str) -> bool:
        merged, config = self.merged, self.config
        removal = choose(
            merged, task, self._importance(task), chunk=self.chunks[task], rule=config.shared_rule,
            per_flop=config.per_flop, min_neurons=config.min_neurons,
        )  # fmt: skip
        if not removal.kept:
            return False
        self.trainer.resize(removal.kept, removal.groups)
        self.trainer.train(config.steps)
        return True

    def _importance(self, task: str) -> dict[str, dict[int, Tensor]]:
        """Return the importance of neurons by task: of this one, and of those that the rule asks too."""
        asked = [task] if self.config.shared_rule not in ("max", "mean") else self.merged.tasks
        if self.bottleneck is None:
            return {name: taylor_scores(self.trainer, name, self.config.score_batches) for name in asked}
        # of a logarithm only the order counts, but a share of the whole is wanted
        return {
            name: {space: values.exp() for space, values in self.bottleneck.scores(self.merged.tasks.index(name)).items()}
            for name in asked
        }

    def _finish(self) -> None:
        """Train on at a lower rate, and keep that if no more is missing to the floors."""
        if not self.config.final_steps:
            return
        before = self.trainer.snapshot()
        short = self._shortfall(self._scores())
        self.trainer.train(self.config.final_steps, lr=self.config.train.lr / 2)
        if self._shortfall(self._scores()) > short:
            self.trainer.restore(before)

    def _scores(self) -> dict[str, float]:
        return scores(self.trainer.answer, self.data.validation, self.merged.tasks)

    def _shortfall(self, found: Mapping[str, float]) -> float:
        """Return what is missing to the floors, over all tasks."""
        return sum(max(0.0, self.floors[task] - score) for task, score in found.items())

    def _failing(self, found: Mapping[str, float]) -> list[str]:
        return [task for task, score in found.items() if score < self.floors[task]]

    def _look(self, number: int, found: Mapping[str, float]) -> list[str]:
        """Tell of the network, whose scores are given, and return the tasks that are below their floors."""
        failing = self._failing(found)
        done = RoundDone(
            number=number, scores=found, flops=flops_by_combination(self.merged), is_feasible=not failing,
            seconds=time.perf_counter() - self.started,
        )  # fmt: skip
        self.rounds.append(done)
        if self.progress is not None:
            self.progress(done)
        return failing


def flops_by_combination(merged: MergedNetwork) -> dict[tuple[str, ...], int]:
    """Return the operations of every non-empty subset of tasks, single tasks first."""
    order = sorted(subsets(len(merged.tasks)), key=lambda bits: (bits.bit_count(), bits))
    combinations = [names_of(bits, merged.tasks) for bits in order]
    return {names: flops(merged, names) for names in combinations}


def prune_singles(
    networks: Mapping[str, MergedNetwork],
    data: MergeData,
    floors: Mapping[str, float],
    config: PruneConfig,
    *,
    progress: Callable[[str, RoundDone], None] | None = None,
) -> dict[str, Pruned]:
    """Prune single networks, each alone and in place: baseline 1."""
    return {
        task: prune_alternating(
            network, data, floors, config, progress=None if progress is None else lambda done, task=task: progress(task, done)
        )
        for task, network in networks.items()
    }


def floors_for(found: Mapping[str, float], max_drop: float) -> dict[str, float]:
    """Return the floors: each task's own score less what it may lose.

    >>> floors_for({"a": 0.75}, 0.25)
    {'a': 0.5}
    """
    if not 0 <= max_drop < 1:
        raise MergeError(f"max_drop: expected a share of the score in [0, 1), got {max_drop}")
    return {task: value - max_drop for task, value in found.items()}
