"""Round robin: everybody in turn, a fixed quantum each."""

from __future__ import annotations

from schedulers.base import JSON, Event, JobView, Quantum
from schedulers.keyed import KeyPolicy
from schedulers.quanta import parse_quantum, time_text
from schedulers.rotation import Rotation


class RoundRobin(KeyPolicy):
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
        self._rotation = Rotation()

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's place in the rotation: the least has waited longest for a turn."""
        return (self._rotation.place(unit.id),)

    def explain(self, unit: JobView, now: float) -> str:
        """Return for how long the unit has waited for its turn."""
        return f"it has waited {time_text(unit.wait_seconds(now))} for its turn; everybody gets one before it comes again"

    def on_event(self, event: Event) -> None:
        """Send a unit that arrives or had its turn to the end of the rotation."""
        self._rotation.on_event(event)

    def state_dict(self) -> dict[str, JSON]:
        """Return the rotation as JSON."""
        return self._rotation.state_dict()

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a rotation that ``state_dict`` returned."""
        self._rotation.load_state_dict(state)
