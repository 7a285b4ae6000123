"""What is known of jobs that step as one: whether it is allowed, how fast it was, and what was refused. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from schedulers.base import Quantum
from unified.grouping import MAX_SIZE
from unified.ledger import JobRecord
from unified.messages import RunTurn, StackFormed, StackRefused

Kind = tuple[str, int | None]  #: stack key and threads


@dataclass(slots=True, kw_only=True)
class Stacks:
    """The memory of a run's stacks.

    Attributes:
        is_on: Whether jobs are stacked at all.
        least_speedup: They step as one if that is more than so many times faster than side by side.
        max_size: Most jobs of a stack.
    """

    is_on: bool = True
    least_speedup: float = 1.1
    max_size: int = MAX_SIZE
    _speedups: dict[Kind, dict[int, float]] = field(default_factory=dict)
    _least_sizes: dict[Kind, float] = field(default_factory=dict)

    def kind_of(self, record: JobRecord) -> Kind | None:
        """Return what a job has in common with those it may step as one with; None if it steps by itself."""
        key = record.submission.stack_key
        if not self.is_on or key is None or record.needs_own_slot or record.suspected_beside or record.shared_turns:
            return None
        return key, record.num_threads

    def group_key(self, record: JobRecord, num_threads: int | None) -> str | None:
        """Return what is equal for jobs that may be in one stack: kind, priority, and the user of those who keep to theirs.

        None for a job that steps by itself.
        """
        kind = self.kind_of(record)
        if kind is None:
            return None
        key = f"{kind[0]} {num_threads} {record.submission.spec.priority}"
        return f"{key} of {record.user!r}" if record.keeps_to_its_user else key

    def turn_of(self, records: Sequence[JobRecord], quantum: Quantum) -> RunTurn:
        """Return the command to train these jobs, as one if there are several and that pays."""
        kind = self.kind_of(records[0]) if len(records) > 1 else None
        return RunTurn(
            job=records[0].name,
            quantum=quantum,
            companions=tuple(record.name for record in records[1:]),
            speedup=None if kind is None else self.speedup(kind, len(records)),
            least_speedup=self.least_speedup,
        )

    def speedup(self, kind: Kind, size: int) -> float | None:
        """Return what was measured of such a stack of about that size: half to twice as large."""
        near = {other: value for other, value in self._speedups.get(kind, {}).items() if other < 2 * size and size < 2 * other}
        return near[min(near, key=lambda other: abs(other - size))] if near else None

    def least_size(self, kind: Kind) -> float:
        """Return the size from which a stack is to be tried: a refused one only when it is twice as large."""
        return self._least_sizes.get(kind, 2)

    def note(self, members: Sequence[JobRecord], report: StackFormed | StackRefused) -> None:
        """Take note of what a worker says of these jobs."""
        if isinstance(report, StackRefused):
            self.refuse(members, report.speedup)
            return
        for kind in filter(None, map(self.kind_of, members[:1])):
            self._speedups.setdefault(kind, {})[len(members)] = report.speedup

    def refuse(self, members: Sequence[JobRecord], speedup: float | None) -> None:
        """Form no such stack again, unless it was only too slow for its size."""
        for kind in filter(None, map(self.kind_of, members[:1])):
            least = inf if speedup is None else 2 * len(members)
            self._least_sizes[kind] = max(least, self.least_size(kind))
