"""Which calls wait, which run next, and together with which: decided without a thread and without a clock.

Work-conserving: with no ``max_delay`` whatever waits is run as soon as the device is free, and a batch is what came while it
was busy. It grows by itself with the load and costs a lone request nothing, where a fixed delay costs every request the
delay and gains only while the device would have been idle.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

#: Seconds after which a call without a limit, or with a far one, goes before later ones of nearer deadlines.
PATIENCE_SECONDS = 1.0


class Timed(Protocol):
    """What is run, as far as batching must know it."""

    def seconds(self, rows: int) -> float:
        """Predict how long it takes for so many samples."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class Waiting:
    """A call that waits: ``rows`` samples for one variant, never split.

    Attributes:
        key: Calls of one key may run together: the same variant, and inputs of one shape and dtype.
        timed: Predicts how long a batch takes.
        rows: Samples, >= 1.
        arrived: Seconds of the clock.
        deadline: When it must have run, infinite without a limit.
        priority: Higher first.
        order: By which calls are run, smallest first: priority, then earliest deadline.
    """

    key: Hashable
    timed: Timed
    rows: int
    arrived: float
    deadline: float = math.inf
    priority: int = 0
    order: tuple[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self.order = order_of(self.priority, self.deadline, self.arrived)


class QueueFull(Exception):  # noqa: N818 - a state that a client is told, not an error of the program
    """So many rows wait already that this call may not."""


def order_of(priority: int, deadline: float, arrived: float) -> tuple[int, float]:
    """Return by what calls are run, smallest first."""
    return (-priority, min(deadline, arrived + PATIENCE_SECONDS))


W = TypeVar("W", bound=Waiting)


class Batcher(Generic[W]):
    """Queues of calls for one device. All times are seconds of one clock, which the caller reads.

    A batch starts with the most urgent call, and goes on in order of urgency for as long as there are at most ``max_batch``
    rows and nobody who is in it, and would be in time without the next, is made late by it; who may not join starts the next
    batch. With a ``max_delay`` an idle device waits that long for a batch to grow, but never so long that the batch with one
    more row would make one of its calls late (the limit of this rule: a more urgent call that comes while others wait goes
    before them).
    """

    def __init__(self, *, max_batch: int, max_waiting_rows: int, max_delay: float = 0.0, margin: float = 0.0) -> None:
        self._max_batch = max_batch
        self._max_waiting_rows = max_waiting_rows
        self._max_delay = max_delay
        self._margin = margin
        self._queues: dict[Hashable, list[W]] = {}
        self._busy_until = -math.inf
        self.waiting_rows = 0

    def add(self, call: W) -> None:
        """Let a call wait; raises QueueFull if too many rows do."""
        if self.waiting_rows + call.rows > self._max_waiting_rows:
            raise QueueFull
        insort(self._queues.setdefault(call.key, []), call, key=_order)
        self.waiting_rows += call.rows

    def discard(self, call: W) -> bool:
        """Drop a call; return whether it still waited."""
        queue = self._queues.get(call.key, [])
        if call not in queue:
            return False
        queue.remove(call)
        self._left(call.key, queue, call.rows)
        return True

    def clear(self) -> list[W]:
        """Let nothing wait any longer; return what did."""
        calls = [call for queue in self._queues.values() for call in queue]
        self._queues.clear()
        self.waiting_rows = 0
        return calls

    def take(self, now: float) -> list[W]:
        """Return the calls to run together now, which wait no longer; empty if nothing is to run yet."""
        due = [queue for queue in self._queues.values() if self._due_at(queue) <= now]
        if not due:
            return []
        queue = min(due, key=_head_order)
        batch = self._first_batch(queue, now)
        del queue[: len(batch)]
        rows = sum(call.rows for call in batch)
        self._left(batch[0].key, queue, rows)
        self._busy_until = now + batch[0].timed.seconds(rows)
        return batch

    def next_due(self) -> float:
        """Return when :meth:`take` has something, infinite while nothing waits."""
        return min(map(self._due_at, self._queues.values()), default=math.inf)

    def finished(self) -> None:
        """Take note that the batch that ran is done."""
        self._busy_until = -math.inf

    def wait_seconds(self, now: float, order: tuple[int, float]) -> float:
        """Predict how long the device is busy with what goes before a call of this order.

        An upper bound: a call that joins a batch waits less than if that batch ran before it.
        """
        ahead = sum(self._run_seconds(queue) for queue in self._queues.values() if queue[0].order <= order)
        return max(0.0, self._busy_until - now) + ahead

    def _first_batch(self, queue: list[W], now: float) -> list[W]:
        first, *others = queue
        batch, rows, must_end = [first], first.rows, self._must_end(first, now)
        for call in others:
            together = rows + call.rows
            if together > self._max_batch or now + call.timed.seconds(together) + self._margin > must_end:
                break
            batch.append(call)
            rows = together
            must_end = min(must_end, self._must_end(call, now))
        return batch

    def _must_end(self, call: W, now: float) -> float:
        """Return by when its batch must end; a call that is late in any case holds nobody back."""
        is_lost = now + call.timed.seconds(call.rows) + self._margin > call.deadline
        return math.inf if is_lost else call.deadline

    def _due_at(self, queue: list[W]) -> float:
        if not self._max_delay:
            return -math.inf
        rows = sum(call.rows for call in queue)
        if rows >= self._max_batch:
            return -math.inf
        until_late = min(call.deadline for call in queue) - queue[0].timed.seconds(rows + 1) - self._margin
        return min(min(call.arrived for call in queue) + self._max_delay, until_late)

    def _run_seconds(self, queue: list[W]) -> float:
        full, rest = divmod(sum(call.rows for call in queue), self._max_batch)
        timed = queue[0].timed
        return (full * timed.seconds(self._max_batch) if full else 0.0) + (timed.seconds(rest) if rest else 0.0)

    def _left(self, key: Hashable, queue: list[W], rows: int) -> None:
        if not queue:
            del self._queues[key]
        self.waiting_rows -= rows


def _order(call: Waiting) -> tuple[int, float]:
    return call.order


def _head_order(queue: Sequence[Waiting]) -> tuple[int, float]:
    return queue[0].order
