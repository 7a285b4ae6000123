"""A query, and what is decided about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from serving.errors import ServingError


class AccuracyMode(StrEnum):
    """Whether a floor holds for each task, or for the average of all (MTLsys, section 4.3)."""

    PER_TASK = "per_task"
    AVERAGE = "average"


class Budget(StrEnum):
    """How the latency limit is split where several variants together answer a query."""

    OPTIMAL = "optimal"  #: any split: the sum is compared with the limit
    EQUAL = "equal"  #: the same share for each task (MTLsys, section 4.3)


class OnMishit(StrEnum):
    """What becomes of a query that cannot be satisfied."""

    REJECT = "reject"
    BEST_EFFORT = "best_effort"


class Reason(StrEnum):
    """Why a query is a mishit."""

    TASKS = "tasks"  #: no variant or combination answers these tasks
    ACCURACY = "accuracy"  #: none is accurate enough
    LATENCY = "latency"  #: none is fast enough
    CONFLICT = "conflict"  #: none is both

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self]


_WORDS = {
    Reason.TASKS: "no variants answer these tasks",
    Reason.ACCURACY: "no variants are accurate enough",
    Reason.LATENCY: "no variants are fast enough",
    Reason.CONFLICT: "those that are accurate enough are too slow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a client wants.

    Attributes:
        tasks: At least one; names of the family.
        latency_ms: Limit > 0, None for none.
        min_accuracy: One floor in [0, 1] for all tasks (or their average), a floor for each of some tasks, or None.
        accuracy_mode: What ``min_accuracy`` is about.
        budget: See :class:`Budget`.
        on_mishit: See :class:`OnMishit`.
        priority: Higher first, among queries that wait.
    """

    tasks: frozenset[str]
    latency_ms: float | None = None
    min_accuracy: float | Mapping[str, float] | None = None
    accuracy_mode: AccuracyMode = AccuracyMode.PER_TASK
    budget: Budget = Budget.OPTIMAL
    on_mishit: OnMishit = OnMishit.REJECT
    priority: int = 0

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ServingError("; ".join(problems))

    @property
    def limit_ms(self) -> float:
        """The latency limit, infinite if there is none."""
        return math.inf if self.latency_ms is None else self.latency_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Variants that together answer the tasks of a query, and what they would take and give.

    Attributes:
        variants: Ids, in the order in which they would run.
        tasks: For each of them the tasks that are taken from it, in the family's order.
        predicted_ms: Waiting, loading and inference, all together.
        load_ms: Of that, loading what is not resident.
        infer_ms: Of that, inference, and what calls take beside it.
        accuracy: Profiled score of each task.
    """

    variants: tuple[str, ...]
    tasks: tuple[tuple[str, ...], ...]
    predicted_ms: float
    load_ms: float
    infer_ms: float
    accuracy: Mapping[str, float]

    @property
    def mean_accuracy(self) -> float:
        """Average of the scores of its tasks."""
        return sum(self.accuracy.values()) / len(self.accuracy)

    @property
    def version(self) -> str:
        """As clients see it: the ids, joined by ``+``."""
        return "+".join(self.variants)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mishit:
    """A query that nothing satisfies.

    Attributes:
        reason: Why.
        closest: Up to three nearest offers, nearest first.
    """

    reason: Reason
    closest: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What answers a query.

    Attributes:
        offer: The variants.
        mishit: Set if the query's limits are not met and it asked for best effort.
    """

    offer: Offer
    mishit: Mishit | None = None


def _problems(query: Query) -> list[str]:
    problems = []
    if not query.tasks:
        problems.append("expected at least one task, got none")
    limit, floor = query.latency_ms, query.min_accuracy
    if limit is not None and not (limit > 0 and math.isfinite(limit)):
        problems.append(f"expected latency_ms > 0, got {limit}")
    if isinstance(floor, Mapping):
        unknown = sorted(floor.keys() - query.tasks)
        if unknown:
            problems.append(f"min_accuracy of {', '.join(unknown)}, which the query does not ask for")
        if query.accuracy_mode is AccuracyMode.AVERAGE:
            problems.append("min_accuracy of single tasks needs accuracy_mode 'per_task'; give one number for 'average'")
    floors = floor.values() if isinstance(floor, Mapping) else [] if floor is None else [floor]
    problems += [f"expected min_accuracy in [0, 1], got {value}" for value in floors if not 0 <= value <= 1]
    if query.budget is Budget.EQUAL and limit is None:
        problems.append("budget 'equal' splits a latency limit, and there is none: give latency_ms")
    return problems
