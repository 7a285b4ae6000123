"""First come, first served: in the order of arrival, each to its end."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.base import Grant, JobView, SlotView, UntilDone
from schedulers.ordering import by_key


class FirstComeFirstServed:
    """The paper's "First Come First Serve". A unit whose turn was cut goes on before anybody else begins.

    References:
        UnifiedNN, section "Trainer".
    """

    needs: frozenset[str] = frozenset()

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Grant each idle slot to the unit that came first."""
        return by_key(ready, slots, key=lambda unit: (not unit.has_begun,), quantum=UntilDone())
