"""Policies that only order: a key for each unit, and everything else from it."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.base import Grant, JobView, Quantum, SlotView, UntilDone
from schedulers.ordering import by_key, victims_by_key


class KeyPolicy:
    """Base of the policies that grant the units with the least key first. Ties go by submit time, then by id.

    A subclass has :meth:`key` and, unless each unit runs to its end, ``quantum`` or :meth:`quantum_of`. The wrappers
    (:mod:`schedulers.aging`, :mod:`schedulers.fair`) hold such a policy and change its key.

    Attributes:
        needs: Fields of ``JobView`` that it decides by.
        quantum: Length of everybody's turns.
        preempts: A unit that becomes ready takes the place of a running one that is less urgent.
    """

    needs: frozenset[str] = frozenset()
    quantum: Quantum = UntilDone()
    preempts: bool = False

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return what the unit is ordered by, least first: a tuple of numbers, as long for every unit. Pure."""
        raise NotImplementedError

    def urgency(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the part of the key for which a running unit is stopped: all of it, unless overridden."""
        return self.key(unit, now)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return how long a turn of the unit lasts."""
        return self.quantum

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Grant the slots that have room to the units with the least key."""
        return by_key(ready, slots, key=lambda unit: self.key(unit, now), quantum=self.quantum_of)

    def victims(
        self, now: float, running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView]
    ) -> list[str]:
        """Name the running units that are less urgent than wanted ones; none, if the policy does not preempt."""
        if not self.preempts:
            return []
        return victims_by_key(running, wanted, slots, key=lambda unit: self.urgency(unit, now))

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's key in words."""
        numbers = ", ".join(f"{number:.6g}" for number in self.key(unit, now))
        return f"its key is ({numbers}); the least goes first"


class PreemptiveKeyPolicy(KeyPolicy):
    """One where a unit that becomes ready takes the place of a running one with a greater key."""

    preempts = True
