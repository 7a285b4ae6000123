"""Earliest deadline first, with a test at the door: what is accepted is done in time."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import ceil

from schedulers.base import JobView, SlotView
from schedulers.measured import MeasuredPolicy
from schedulers.ordering import in_order
from schedulers.quanta import time_text


class EarliestDeadlineFirst(MeasuredPolicy):
    """The unit with the earliest hard deadline first, then those with soft ones, then those without.

    A unit with a hard deadline is accepted only if it and all that were accepted before it can be in time. The promise
    holds as long as the measured lengths do, and where units may go on on any slot.

    Args:
        quantum: Length of a turn, such as ``"2s"`` or ``"500ms"``.

    References:
        Liu and Layland, "Scheduling algorithms for multiprogramming in a hard-real-time environment" (1973), section 7.
    """

    needs: frozenset[str] = frozenset({"step_seconds", "deadline"})

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return 0, 1 or 2 for a hard, a soft or no deadline, and the deadline."""
        if unit.deadline is None:
            return (2.0, 0.0)
        return (1.0 if unit.is_deadline_soft else 0.0, unit.deadline)

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's deadline and what is left of it."""
        if unit.deadline is None:
            return "it has no deadline; those with one go first"
        kind = "soft deadline" if unit.is_deadline_soft else "deadline"
        left = unit.remaining_seconds
        length = "its step time is yet to be measured" if left is None else f"{time_text(left)} are left of it"
        verb = "is" if unit.deadline >= now else "was"
        return f"its {kind} {verb} {_when(unit.deadline - now)}, {length}; the earliest goes first"

    def refusal(self, now: float, unit: JobView, accepted: Sequence[JobView], slots: Sequence[SlotView]) -> str | None:
        """Run the policy forward with the unit added; say why not and what deadline would be met, or None if all is well.

        Units that are late already, and those of unknown length, are no reason to refuse another.
        """
        if unit.deadline is None or unit.is_deadline_soft:
            return None
        if unit.remaining_seconds is None:
            return "a deadline, but its length is not known: its step time must be measured first"
        hard = [other for other in accepted if other.deadline is not None and not other.is_deadline_soft]
        others = in_order([other for other in hard if other.remaining_seconds is not None], lambda other: self.key(other, now))
        before = _done_at(now, others, len(slots))
        in_time = {other.id for other in others if before[other.id] <= _deadline(other)}
        place = sum(
            (_deadline(other), other.submit_time, other.id) < (unit.deadline, unit.submit_time, unit.id) for other in others
        )
        done = _done_at(now, [*others[:place], unit, *others[place:]], len(slots))
        late = [other for other in others if other.id in in_time and done[other.id] > _deadline(other)]
        if done[unit.id] <= unit.deadline and not late:
            return None
        earliest = _earliest_deadline(now, unit, others, in_time, len(slots))
        why = f"would make {_named(unit, late[0])} late" if late else f"would be met only in {time_text(done[unit.id] - now)}"
        seconds = ceil(100 * (earliest - now) - 1e-6) / 100  # rounded up: it is to be met when it is asked for
        return (
            f"a deadline {_when(unit.deadline - now)} that {why}; "
            f"the earliest deadline that would be met is in {seconds:.12g} s"
        )


def _when(seconds: float) -> str:
    return f"in {time_text(seconds)}" if seconds >= 0 else f"{time_text(-seconds)} ago"


def _named(told: JobView, other: JobView) -> str:
    """Return the name of a unit, if it is of the owners who are told."""
    return other.id if other.user_shares == told.user_shares else "another user's job"


def _earliest_deadline(now: float, unit: JobView, others: Sequence[JobView], in_time: set[str], num_slots: int) -> float:
    """Return the earliest deadline at which the unit is in time and makes none of ``in_time`` late."""
    for place in range(len(others)):
        done = _done_at(now, [*others[:place], unit, *others[place:]], num_slots)
        deadline = max([done[unit.id], *(_deadline(other) for other in others[:place])])
        # at an equal deadline the unit, which came later, would come after the other
        if deadline < _deadline(others[place]) and all(
            done[other.id] <= _deadline(other) for other in others[place:] if other.id in in_time
        ):
            return deadline
    done = _done_at(now, [*others, unit], num_slots)
    return max([done[unit.id], *(_deadline(other) for other in others[-1:])])


def _done_at(now: float, order: Sequence[JobView], num_slots: int) -> dict[str, float]:
    """Return when each unit is done if all are there now: no later one ever stops an earlier one."""
    free_at = [now] * max(1, num_slots)
    heapify(free_at)
    done: dict[str, float] = {}
    for unit in order:
        done[unit.id] = free_at[0] + (unit.remaining_seconds or 0.0)
        heapreplace(free_at, done[unit.id])
    return done


def _deadline(unit: JobView) -> float:
    return float("inf") if unit.deadline is None else unit.deadline
