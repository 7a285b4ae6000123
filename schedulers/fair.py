"""Fair share: the owner who has had the least for their weight goes first, and within an owner another policy decides."""

from __future__ import annotations

from collections import Counter

from schedulers.base import (
    JSON,
    Cancelled,
    Event,
    Failed,
    Finished,
    JobView,
    Paused,
    Resumed,
    Scheduler,
    SchedulerConfigError,
    Submitted,
    TurnCut,
    TurnDone,
)
from schedulers.memory import Sequences
from schedulers.passes import Passes
from schedulers.quanta import time_text
from schedulers.wrapper import Wrapper


class FairShare(Wrapper):
    """Stride scheduling over the owners' slot time; the inner policy orders the units of an owner.

    A turn costs its owner its seconds by the unit's weight; a stack costs each owner their share of that. An owner who
    comes, or comes back, starts where the one stands that has had the least of those who have units here.

    Args:
        inner: The policy within an owner.
        by: What an owner is: ``"user"``.

    Raises:
        SchedulerConfigError: If ``by`` is anything else, or ``inner`` has no key.

    References:
        Waldspurger and Weihl, "Stride scheduling: deterministic proportional-share resource management" (1995).
    """

    def __init__(self, inner: Scheduler, by: str = "user") -> None:
        super().__init__(inner)
        if by != "user":
            raise SchedulerConfigError(f"option 'by': expected user, got {by!r}")
        self.needs = self.inner.needs | {"user_shares", "weight"}
        self._passes = Passes()
        self._sequences = Sequences()
        self._owners: dict[str, list[str]] = {}  # of the units that are here
        self._num_units: Counter[str] = Counter()  # that are here, of each owner

    def wrapped(self, key: tuple[float, ...], unit: JobView, now: float) -> tuple[float, ...]:
        """Return the pass of the unit's owner, of several the mean by their shares, then the inner key."""
        return (self._pass_of(unit.user_shares), *key)

    def explain(self, unit: JobView, now: float) -> str:
        """Return what the owner has had, and the inner policy's reason."""
        # a stack's owners are told of the scheduler's choice, and not of each other
        owner = f"owner {unit.user_shares[0][0]!r}" if len(unit.user_shares) == 1 else "owners"
        had = time_text(self._pass_of(unit.user_shares))
        return f"{had} of slot time count for its {owner}, the least goes first; {self.inner.explain(unit, now)}"

    def on_event(self, event: Event) -> None:
        """Charge owners for turns; let them come with their first unit and go with their last."""
        super().on_event(event)
        if not self._sequences.is_news(event):
            return
        if isinstance(event, Submitted | Resumed):
            self._come(event.unit_id, [owner for owner, _ in event.user_shares])
        elif isinstance(event, TurnDone | TurnCut):
            for owner, share in event.user_shares:
                self._passes.charge(owner, share * event.seconds / event.weight)
        elif isinstance(event, Paused | Finished | Failed | Cancelled):
            self._go(event.unit_id)

    def state_dict(self) -> dict[str, JSON]:
        """Return the owners' passes and the inner policy's memory as JSON."""
        return {
            **super().state_dict(),
            "passes": self._passes.state_dict(),
            "owners": {unit: list(owners) for unit, owners in self._owners.items()},
            "sequences": self._sequences.state_dict(),
        }

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a memory that ``state_dict`` returned."""
        super().load_state_dict(state)
        self._passes.load_state_dict(state["passes"])
        self._owners = {unit: list(owners) for unit, owners in state["owners"].items()}
        self._num_units = Counter(owner for owners in self._owners.values() for owner in owners)
        self._sequences.load_state_dict(state["sequences"])

    def _come(self, unit_id: str, owners: list[str]) -> None:
        self._go(unit_id)
        self._owners[unit_id] = owners
        for owner in owners:
            self._num_units[owner] += 1
            self._passes.join(owner)

    def _go(self, unit_id: str) -> None:
        for owner in self._owners.pop(unit_id, []):
            self._num_units[owner] -= 1
            if not self._num_units[owner]:
                self._passes.leave(owner, for_good=False)

    def _pass_of(self, shares: tuple[tuple[str, float], ...]) -> float:
        if len(shares) == 1:  # nearly always, and asked for every unit in every decision
            return self._passes.of(shares[0][0])
        return sum(share * self._passes.of(owner) for owner, share in shares)
