"""Shortest remaining time first, by measured step times."""

from __future__ import annotations

from math import inf

from schedulers.base import JobView, Quantum, Seconds, Steps
from schedulers.keyed import PreemptiveKeyPolicy
from schedulers.quanta import DEFAULT_QUANTUM, parse_seconds

PROFILE_STEPS = 50  #: of a unit whose step time is not known: its first turn measures it


class ShortestRemainingTimeFirst(PreemptiveKeyPolicy):
    """The unit with the least slot time left first; one that becomes ready and is shorter stops a longer one.

    The number of steps is known, so only the time of a step has to be measured. A unit whose step time is not
    known comes before all others, for a turn of a few steps that measures it.

    Args:
        quantum: Length of a turn, such as ``"2s"`` or ``"500ms"``.

    References:
        Schrage, "A proof of the optimality of the shortest remaining processing time discipline" (1968).
    """

    needs: frozenset[str] = frozenset({"step_seconds"})

    def __init__(self, quantum: str | Seconds = DEFAULT_QUANTUM) -> None:
        self.quantum = parse_seconds(quantum)

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the slot time that is left of the unit, in seconds."""
        left = unit.remaining_seconds
        return (-inf if left is None else left,)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return the quantum, or a few steps if the unit is yet to be measured."""
        return Steps(PROFILE_STEPS) if unit.remaining_seconds is None else self.quantum

    def explain(self, unit: JobView, now: float) -> str:
        """Return what is left of the unit."""
        left = unit.remaining_seconds
        return (
            "its step time is yet to be measured" if left is None else f"{left:.6g} s are left of it; the shortest goes first"
        )
