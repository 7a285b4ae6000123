"""The turns under way: when each began and at which step, and so how long a step takes. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

MIN_TIMED_STEPS = 10  #: a turn's step time is known after so many


@dataclass(slots=True)
class Turns:
    """Turns under way, by job."""

    _begun: dict[str, tuple[float, int]] = field(default_factory=dict)

    def begin(self, job: str, now: float, step: int) -> None:
        """Note that a turn begins; again once it is known at which step it really does."""
        self._begun[job] = now, step

    def is_under_way(self, job: str) -> bool:
        """Whether the job has a turn."""
        return job in self._begun

    def end(self, job: str, now: float, step: int) -> tuple[float, int]:
        """Return how many seconds and steps the turn that ends now has lasted."""
        began, first_step = self._begun.pop(job)
        return now - began, max(0, step - first_step)

    def seconds(self, job: str, now: float) -> float:
        """Return for how long the job's turn has lasted, 0 without one."""
        began, _ = self._begun.get(job, (now, 0))
        return now - began

    def step_seconds(self, job: str, now: float, step: int) -> float | None:
        """Return the seconds of a step in the turn under way, evaluations between steps included; None before a few."""
        began, first_step = self._begun.get(job, (now, step))
        steps = step - first_step
        return (now - began) / steps if steps >= MIN_TIMED_STEPS else None
