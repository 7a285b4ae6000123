"""What the policies share that go by the slot time which a unit still needs."""

from __future__ import annotations

from schedulers.base import JobView, Quantum, Seconds, Steps
from schedulers.keyed import PreemptiveKeyPolicy
from schedulers.quanta import DEFAULT_QUANTUM, parse_seconds

PROFILE_STEPS = 50  #: of a unit whose step time is not known: its first turn measures it


class MeasuredPolicy(PreemptiveKeyPolicy):
    """Base of these policies: turns of a given time, or of a few steps for a unit that is yet to be measured.

    Args:
        quantum: Length of a turn, such as ``"2s"`` or ``"500ms"``.
    """

    needs: frozenset[str] = frozenset({"step_seconds"})

    def __init__(self, quantum: str | Seconds = DEFAULT_QUANTUM) -> None:
        self.quantum = parse_seconds(quantum)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return the quantum, or a few steps if the unit is yet to be measured."""
        return Steps(PROFILE_STEPS) if unit.remaining_seconds is None else self.quantum
