"""Round robin: everybody in turn, a fixed quantum each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from schedulers.base import (
    JSON,
    Epochs,
    Event,
    Grant,
    JobView,
    Quantum,
    SchedulerConfigError,
    Seconds,
    SlotView,
    Steps,
)
from schedulers.ordering import by_key
from schedulers.rotation import Rotation

_QUANTUM = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>steps?|epochs?|ms|s|)")


class RoundRobin:
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

    needs: frozenset[str] = frozenset()

    def __init__(self, quantum: str | Quantum = "1epoch") -> None:
        self.quantum: Quantum = parse_quantum(quantum) if isinstance(quantum, str) else quantum
        self._rotation = Rotation()

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Grant each idle slot to the unit that has waited longest for a turn."""
        return by_key(ready, slots, key=lambda unit: (self._rotation.place(unit.id),), quantum=self.quantum)

    def on_event(self, event: Event) -> None:
        """Send a unit that arrives or had its turn to the end of the rotation."""
        self._rotation.on_event(event)

    def state_dict(self) -> dict[str, JSON]:
        """Return the rotation as JSON."""
        return self._rotation.state_dict()

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a rotation that ``state_dict`` returned."""
        self._rotation.load_state_dict(state)


def parse_quantum(text: str) -> Quantum:
    """Read the spelling of a quantum; a bare number counts steps.

    >>> parse_quantum("200"), parse_quantum("1epoch"), parse_quantum("500ms")
    (Steps(count=200), Epochs(count=1), Seconds(count=0.5))

    Raises:
        SchedulerConfigError: If it is not a positive number with one of these units.
    """
    match = _QUANTUM.fullmatch(text.strip())
    if match is None or (match["unit"] not in ("s", "ms") and "." in match["count"]):
        raise SchedulerConfigError(f"option 'quantum': expected e.g. 200, 200steps, 1epoch, 2s or 500ms, got {text!r}")
    if match["unit"] in ("s", "ms"):
        return Seconds(float(match["count"]) / (1000 if match["unit"] == "ms" else 1))
    return (Epochs if match["unit"].startswith("epoch") else Steps)(int(match["count"]))
