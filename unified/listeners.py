"""What becomes of events where there is no live table: plain lines, JSON lines, a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from unified.events import (
    DeadlineAtRisk,
    EpochDone,
    Event,
    JobCancelled,
    JobEvent,
    JobFailed,
    JobFinished,
    JobPaused,
    JobResumed,
    JobSubmitted,
    RunStarted,
    StackFormed,
    StackRefused,
    TurnStarted,
    WorkerLost,
)
from unified.progress import shown_metrics
from unified.quantities import bytes_text, count_text, metrics_text, plural, seconds_text, stack_text
from unified.summary import finite
from unified.terminal import line_writer


class PlainLines:
    """Writes a line whenever a job is submitted, starts, ends an epoch, is paused or resumed, or ends.

    A reader who goes away (``unified run … | head``) ends the output, not the run.

    Args:
        stream: Where to, flushed after each line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._write = line_writer(stream)
        self._epochs: dict[str, int] = {}
        self._started: set[str] = set()
        self._stacks: set[tuple[str, ...]] = set()

    def __call__(self, event: Event) -> None:
        """Write the line of ``event``, if it has one."""
        if isinstance(event, JobSubmitted):
            self._epochs[event.job] = event.num_epochs
        if isinstance(event, TurnStarted):
            if event.job in self._started:
                return
            self._started.add(event.job)
        if isinstance(event, StackFormed):
            if event.members in self._stacks:
                return
            self._stacks.add(event.members)
        say = _LINES.get(type(event))
        if say is None:
            return
        text = say(event)
        if isinstance(event, EpochDone):
            text = f"epoch {event.epoch}/{self._epochs.get(event.job, '?')}: {text}"
        whose = event.job if isinstance(event, JobEvent) else "run"
        self._write(f"{event.at:8.1f} s  {whose}  {text}")


class JsonLines:
    """Writes every event as one line of strict JSON: ``{"event": "JobFinished", "at": 12.3, …}``.

    Args:
        stream: Where to, flushed after each line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._write = line_writer(stream)

    def __call__(self, event: Event) -> None:
        """Write ``event``."""
        self._write(json_line(event_to_json(event)))


class EventLog:
    """Appends every event to a file of JSON lines, opened at the first; a killed run leaves whole lines.

    Args:
        path: The file; missing folders above it are made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __call__(self, event: Event) -> None:
        """Write ``event``."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._file.write(json_line(event_to_json(event)) + "\n")

    def close(self) -> None:
        """Close the file; a later event would open it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def event_to_json(event: Event) -> dict[str, Any]:
    """Return ``event`` as plain JSON data: its kind under ``event``, then its fields; NaN is null.

    >>> event_to_json(JobCancelled(at=1.5, job="a"))
    {'event': 'JobCancelled', 'at': 1.5, 'job': 'a'}
    """
    content = {name: getattr(event, name) for name in _field_names(type(event))}
    return {"event": type(event).__name__} | finite(content)


def json_line(content: dict[str, Any]) -> str:
    """Return ``content`` as one line of strict JSON."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


@cache
def _field_names(kind: type[Event]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _run_started(event: RunStarted) -> str:
    return f"{event.scheduler} on {'; '.join(event.slots)} ({event.plan})"


def _submitted(event: JobSubmitted) -> str:
    owner = f" by {event.user}" if event.user else ""
    length = f"{plural(event.num_epochs, 'epoch')}, {plural(event.num_steps, 'step')}"
    size = f"{count_text(event.num_parameters)} parameters, peak about {bytes_text(event.peak_bytes)}"
    since = f"; goes on from step {event.first_step}" if event.first_step else ""
    return f"submitted{owner}: {length}, {size}{since}"


def _finished(event: JobFinished) -> str:
    result = metrics_text(shown_metrics(event.metrics)) or "no metrics"
    times = (
        f"complete after {seconds_text(event.completion_seconds)}: "
        f"waited {seconds_text(event.waiting_seconds)}, trained {seconds_text(event.training_seconds)}"
    )
    return f"finished: {result}; {times}, peak {bytes_text(event.peak_bytes)}; in {event.folder}"


def _failed(event: JobFailed) -> str:
    return f"failed: {event.reason}" + (f" (log: {event.log})" if event.log else "")


def _stack_refused(event: StackRefused) -> str:
    return f"{stack_text(event.members, event.speedup)}: {event.reason}; they train one at a time"


def _worker_lost(event: WorkerLost) -> str:
    jobs = ", ".join(event.jobs) or "no job"
    return f"the worker of slot {event.slot} died: {event.reason}; from their checkpoints go on: {jobs}"


_LINES: dict[type[Event], Callable[[Any], str]] = {
    RunStarted: _run_started,
    JobSubmitted: _submitted,
    TurnStarted: lambda event: f"started on slot {event.slot}",
    EpochDone: lambda event: metrics_text(shown_metrics(event.metrics)),
    StackFormed: lambda event: f"leads a {stack_text(event.members, event.speedup)}",
    StackRefused: _stack_refused,
    DeadlineAtRisk: lambda event: f"will miss its deadline by {seconds_text(event.predicted - event.deadline)} or more",
    JobPaused: lambda event: f"paused at step {event.step}",
    JobResumed: lambda event: f"waits for its turn again, from step {event.step}",
    JobCancelled: lambda event: "cancelled",
    JobFinished: _finished,
    JobFailed: _failed,
    WorkerLost: _worker_lost,
}
