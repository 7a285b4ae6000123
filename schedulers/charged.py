"""What the policies share that charge each unit for its turns: units come, pay and go."""

from __future__ import annotations

from schedulers.base import (
    JSON,
    Cancelled,
    Event,
    Failed,
    Finished,
    Paused,
    Resumed,
    Submitted,
    TurnCut,
    TurnDone,
)
from schedulers.keyed import KeyPolicy
from schedulers.memory import Sequences
from schedulers.passes import Passes


class ChargedPolicy(KeyPolicy):
    """Base of these policies: a pass for each unit, which :meth:`price_of` its turns moves on."""

    def __init__(self) -> None:
        self._passes = Passes()
        self._sequences = Sequences()

    def price_of(self, turn: TurnDone | TurnCut) -> float:
        """Return by how much a turn moves its unit's pass on."""
        raise NotImplementedError

    def on_event(self, event: Event) -> None:
        """Charge a unit for its turns; let it come and go."""
        if not self._sequences.is_news(event):
            return
        if isinstance(event, Submitted | Resumed):
            self._passes.join(event.unit_id)
        elif isinstance(event, TurnDone | TurnCut):
            self._passes.charge(event.unit_id, self.price_of(event))
        elif isinstance(event, Paused | Finished | Failed | Cancelled):
            self._passes.leave(event.unit_id, for_good=not isinstance(event, Paused))

    def state_dict(self) -> dict[str, JSON]:
        """Return the passes as JSON."""
        return {"passes": self._passes.state_dict(), "sequences": self._sequences.state_dict()}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over passes that ``state_dict`` returned."""
        self._passes.load_state_dict(state["passes"])
        self._sequences.load_state_dict(state["sequences"])
