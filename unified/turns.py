"""The turns under way: when each began and at which step; and how long a step takes. Free of torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

NUM_INTERVALS = 25  #: between reports, a quarter of a second each: what is older says little of the steps to come


@dataclass(slots=True)
class StepTimes:
    """How long the steps of a job took lately, from one report to the next; of a stack, the steps of all its members.

    The median leaves out the intervals in which something else happened: an evaluation, a checkpoint, a job that was hosted.
    """

    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_INTERVALS))

    def add(self, seconds: float, steps: int) -> None:
        """Note that so many steps took so long; nothing, if there were none."""
        if steps > 0 and seconds > 0:
            self._recent.append(seconds / steps)

    @property
    def typical(self) -> float | None:
        """Seconds of a step; None before the first."""
        return median(self._recent) if self._recent else None


@dataclass(slots=True)
class Turns:
    """Turns under way, by job."""

    _begun: dict[str, tuple[float, int]] = field(default_factory=dict)
    _seen: dict[str, tuple[float, int]] = field(default_factory=dict)

    def begin(self, job: str, now: float, step: int) -> None:
        """Note that a turn begins; again once it is known at which step it really does."""
        self._begun[job] = self._seen[job] = now, step

    def is_under_way(self, job: str) -> bool:
        """Whether the job has a turn."""
        return job in self._begun

    def interval(self, job: str, now: float, step: int) -> tuple[float, int]:
        """Return the seconds and the steps since the last report of the job's turn, which is now at ``step``."""
        since, last_step = self._seen.get(job, (now, step))
        if job in self._begun:
            self._seen[job] = now, step
        return now - since, max(0, step - last_step)

    def end(self, job: str, now: float, step: int) -> tuple[float, int]:
        """Return how many seconds and steps the turn that ends now has lasted."""
        began, first_step = self._begun.pop(job)
        self._seen.pop(job)
        return now - began, max(0, step - first_step)

    def seconds(self, job: str, now: float) -> float:
        """Return for how long the job's turn has lasted, 0 without one."""
        began, _ = self._begun.get(job, (now, 0))
        return now - began
