"""Priority: the lowest value first, equal values share by round robin."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.base import JSON, Epochs, Event, Grant, JobView, SlotView
from schedulers.ordering import by_key
from schedulers.rotation import Rotation


class Priority:
    """The paper's "Priority Scheduling" by epochs: a more urgent arrival waits for the end of one.

    References:
        UnifiedNN, section "Trainer".
    """

    needs: frozenset[str] = frozenset({"priority"})

    def __init__(self) -> None:
        self._rotation = Rotation()

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Grant each idle slot to the unit of the lowest value; of equals, to the one that waited longest."""
        return by_key(ready, slots, key=lambda unit: (unit.priority, self._rotation.place(unit.id)), quantum=Epochs(1))

    def on_event(self, event: Event) -> None:
        """Send a unit that arrives or had its turn to the end of the rotation."""
        self._rotation.on_event(event)

    def state_dict(self) -> dict[str, JSON]:
        """Return the rotation as JSON."""
        return self._rotation.state_dict()

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a rotation that ``state_dict`` returned."""
        self._rotation.load_state_dict(state)
