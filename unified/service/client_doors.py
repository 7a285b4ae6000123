"""The two ways in which a client reaches a queue: its folder, or HTTP. This file has what they share, and the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unified.job_state import JobState
from unified.queue.records import JobRow
from unified.queue.verbs import Queue
from unified.service.http_models import Job, job_model

VERBS = ("pause", "resume", "cancel", "checkpoint", "requeue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A job as a client sees it; times as in :class:`unified.results.Timing`."""

    id: str
    name: str
    state: JobState
    reason: str
    metrics: dict[str, float]
    num_threads: int | None
    waiting_seconds: float
    training_seconds: float
    completion_seconds: float


class Door(Protocol):
    """A way to a queue."""

    def submit(self, folder: Path) -> list[str]:
        """Hand in a job folder with the files that it names; return the job's id, or that of each member of its sweep."""
        ...

    def look(self, job: str) -> Standing:
        """Return where a job stands."""
        ...

    def ask(self, verb: str, job: str, *, wait_seconds: float | None = None, from_scratch: bool = False) -> None:
        """Ask something of a job; ``verb`` is one of ``VERBS``."""
        ...

    def log(self, job: str) -> str:
        """Return a job's log."""
        ...

    def metrics(self, job: str, since: int) -> list[dict[str, Any]]:
        """Return a job's metrics over time."""
        ...

    def fetch(self, job: str, out: Path) -> Path:
        """Return a folder with a finished job's result; what must be brought from elsewhere goes below ``out``."""
        ...

    def close(self) -> None:
        """Let go of the queue."""
        ...


class FolderDoor:
    """The queue in a folder of this machine, which is made if it is not there."""

    def __init__(self, root: Path) -> None:
        self._queue = Queue.open(root, make=True)

    def submit(self, folder: Path) -> list[str]:
        """Hand in a job folder with the files that it names, or all members of its sweep."""
        return [submitted.job.id for submitted in self._queue.submit_all(folder, by="client")]

    def look(self, job: str) -> Standing:
        """Return where a job stands."""
        row: JobRow = self._queue.get(job)
        return standing_of(job_model(row, self._queue.reason(row)))

    def ask(self, verb: str, job: str, *, wait_seconds: float | None = None, from_scratch: bool = False) -> None:
        """Ask something of a job."""
        options = {"from_scratch": from_scratch} if verb == "requeue" else {}
        getattr(self._queue, verb)(job, by="client", wait_seconds=wait_seconds, **options)

    def log(self, job: str) -> str:
        """Return a job's log."""
        path = self._queue.log(job)
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def metrics(self, job: str, since: int) -> list[dict[str, Any]]:
        """Return a job's metrics over time."""
        return self._queue.metrics(job, since)

    def fetch(self, job: str, out: Path) -> Path:
        """Return the folder where a finished job's result was published."""
        return self._queue.artifact_folder(job)

    def close(self) -> None:
        """Close the store."""
        self._queue.close()


def standing_of(job: Job) -> Standing:
    """Return what a client needs of a job."""
    return Standing(
        id=job.id,
        name=job.name,
        state=job.state,
        reason=job.reason,
        metrics={name: float("nan") if value is None else value for name, value in job.metrics.items()},
        num_threads=job.num_threads,
        waiting_seconds=job.waiting_seconds,
        training_seconds=job.training_seconds,
        completion_seconds=job.completion_seconds or 0.0,
    )
