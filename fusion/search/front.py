"""What a search has found so far: per threshold the cheapest candidate within it, and the Pareto front over all thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.search.absgraph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate as it stood when it was looked at.

    Attributes:
        key: Of its graph.
        graph: What it shares.
        weights: Name of its weights in the history; empty for the models as they were handed in.
        cost: Predicted, in the search's metric.
        parameters: Number of them.
        drops: Score lost on the validation part, by task; negative where it gained.
        errors: Standard error of each.
        epoch: Passes that it had had.
        number: Of the candidate, from 1; 0 for the original.
    """

    key: str
    graph: Graph
    weights: str
    cost: float
    parameters: int
    drops: Mapping[str, float]
    errors: Mapping[str, float]
    epoch: float
    number: int

    @property
    def drop(self) -> float:
        """The largest drop of a task; NaN if one of them is."""
        return max(self.drops.values(), key=lambda drop: (math.isnan(drop), drop))

    def is_within(self, limits: Mapping[str, float], margin: float) -> bool:
        """Whether every task keeps its limit, and ``margin`` standard errors of distance from it.

        A drop that is exactly 0 with no error, as that of a task that was not touched, is within any limit.
        """
        return all(self.drops[task] + margin * self.errors[task] <= limit for task, limit in limits.items())

    def to_json(self) -> dict[str, Any]:
        """Return the point without its graph, which stands beside it."""
        return {
            "weights": self.weights,
            "drops": dict(self.drops),
            "errors": dict(self.errors),
            "epoch": self.epoch,
        }


@dataclass(slots=True, kw_only=True)
class Front:
    """The best point of each threshold.

    Attributes:
        limits: By threshold, each task's allowed drop: the smaller of the threshold and the task's own limit.
        margin: As in :meth:`Point.is_within`.
        best: By threshold; starts with the original, which is within any.
    """

    limits: Mapping[float, Mapping[str, float]]
    margin: float
    best: dict[float, Point]

    @classmethod
    def of(cls, original: Point, thresholds: Sequence[float], own: Mapping[str, float | None], margin: float) -> Front:
        """Begin with the original; ``own`` are the tasks' limits of their own."""
        limits = {
            threshold: {task: threshold if limit is None else min(threshold, limit) for task, limit in own.items()}
            for threshold in thresholds
        }
        return cls(limits=limits, margin=margin, best=dict.fromkeys(thresholds, original))

    def met(self, point: Point) -> tuple[float, ...]:
        """Return the thresholds that a point is within, ascending."""
        return tuple(sorted(t for t, limits in self.limits.items() if point.is_within(limits, self.margin)))

    def would_improve(self, cost: float) -> tuple[float, ...]:
        """Return the thresholds that a candidate of this cost would improve if it were within them, ascending."""
        return tuple(sorted(threshold for threshold, best in self.best.items() if cost < best.cost))

    def add(self, point: Point) -> tuple[float, ...]:
        """Take note of a point and return the thresholds whose best it is now."""
        improved = tuple(t for t in self.met(point) if point.cost < self.best[t].cost)
        for threshold in improved:
            self.best[threshold] = point
        return improved

    def costs(self) -> dict[float, float]:
        """Return the best cost by threshold."""
        return {threshold: point.cost for threshold, point in self.best.items()}


def pareto(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in (cost, drop, parameters), by cost.

    A point beats another if it is nowhere worse and somewhere better. Of equal points the first stays.
    """
    kept: dict[tuple[float, float, int], Point] = {}
    for point in points:
        kept.setdefault((point.cost, point.drop, point.parameters), point)
    values = list(kept)

    def is_beaten(mine: tuple[float, float, int]) -> bool:
        return any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in values)

    return [kept[value] for value in sorted(values) if not is_beaten(value)]
