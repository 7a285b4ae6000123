"""What people wait for, counted in one way everywhere: completion since submission, and slowdown. Free of torch.

The time that a job trained says nothing of how long its owner waited; so it only ever stands beside these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from schedulers.simulation.metrics import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What a list of values comes to; percentiles as the simulator's, one of the values."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return it, or None if there are no values."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
        return cls(mean=fmean(ordered), p50=p50, p95=p95, p99=p99)


def slowdown(completion_seconds: float | None, training_seconds: float) -> float | None:
    """Return how many times as long as its own turns a job took since submission; None of one that has not ended or trained.

    Turns count whole even where several jobs have them together, stacked or co-running: of such a job it is a lower bound.

    >>> slowdown(12.0, 4.0), slowdown(None, 4.0)
    (3.0, None)
    """
    if completion_seconds is None or training_seconds <= 0:
        return None
    return completion_seconds / training_seconds
