"""What the memories of policies share: which event of a unit was the last that counted."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from schedulers.base import JSON, Cancelled, Event, Failed, Finished

MAX_GONE = 1000  #: units that are gone and still remembered: an event is late by seconds, not by a thousand jobs


def numbers_in(state: Mapping[str, JSON]) -> dict[str, float]:
    """Return the numbers by name that are kept in a memory.

    Raises:
        ValueError: If one is none that can be compared and added to; a damaged memory would do harm long after it was read.
    """
    numbers = {str(name): number for name, number in state.items()}
    for name, number in numbers.items():
        if not (isinstance(number, int | float) and isfinite(number)):
            raise ValueError(f"expected a number for {name!r}, got {number!r:.40}")
    return numbers


class Sequences:
    """The number of the last event of each unit.

    That of a unit that is gone stays a while: a late event must not bring it back.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._gone: dict[str, int] = {}  # the longest gone first

    def is_news(self, event: Event) -> bool:
        """Say whether the event is neither repeated nor late, and take note of its number."""
        unit = event.unit_id
        if event.sequence <= self._last.get(unit, self._gone.get(unit, -1)):
            return False
        self._gone.pop(unit, None)
        self._last[unit] = event.sequence
        if isinstance(event, Finished | Failed | Cancelled):
            self._gone[unit] = self._last.pop(unit)
            if len(self._gone) > MAX_GONE:
                del self._gone[next(iter(self._gone))]
        return True

    def state_dict(self) -> dict[str, JSON]:
        """Return the numbers as JSON."""
        return {"last": dict(self._last), "gone": dict(self._gone)}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over numbers that ``state_dict`` returned."""
        self._last = {unit: int(number) for unit, number in state["last"].items()}
        self._gone = {unit: int(number) for unit, number in state["gone"].items()}
