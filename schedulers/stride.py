"""Stride: who has had the least for their weight goes first, counted from when they came."""

from __future__ import annotations

from schedulers.base import JobView, Seconds, TurnCut, TurnDone
from schedulers.charged import ChargedPolicy
from schedulers.quanta import DEFAULT_QUANTUM, parse_seconds, time_text


class Stride(ChargedPolicy):
    """Equal shares of the slots for units of equal weight, by the slot time that they have had since they came.

    A newcomer starts where the one stands that has had the least of those there, so it does not first catch up with
    what the others had before.

    Args:
        quantum: Length of a turn, such as ``"2s"`` or ``"500ms"``.

    References:
        Waldspurger and Weihl, "Stride scheduling: deterministic proportional-share resource management" (1995).
    """

    needs: frozenset[str] = frozenset({"weight"})

    def __init__(self, quantum: str | Seconds = DEFAULT_QUANTUM) -> None:
        super().__init__()
        self.quantum = parse_seconds(quantum)

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's pass: its slot time by its weight, and where it started."""
        return (self._passes.of(unit.id),)

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's pass and weight."""
        had = time_text(self._passes.of(unit.id))
        return f"{had} of slot time count for it at weight {unit.weight:g}; the least goes first"

    def price_of(self, turn: TurnDone | TurnCut) -> float:
        """Return the slot time of a turn, by the unit's weight."""
        return turn.seconds / turn.weight
