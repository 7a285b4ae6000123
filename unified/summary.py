"""What a run came to: follows all its events, for ``summary.json``, the tables and the live view."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from unified.accounting import Spread
from unified.events import Event, JobEvent, MemorySampled, RunStarted, StackFormed, TurnStarted, WorkerLost
from unified.job_state import JobState
from unified.progress import JobProgress

_S = JobState
#: What a listener can tell of a run's jobs: between two of these, the others are too short to see.
_TOLD = (_S.QUEUED, _S.RUNNING, _S.PAUSED, _S.FINISHED, _S.FAILED, _S.CANCELLED)


class Summary:
    """A listener that keeps a :class:`~unified.progress.JobProgress` per job and the figures of the run.

    Attributes:
        jobs: Job name to its progress, in order of submission.
        now: Time of the latest event, in seconds since the run began.
        num_events: How many events there were.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, JobProgress] = {}
        self.now = 0.0
        self.num_events = 0
        self.started: RunStarted | None = None
        self.startup_seconds: float | None = None
        self.bytes_in_use: int | None = None
        self.peak_bytes: int | None = None
        self.num_workers_lost = 0
        self._actions: dict[type[Event], Callable[[Any], None]] = {
            RunStarted: self._run_started,
            MemorySampled: self._memory_sampled,
            WorkerLost: self._worker_lost,
        }

    def __call__(self, event: Event) -> None:
        """Take note of ``event``."""
        self.num_events += 1
        self.now = max(self.now, event.at)
        if isinstance(event, JobEvent):
            job = self.jobs.get(event.job)
            if job is None:
                job = self.jobs[event.job] = JobProgress(name=event.job, submitted_at=event.at)
            job.follow(event)
            if isinstance(event, StackFormed):
                self._stack_formed(event)
            if self.startup_seconds is None and type(event) is TurnStarted:
                self.startup_seconds = event.at
        elif (note := self._actions.get(type(event))) is not None:
            note(event)

    def count(self, state: JobState) -> int:
        """Return how many jobs are in ``state``."""
        return sum(job.state is state for job in self.jobs.values())

    @property
    def makespan_seconds(self) -> float:
        """Seconds from the start of the run to the end of its last job; to the latest event if some go on."""
        ends = [job.ended_at for job in self.jobs.values()]
        known = [end for end in ends if end is not None]
        return max(known) if known and len(known) == len(ends) else self.now

    def completions(self) -> Spread | None:
        """Return seconds from submission to the end, over the jobs that this run finished; None if there are none."""
        return Spread.of(job.finished.completion_seconds for job in self._trained() if job.finished)

    def slowdowns(self) -> Spread | None:
        """Return the slowdown (:func:`unified.accounting.slowdown`) over the jobs that this run finished, likewise."""
        return Spread.of(job.slowdown for job in self._trained() if job.slowdown is not None)

    def _trained(self) -> list[JobProgress]:
        """Return the finished jobs but for those that an earlier run finished, which this one goes on from."""
        return [job for job in self.jobs.values() if job.finished and job.turns]

    def to_json(self, command: Sequence[str] = ()) -> dict[str, Any]:
        """Return what ``summary.json`` holds, its sweeps aside: plain JSON, every number finite (others are null).

        Args:
            command: The command line of the run.
        """
        run = {
            "command": list(command),
            "scheduler": self.started.scheduler if self.started else None,
            "slots": list(self.started.slots) if self.started else [],
            "plan": self.started.plan if self.started else None,
            "startup_seconds": self.startup_seconds,
            "makespan_seconds": self.makespan_seconds,
            "completion_seconds": _spread(self.completions()),
            "slowdown": _spread(self.slowdowns()),
            "peak_bytes": self.peak_bytes,
            "num_jobs": len(self.jobs),
            **{f"num_{state}": self.count(state) for state in _TOLD},
            "num_workers_lost": self.num_workers_lost,
            "versions": versions(),
        }
        jobs = {name: job.to_json(self.now) for name, job in self.jobs.items()}
        return finite({"run": run, "jobs": jobs})

    def stacks(self) -> list[tuple[str, ...]]:
        """Return the stacks that have a turn just now, each by those of its members that still are in it."""
        found: dict[tuple[str, ...], list[str]] = {}
        for job in self.jobs.values():
            if job.stack:
                found.setdefault(job.stack, []).append(job.name)
        return [tuple(names) for names in found.values() if len(names) > 1]

    def _stack_formed(self, event: StackFormed) -> None:
        for name in event.members:
            if name in self.jobs:
                self.jobs[name].join_stack(event)

    def _run_started(self, event: RunStarted) -> None:
        self.started = event

    def _memory_sampled(self, event: MemorySampled) -> None:
        self.bytes_in_use = event.bytes_in_use
        self.peak_bytes = max(self.peak_bytes or 0, event.bytes_in_use)

    def _worker_lost(self, event: WorkerLost) -> None:
        self.num_workers_lost += 1
        for name in event.jobs:
            if name in self.jobs:
                self.jobs[name].lose_worker(event.at)


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it computes with, importing none of them."""
    found = {"python": platform.python_version()}
    for package in ("unifiednn", "torch", "accelerate", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def finite(value: Any) -> Any:
    """Return ``value``, plain JSON data, with NaN and infinities turned into None: strict JSON has neither.

    >>> finite({"loss": float("nan"), "rows": [1, 2.5]})
    {'loss': None, 'rows': [1, 2.5]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
