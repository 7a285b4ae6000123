"""Whose turn it is when units take turns: the memory of the policies that rotate."""

from __future__ import annotations

from schedulers.base import JSON, Cancelled, Event, Failed, Finished, Submitted, TurnDone
from schedulers.memory import Sequences, numbers_in


class Rotation:
    """A queue of units as places: who arrives or has had a turn goes to its end; nothing else moves anybody.

    So a unit whose turn was cut, by a pause or a lost worker, is where it was. One that it was never told of
    stands at the front.
    """

    def __init__(self) -> None:
        self._end = 0
        self._places: dict[str, int] = {}
        self._sequences = Sequences()

    def place(self, unit_id: str) -> int:
        """Return where the unit stands; the least has waited longest."""
        return self._places.get(unit_id, 0)

    def on_event(self, event: Event) -> None:
        """Take note of an event, unless it is repeated or late."""
        if not self._sequences.is_news(event):
            return
        if isinstance(event, Submitted | TurnDone):
            self._end += 1
            self._places[event.unit_id] = self._end
        elif isinstance(event, Finished | Failed | Cancelled):
            self._places.pop(event.unit_id, None)

    def state_dict(self) -> dict[str, JSON]:
        """Return the queue as JSON."""
        return {"end": self._end, "places": dict(self._places), "sequences": self._sequences.state_dict()}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a queue that ``state_dict`` returned."""
        places = {unit: int(place) for unit, place in numbers_in(state["places"]).items()}
        self._end = int(state["end"])
        self._places = places
        self._sequences.load_state_dict(state["sequences"])
