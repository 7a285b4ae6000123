"""What the policies share whose units take turns: a rotation that events move."""

from __future__ import annotations

from schedulers.base import JSON, Event
from schedulers.keyed import KeyPolicy
from schedulers.rotation import Rotation


class RotatingPolicy(KeyPolicy):
    """Base of these policies: who arrives or had a turn goes to the end of the rotation."""

    def __init__(self) -> None:
        self._rotation = Rotation()

    def on_event(self, event: Event) -> None:
        """Send a unit that arrives or had its turn to the end of the rotation."""
        self._rotation.on_event(event)

    def state_dict(self) -> dict[str, JSON]:
        """Return the rotation as JSON."""
        return self._rotation.state_dict()

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a rotation that ``state_dict`` returned."""
        self._rotation.load_state_dict(state)
