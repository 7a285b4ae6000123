"""Shortest remaining time first, by measured step times."""

from __future__ import annotations

from math import inf

from schedulers.base import JobView
from schedulers.measured import MeasuredPolicy
from schedulers.quanta import time_text


class ShortestRemainingTimeFirst(MeasuredPolicy):
    """The unit with the least slot time left first; one that becomes ready and is shorter stops a longer one.

    The number of steps is known, so only the time of a step has to be measured. A unit whose step time is not
    known comes before all others, for a turn of a few steps that measures it.

    References:
        Schrage, "A proof of the optimality of the shortest remaining processing time discipline" (1968).
    """

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the slot time that is left of the unit, in seconds."""
        left = unit.remaining_seconds
        return (-inf if left is None else left,)

    def explain(self, unit: JobView, now: float) -> str:
        """Return what is left of the unit."""
        left = unit.remaining_seconds
        if left is None:
            return "its step time is yet to be measured"
        return f"{time_text(left)} are left of it; the shortest goes first"
