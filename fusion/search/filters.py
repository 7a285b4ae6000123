"""The rule-based filter: what shares more than a candidate that failed is not trained at all.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 5.1. Different here: adapters count, a failure speaks
    only for the thresholds that it missed, and a candidate that was ended early has not failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fusion.search.absgraph import Capacities


def is_more_aggressive(graph: Capacities, failure: Capacities) -> bool:
    """Whether a graph shares more than another one.

    All four conditions hold and at least one of them strictly: its capacity is at most that of the other (1) in total, (2) on
    the path of each task and (3) on the path of each task alone; (4) at least that of the other for each set of two or more
    tasks. That makes a strict partial order.
    """
    sets = graph.by_set.keys() | failure.by_set.keys()
    smaller = [
        (graph.total, failure.total),
        *zip(graph.per_task, failure.per_task, strict=True),
        *zip(graph.specific, failure.specific, strict=True),
        *((failure.by_set.get(tasks, 0), graph.by_set.get(tasks, 0)) for tasks in sets),
    ]
    return all(mine <= its for mine, its in smaller) and any(mine < its for mine, its in smaller)


@dataclass(slots=True)
class Audit:
    """How often a filter was wrong, counted over candidates that were trained all the same.

    Attributes:
        checked: Number of (candidate, threshold) that the filter would have given up and that were trained to the end.
        wrong: How many of them met the threshold.
    """

    checked: int = 0
    wrong: int = 0

    @property
    def wrong_share(self) -> float | None:
        """Share of wrong ones; None before the first check."""
        return self.wrong / self.checked if self.checked else None

    def record(self, given_up: Collection[float], met: Collection[float]) -> None:
        """Take note of a candidate: the thresholds that the filter gave up for it, and those that it met after all."""
        self.checked += len(set(given_up))
        self.wrong += len(set(given_up) & set(met))


class RuleFilter:
    """Remembers what failed, per threshold, and gives up what shares more.

    Args:
        thresholds: The allowed drops of the search.
        unknown_fails: Let a candidate that was ended early count as failed, as the public implementation does.
    """

    def __init__(self, thresholds: Sequence[float], *, unknown_fails: bool = False) -> None:
        self.audit = Audit()
        self._unknown_fails = unknown_fails
        self._failures: dict[float, list[Capacities]] = {threshold: [] for threshold in thresholds}

    def record(self, capacities: Capacities, *, missed: Iterable[float], converged: bool) -> None:
        """Take note of a candidate that missed thresholds.

        Args:
            capacities: Of its graph.
            missed: The thresholds that it missed; it counts for tighter ones too.
            converged: Whether it had its full budget of training. Without it the candidate is unknown, not failed.
        """
        loosest = max(missed, default=None)
        if loosest is None or not (converged or self._unknown_fails):
            return
        for threshold, failures in self._failures.items():
            if threshold > loosest or any(is_more_aggressive(capacities, known) for known in failures):
                continue  # the order is transitive: a failure that another one gives up tells nothing new
            failures[:] = [known for known in failures if not is_more_aggressive(known, capacities)]
            failures.append(capacities)

    def given_up(self, capacities: Capacities) -> tuple[float, ...]:
        """Return the thresholds that a graph is not expected to meet, ascending; it is to be skipped if that is all of them."""
        return tuple(
            sorted(
                threshold
                for threshold, failures in self._failures.items()
                if any(is_more_aggressive(capacities, failure) for failure in failures)
            )
        )
