"""Stride scheduling's accounts: who has had how much of their share, so that nobody hoards credit while away."""

from __future__ import annotations

from schedulers.base import JSON
from schedulers.memory import numbers_in


class Passes:
    """A pass for each name: its service by its weight, counted from the least pass among those present when it came.

    Who comes back starts at the least pass among those present too, or where they were if that is more: neither
    credit nor debt is lost by a short absence, and nobody saves credit by a long one.

    References:
        Waldspurger and Weihl, "Stride scheduling" (1995), section 2.2, with the start of Goyal et al., "Start-time
        fair queuing" (1996).
    """

    def __init__(self) -> None:
        self._present: dict[str, float] = {}
        self._absent: dict[str, float] = {}
        self._least = 0.0

    def of(self, name: str) -> float:
        """Return the name's pass: what it would start at, if it is not present."""
        if name in self._present:
            return self._present[name]
        return max(self._absent.get(name, 0.0), self._least)

    def join(self, name: str) -> None:
        """Let the name be present, at the least pass among the present or above."""
        if name not in self._present:
            self._present[name] = self.of(name)
            self._absent.pop(name, None)

    def charge(self, name: str, amount: float) -> None:
        """Add service, by weight, to the name's pass; it need not be present."""
        before = self.of(name)
        passes = self._present if name in self._present else self._absent
        passes[name] = before + amount
        self._move_on(before)

    def leave(self, name: str, *, for_good: bool) -> None:
        """Let the name be absent, and forget its pass if it is gone ``for_good``."""
        pass_ = self._present.pop(name, None)
        if for_good:
            self._absent.pop(name, None)
        elif pass_ is not None:
            self._absent[name] = pass_
        if pass_ is not None:
            self._move_on(pass_)

    def state_dict(self) -> dict[str, JSON]:
        """Return the accounts as JSON."""
        return {"present": dict(self._present), "absent": dict(self._absent), "least": self._least}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over accounts that ``state_dict`` returned."""
        present, absent = numbers_in(state["present"]), numbers_in(state["absent"])
        [self._least] = numbers_in({"least": state["least"]}).values()
        self._present, self._absent = present, absent

    def _move_on(self, changed: float) -> None:
        """Raise the least pass, if the pass that went up or away may have been it; with nobody present it stays."""
        if self._present and changed <= self._least:
            self._least = max(self._least, min(self._present.values()))
