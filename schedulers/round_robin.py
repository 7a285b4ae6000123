"""Round robin: everybody in turn, a fixed quantum each."""

from __future__ import annotations

from schedulers.base import JobView, Quantum
from schedulers.quanta import parse_quantum, time_text
from schedulers.rotating import RotatingPolicy


class RoundRobin(RotatingPolicy):
    """The paper's "Round Robin", where a turn is one epoch and nobody is interrupted.

    Where we differ: the quantum may also be a number of steps or a time, since epochs of very different
    length are unfair to the short ones.

    Args:
        quantum: Length of a turn: a quantum, or its spelling such as ``"200"``, ``"200steps"``, ``"1epoch"``,
            ``"2s"`` or ``"500ms"``.

    Raises:
        SchedulerConfigError: If the spelling is none of these.

    References:
        UnifiedNN, section "Trainer".
    """

    def __init__(self, quantum: str | Quantum = "1epoch") -> None:
        self.quantum = parse_quantum(quantum)
        super().__init__()

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's place in the rotation: the least has waited longest for a turn."""
        return (self._rotation.place(unit.id),)

    def explain(self, unit: JobView, now: float) -> str:
        """Return for how long the unit has waited for its turn."""
        return f"it has waited {time_text(unit.wait_seconds(now))} for its turn; everybody gets one before it comes again"
