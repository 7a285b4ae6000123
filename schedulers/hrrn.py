"""Highest response ratio next, preemptive: short units first, and those that are long overdue for their length."""

from __future__ import annotations

from math import inf

from schedulers.base import JobView
from schedulers.measured import MeasuredPolicy
from schedulers.quanta import time_text


class HighestResponseRatioNext(MeasuredPolicy):
    """Least ``left / (age + whole)`` first: what is left of a unit against its age and its whole length.

    Where we differ: the original rule waits for the end of a job and takes the greatest ``(age + whole) / whole``.
    Ours compares what is left, so a unit that is nearly done goes first, and a more urgent arrival stops another.

    References:
        Brinch Hansen, "An analysis of response ratio scheduling" (1971).
    """

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return what is left of the unit, as a part of its age and its length."""
        left, whole = unit.remaining_seconds, unit.whole_seconds
        if left is None or whole is None:
            return (-inf,)
        if not 0 < left < inf:
            return (left,)
        return (left / (unit.age_seconds(now) + (whole or left)),)  # an estimate of 0 that was overrun says nothing

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's ratio and what it is made of."""
        left = unit.remaining_seconds
        if left is None:
            return "its step time is yet to be measured"
        [ratio] = self.key(unit, now)
        age = time_text(unit.age_seconds(now))
        return f"{time_text(left)} left / ({age} of age + length) = {ratio:.3g}; the least ratio goes first"
