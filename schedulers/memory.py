"""What the memories of policies share: which event of a unit was the last that counted."""

from __future__ import annotations

from schedulers.base import JSON, Event


class Sequences:
    """The number of the last event of each unit. They stay: a late event must not bring back a unit that is gone."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def is_news(self, event: Event) -> bool:
        """Say whether the event is neither repeated nor late, and take note of its number."""
        if event.sequence <= self._last.get(event.unit_id, -1):
            return False
        self._last[event.unit_id] = event.sequence
        return True

    def state_dict(self) -> dict[str, JSON]:
        """Return the numbers as JSON."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over numbers that ``state_dict`` returned."""
        self._last = {unit: int(number) for unit, number in state.items()}
