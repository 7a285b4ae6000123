"""Looking at candidates on the validation part: what each check finds, who goes on, and why others do not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from fusion.search.data import Part
from fusion.search.front import Front, Point
from fusion.search.history import History
from fusion.search.scores import Scores, evaluate
from fusion.search.setting import Setting
from fusion.search.surrogate import FLOOR
from fusion.search.termination import should_stop
from fusion.search.trial import Trial

MIN_CHANCE = 0.05  #: a candidate of less hope to be within the loosest useful threshold is ended
_SPREAD = 0.4  #: of the logarithm of a drop about its prediction
_SHRINK = {0: 0.08, 1: 0.2, 2: 0.4, 4: 0.7}  #: final drop over that after so many of eight epochs, before any was seen


class Judge:
    """Decides about candidates while they are trained.

    Args:
        setting: What the search stands on.
        front: What has been found; points are added as they are seen.
        history: Where weights of the front go.
        on_improved: Called with a point and the thresholds whose best it is now.
    """

    def __init__(
        self, setting: Setting, front: Front, history: History, on_improved: Callable[[Point, tuple[float, ...]], None]
    ) -> None:
        self._setting = setting
        self._front = front
        self._history = history
        self._on_improved = on_improved
        self._ratios: dict[int, list[float]] = {}

    def look(self, trial: Trial) -> None:
        """Score a candidate, keep its weights if it improves the front, and end it where nothing is left to be won."""
        try:
            scores = self._scores(trial)
        except Exception as error:  # noqa: BLE001 - a score may be anybody's function; what it cannot judge has failed
            trial.end("failed", f"its score could not be told: {type(error).__name__}: {error}")
            return
        name = f"{trial.number}-{trial.epochs}"
        point = Point(
            key=trial.key,
            graph=trial.graph,
            weights=name,
            cost=trial.cost,
            parameters=trial.parameters,
            drops=scores.drops,
            errors=scores.errors,
            epoch=trial.epochs,
            number=trial.number,
        )
        trial.points.append(point)
        improved = self._front.add(point)
        met = self._front.met(point)
        if improved or met:
            with _averaged(trial):
                self._history.save_weights(name, trial.tree.state_dict())
        if improved:
            self._on_improved(point, improved)
        self._decide(trial, met, scores.resolution)

    def compare(self, trials: Sequence[Trial], rung: int, *, keep: int) -> None:
        """After a rung, let so many of the running candidates go on, the most promising ones."""
        running = [trial for trial in trials if trial.status == "running"]
        ranked = sorted(running, key=lambda trial: (-self._promise(trial), trial.number))
        for trial in ranked[keep:]:
            trial.give_up(f"others promised more after {rung} epochs")

    def learn(self, points: Sequence[Point]) -> None:
        """Learn from a candidate that had its full training how drops shrink on the way."""
        if not points or points[-1].epoch < self._setting.config.epochs:
            return
        final = max(points[-1].drop, 0.0) + FLOOR
        for point in points[:-1]:
            self._ratios.setdefault(int(point.epoch), []).append(final / (max(point.drop, 0.0) + FLOOR))

    def _decide(self, trial: Trial, met: tuple[float, ...], resolution: float) -> None:
        config = self._setting.config
        open_thresholds = self._open(trial, met)
        if met and not open_thresholds:
            trial.end("accepted", "within the tightest threshold that it can improve")
        elif trial.epochs >= config.epochs:
            trial.end("accepted" if self._has_met(trial) else "failed", "had its full training")
        elif not open_thresholds:
            trial.end("accepted" if self._has_met(trial) else "unknown", "cheaper models are within every threshold")
        elif config.early_termination and trial.epochs and self._is_hopeless(trial, open_thresholds, resolution):
            if self._has_met(trial):
                trial.end("accepted", "predicted to miss the tighter threshold")
            else:
                trial.give_up("predicted to miss the threshold")

    def _open(self, trial: Trial, met: tuple[float, ...]) -> tuple[float, ...]:
        """Return the thresholds that a candidate does not meet yet and would improve by it."""
        config = self._setting.config
        wanted = tuple(self._front.best)
        if config.rungs:  # a stepping stone that is cheaper than nothing is of use for the loosest threshold only
            wanted = self._front.would_improve(trial.cost) or (() if met else (max(wanted),))
        return tuple(threshold for threshold in wanted if threshold not in met)

    def _has_met(self, trial: Trial) -> bool:
        return any(self._front.met(point) for point in trial.points)

    def _is_hopeless(self, trial: Trial, thresholds: tuple[float, ...], resolution: float) -> bool:
        config, last = self._setting.config, trial.points[-1]
        if config.rungs:
            return self._chance(trial, max(thresholds)) < MIN_CHANCE
        return should_stop(
            [point.drop for point in trial.points],
            threshold=max(thresholds),
            margin=max(last.errors.values()),
            interval=config.check_epochs,
            epochs_left=config.epochs - trial.epochs,
            resolution=resolution,
        )

    def _promise(self, trial: Trial) -> float:
        best = self._front.best
        return sum(
            math.log(best[threshold].cost / trial.cost) * self._chance(trial, threshold)
            for threshold in self._front.would_improve(trial.cost)
        )

    def _chance(self, trial: Trial, threshold: float) -> float:
        """Return the probability that a candidate ends within a threshold."""
        limits = self._front.limits[threshold]
        last = trial.points[-1]
        shrink = self._shrink(trial.epochs)
        worst = max(
            math.log(max(last.drops[task], 0.0) * shrink + FLOOR)
            - math.log(max(limit - self._setting.config.margin * last.errors[task], 0.0) + FLOOR)
            for task, limit in limits.items()
        )
        return 0.5 * math.erfc(worst / (_SPREAD * math.sqrt(2)))

    def expected_drop(self, point: Point) -> float:
        """Return the drop at which a candidate that stands so is expected to end."""
        return max(point.drop, 0.0) * self._shrink(int(point.epoch))

    def _shrink(self, epochs: int) -> float:
        """Return the share of a drop after so many epochs that is expected to be left at the end."""
        if epochs >= self._setting.config.epochs:
            return 1.0
        seen = self._ratios.get(epochs, [])
        share = 8 * epochs / self._setting.config.epochs
        prior = max(value for at, value in _SHRINK.items() if at <= share)
        return statistics.median([prior, prior, *seen]) if seen else prior

    def _scores(self, trial: Trial) -> Scores:
        """Score a candidate: at a glance, and on the whole validation part where that may tell that it is good enough."""
        with _averaged(trial):
            glance = self._setting.glance
            if glance is not None:
                scores = self._scores_on(trial, glance)
                if not self._may_be_within(trial, scores):
                    return scores
            return self._scores_on(trial, self._setting.data.validation)

    def _scores_on(self, trial: Trial, part: Part) -> Scores:
        setting = self._setting
        return evaluate(trial.tree, part, setting.teachers, setting.tasks, label_free=setting.config.label_free)

    def _may_be_within(self, trial: Trial, scores: Scores) -> bool:
        """Whether a glance leaves it open that a candidate is within a threshold that it could improve."""
        wanted = self._front.would_improve(trial.cost) or tuple(self._front.best)
        limits = self._front.limits[max(wanted)]
        return all(scores.drops[task] - 2 * scores.errors[task] <= limit for task, limit in limits.items())


def _averaged(trial: Trial) -> AbstractContextManager[None]:
    return nullcontext() if trial.average is None else trial.average.in_place()
