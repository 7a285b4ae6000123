"""Aging: another policy's order, moved by age, with a hard limit to how long anybody waits."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.base import JobView, Scheduler, SlotView
from schedulers.ordering import victims_by_key
from schedulers.quanta import parse_number, parse_time, time_text
from schedulers.wrapper import Wrapper


class Aging(Wrapper):
    """The inner policy's first key minus ``weight`` times the unit's age; and who has waited too long is promoted.

    Promoted units come before all others, the longest wait first. The promise: where a promoted unit is ready, no
    unpromoted one *starts*. So nobody goes without service for longer than ``max_wait`` and one turn of each who was
    promoted before.

    Args:
        inner: The policy to age. Its first key should be a time in seconds.
        weight: Seconds of the key that a second of age is worth.
        max_wait: The wait that promotes, such as ``"72h"``.

    Raises:
        SchedulerConfigError: If an option is not spelled so, or ``inner`` has no key.
    """

    def __init__(self, inner: Scheduler, weight: str | float = 0.1, max_wait: str | float = "72h") -> None:
        super().__init__(inner)
        self.weight = parse_number(weight, "weight")
        self.max_wait = parse_time(max_wait, "max_wait")

    def is_promoted(self, unit: JobView, now: float) -> bool:
        """Say whether the unit, which has no turn now, has waited for so long that it comes before all others."""
        return unit.wait_seconds(now) >= self.max_wait

    def wrapped(self, key: tuple[float, ...], unit: JobView, now: float) -> tuple[float, ...]:
        """Return 0 and the wait of a promoted unit, so that the longest comes first; 1 and the aged key of the others."""
        wait = unit.wait_seconds(now)
        if wait >= self.max_wait:
            return (0.0, -wait, *key[1:])
        return self._aged(key, unit, now)

    def victims(
        self, now: float, running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView]
    ) -> list[str]:
        """Name the running units that are less urgent than wanted ones; none, if the inner policy does not preempt."""
        if not self.preempts:
            return []
        has_turn = {unit.id for unit in running}  # these wait for nothing, however long ago their turns began

        def urgency(unit: JobView) -> tuple[float, ...]:
            key = self.inner.urgency(unit, now)
            return self._aged(key, unit, now) if unit.id in has_turn else self.wrapped(key, unit, now)

        return victims_by_key(running, wanted, slots, key=urgency)

    def explain(self, unit: JobView, now: float) -> str:
        """Return the inner policy's reason, and what age adds to it."""
        if self.is_promoted(unit, now):
            waited, limit = time_text(unit.wait_seconds(now)), time_text(self.max_wait)
            return f"it has waited {waited}, {limit} or longer, and so comes before all others"
        age = unit.age_seconds(now)
        return f"{self.inner.explain(unit, now)}; its age of {time_text(age)} counts for {self.weight * age:.3g} less"

    def _aged(self, key: tuple[float, ...], unit: JobView, now: float) -> tuple[float, ...]:
        return (1.0, key[0] - self.weight * (now - unit.submit_time), *key[1:])
