"""Stride: who has had the least for their weight goes first, counted from when they came."""

from __future__ import annotations

from schedulers.base import (
    JSON,
    Cancelled,
    Event,
    Failed,
    Finished,
    JobView,
    Paused,
    Quantum,
    Resumed,
    Seconds,
    Submitted,
    TurnCut,
    TurnDone,
)
from schedulers.keyed import KeyPolicy
from schedulers.memory import Sequences
from schedulers.passes import Passes
from schedulers.quanta import DEFAULT_QUANTUM, parse_seconds, time_text


class Stride(KeyPolicy):
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
        self.quantum = parse_seconds(quantum)
        self._passes = Passes()
        self._sequences = Sequences()

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's pass: its slot time by its weight, and where it started."""
        return (self._passes.of(unit.id),)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return the quantum, everybody's."""
        return self.quantum

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's pass and weight."""
        had = time_text(self._passes.of(unit.id))
        return f"{had} of slot time count for it at weight {unit.weight:g}; the least goes first"

    def on_event(self, event: Event) -> None:
        """Charge a unit for its turns; let it come and go."""
        if not self._sequences.is_news(event):
            return
        if isinstance(event, Submitted | Resumed):
            self._passes.join(event.unit_id)
        elif isinstance(event, TurnDone | TurnCut):
            self._passes.charge(event.unit_id, event.seconds / event.weight)
        elif isinstance(event, Paused | Finished | Failed | Cancelled):
            self._passes.leave(event.unit_id, for_good=not isinstance(event, Paused))

    def state_dict(self) -> dict[str, JSON]:
        """Return the passes as JSON."""
        return {"passes": self._passes.state_dict(), "sequences": self._sequences.state_dict()}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over passes that ``state_dict`` returned."""
        self._passes.load_state_dict(state["passes"])
        self._sequences.load_state_dict(state["sequences"])
