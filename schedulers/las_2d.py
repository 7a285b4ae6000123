"""Discretised least attained service: queues by the slot time that units have had, in order of arrival within a queue."""

from __future__ import annotations

from bisect import bisect_right
from math import inf
from statistics import median

from schedulers.base import (
    JSON,
    Cancelled,
    Event,
    Failed,
    Finished,
    JobView,
    SchedulerConfigError,
    Seconds,
    TurnCut,
    TurnDone,
)
from schedulers.keyed import PreemptiveKeyPolicy
from schedulers.memory import Sequences, numbers_in
from schedulers.quanta import DEFAULT_QUANTUM, parse_number, parse_seconds, parse_time, time_text

_NUM_REMEMBERED = 1000  #: finished units that the learnt thresholds go by, the latest ones
_FACTORS = (1.0, 10.0, 100.0)


class DiscretisedLeastAttainedService(PreemptiveKeyPolicy):
    """The queue of units with the least slot time behind them first; within a queue, first come, first served.

    A unit's queue is the number of thresholds that the slot time it has had reaches. So short units go first as under
    ``las``, but two long ones do not take turns without end. Where we differ from the paper: each unit takes one slot,
    so its service is slot time alone.

    Args:
        thresholds: Slot times, rising, such as ``"60s/10min/2h"``; None to learn them: the median of what finished
            units had, 10 and 100 times as much (and until one has finished, the quantum in place of the median).
        promote: A unit that has waited for longer than this many times what it has had is back in the first queue,
            for its next turn; None to leave it where it is.
        quantum: Length of a turn, such as ``"2s"`` or ``"500ms"``.

    Raises:
        SchedulerConfigError: If an option is not spelled so.

    References:
        Gu et al., "Tiresias: a GPU cluster manager for distributed deep learning" (NSDI 2019), section 3.2.
    """

    needs: frozenset[str] = frozenset({"attained_seconds"})

    def __init__(
        self,
        thresholds: str | tuple[float, ...] | None = None,
        promote: str | float | None = None,
        quantum: str | Seconds = DEFAULT_QUANTUM,
    ) -> None:
        self.quantum = given = parse_seconds(quantum)
        self._first_guess = given.count  # at the median of what units need
        self._given = None if thresholds is None else _parse_thresholds(thresholds)
        self._promote = inf if promote is None else parse_number(promote, "promote")
        self._sequences = Sequences()
        self._attained: dict[str, float] = {}
        self._finished: list[float] = []
        self._learn()

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the number of the unit's queue."""
        if self._is_promoted(unit, now):
            return (0.0,)
        return (float(bisect_right(self.thresholds, unit.attained_seconds)),)

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's queue and why it is there."""
        if self._is_promoted(unit, now):
            return f"it is back in queue 0, for it has waited {time_text(unit.wait_seconds(now))}; the least queue goes first"
        limits = "/".join(map(time_text, self.thresholds))
        [queue] = self.key(unit, now)
        had = time_text(unit.attained_seconds)
        return f"it is in queue {queue:.0f}, having had {had} (limits {limits}); the least goes first"

    def on_event(self, event: Event) -> None:
        """Add up what each unit has, and learn from one that finished."""
        if not self._sequences.is_news(event):
            return
        if isinstance(event, TurnDone | TurnCut):
            self._attained[event.unit_id] = self._attained.get(event.unit_id, 0.0) + event.seconds
        elif isinstance(event, Finished):
            self._finished = [*self._finished, self._attained.pop(event.unit_id, 0.0)][-_NUM_REMEMBERED:]
            self._learn()
        elif isinstance(event, Failed | Cancelled):
            self._attained.pop(event.unit_id, None)

    def state_dict(self) -> dict[str, JSON]:
        """Return what units have had, and what finished ones had, as JSON."""
        return {
            "attained": dict(self._attained),
            "finished": list(self._finished),
            "sequences": self._sequences.state_dict(),
        }

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over what ``state_dict`` returned."""
        attained = numbers_in(state["attained"])
        self._finished = list(numbers_in({str(place): had for place, had in enumerate(state["finished"])}).values())
        self._attained = attained
        self._sequences.load_state_dict(state["sequences"])
        self._learn()

    def _is_promoted(self, unit: JobView, now: float) -> bool:
        return unit.wait_seconds(now) > self._promote * unit.attained_seconds > 0

    def _learn(self) -> None:
        middle = median(self._finished) if self._finished else self._first_guess
        self.thresholds = self._given or tuple(factor * middle for factor in _FACTORS)


def _parse_thresholds(thresholds: str | tuple[float, ...]) -> tuple[float, ...]:
    parts = thresholds.split("/") if isinstance(thresholds, str) else thresholds
    limits = tuple(parse_time(part, "thresholds") for part in parts)
    if not limits or limits != tuple(sorted(set(limits))) or limits[0] <= 0:
        raise SchedulerConfigError(f"option 'thresholds': expected rising times such as 60s/10min/2h, got {thresholds!r}")
    return limits
