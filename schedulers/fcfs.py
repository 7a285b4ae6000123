"""First come, first served: in the order of arrival, each to its end."""

from __future__ import annotations

from schedulers.base import JobView
from schedulers.keyed import KeyPolicy
from schedulers.quanta import time_text


class FirstComeFirstServed(KeyPolicy):
    """The paper's "First Come First Serve". A unit whose turn was cut goes on before anybody else begins.

    References:
        UnifiedNN, section "Trainer".
    """

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return 0 for a unit that has begun, 1 for the others; of equals, the first that came goes first."""
        return (0.0 if unit.has_begun else 1.0,)

    def explain(self, unit: JobView, now: float) -> str:
        """Return when the unit came."""
        return f"it came {time_text(unit.age_seconds(now))} ago; those that came earlier go first"
