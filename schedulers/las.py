"""Least attained service: who has had the least slot time goes first. Needs no estimates."""

from __future__ import annotations

from schedulers.base import JobView, Seconds
from schedulers.keyed import PreemptiveKeyPolicy
from schedulers.quanta import DEFAULT_QUANTUM, parse_seconds, time_text


class LeastAttainedService(PreemptiveKeyPolicy):
    """The unit with the least slot time behind it first; a newcomer stops whoever has had the most.

    Args:
        quantum: Length of a turn, such as ``"2s"`` or ``"500ms"``.

    References:
        Rai, Urvoy-Keller and Biersack, "Analysis of LAS scheduling for job size distributions with high variance" (2003).
    """

    needs: frozenset[str] = frozenset({"attained_seconds"})

    def __init__(self, quantum: str | Seconds = DEFAULT_QUANTUM) -> None:
        self.quantum = parse_seconds(quantum)

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the slot time that the unit has had, in seconds."""
        return (unit.attained_seconds,)

    def explain(self, unit: JobView, now: float) -> str:
        """Return what the unit has had."""
        return f"it has had {time_text(unit.attained_seconds)} of a slot; who had the least goes first"
