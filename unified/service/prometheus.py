"""The numbers of ``GET /metrics`` in Prometheus' text format, from the store and from what the supervisor says of itself.

They are made at each scrape, in a registry of their own. ``job`` is a label of jobs on a slot alone, so series end with jobs.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from unified.job_state import ENDED, RESIDENT, JobState
from unified.queue.records import JobRow

CONTENT_TYPE = CONTENT_TYPE_LATEST
SLOWDOWN_BOUNDS = (1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
BOUNDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)


@dataclass(slots=True)
class Histogram:
    """How many values fell below each of ``bounds``, and their sum."""

    bounds: tuple[float, ...] = BOUNDS
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value; a duration below zero, after a clock was set back, counts as none."""
        value = max(0.0, value)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts, as Prometheus wants them."""
        found, running = [], 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            running += count
            found.append(("+Inf" if math.isinf(bound) else str(bound), float(running)))
        return found


@dataclass(slots=True)
class EndedJobs:
    """What was seen of jobs that have ended; grows only, as counters must, even when retention removes jobs."""

    waited: dict[str, Histogram] = field(default_factory=dict)
    completed: dict[str, Histogram] = field(default_factory=dict)
    slowdowns: Histogram = field(default_factory=lambda: Histogram(bounds=SLOWDOWN_BOUNDS))
    seen: set[tuple[str, float]] = field(default_factory=set)
    counts: dict[JobState, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_behind(self, counts: Mapping[JobState, int]) -> bool:
        """Return whether the numbers of ended jobs differ from those at the last look."""
        return {state: counts.get(state, 0) for state in ENDED} != self.counts

    def look(self, rows: Iterable[JobRow]) -> None:
        """Take in the jobs that have ended, each once for each of its ends."""
        self.counts = dict.fromkeys(ENDED, 0)
        present: set[tuple[str, float]] = set()
        for row in rows:
            self.counts[row.state] = self.counts.get(row.state, 0) + 1
            if row.finished_time is None:
                continue
            key = (row.id, row.finished_time)
            present.add(key)
            if key not in self.seen:
                waited = (row.started_time or row.finished_time) - row.submit_time
                self.waited.setdefault(row.state, Histogram()).add(waited)
                self.completed.setdefault(row.state, Histogram()).add(row.finished_time - row.submit_time)
                if row.slowdown is not None:
                    self.slowdowns.add(row.slowdown)
        self.seen = present


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a scrape is made of.

    Attributes:
        counts: Jobs by state.
        live: Jobs on a slot, as far as the asker may see them.
        ended: See :class:`EndedJobs`.
        status: ``status.json``, None if no supervisor runs.
        now: The time.
    """

    counts: Mapping[JobState, int]
    live: Sequence[JobRow]
    ended: EndedJobs
    status: Mapping[str, Any] | None
    now: float = field(default_factory=time.time)


def exposition(numbers: Numbers) -> bytes:
    """Return the text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(_Scrape(numbers))
    return generate_latest(registry)


class _Scrape:
    """What ``prometheus_client`` asks of a collector."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        numbers = self._numbers
        status = numbers.status or {}
        yield from _of_jobs(numbers)
        yield from _of_ended_jobs(numbers.ended)
        yield GaugeMetricFamily(
            "unified_supervisor_up", "Whether a supervisor holds the root.", float(numbers.status is not None)
        )
        yield from _of_supervisor(status, numbers.now)
        yield from _of_counters(status.get("counters") or {}, _device_uuids(status))


def _of_jobs(numbers: Numbers) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("unified_jobs", "Jobs by state.", labels=["state"])
    for state in JobState:
        jobs.add_metric([state], numbers.counts.get(state, 0))
    steps = CounterMetricFamily("unified_job_steps", "Optimizer steps of a job on a slot.", labels=["job"])
    memory = GaugeMetricFamily("unified_job_memory_bytes", "Memory of a job on a slot.", labels=["job", "slot", "kind"])
    progress = GaugeMetricFamily("unified_job_progress_ratio", "Share of its steps that a job has made.", labels=["job"])
    for row in numbers.live:
        if row.state not in RESIDENT:
            continue
        steps.add_metric([row.id], row.steps_done)
        if row.memory_bytes is not None:
            memory.add_metric([row.id, "" if row.slot is None else str(row.slot), "peak"], row.memory_bytes)
        if row.steps_total:
            progress.add_metric([row.id], row.steps_done / row.steps_total)
    yield from (jobs, steps, memory, progress)


def _of_ended_jobs(ended: EndedJobs) -> Iterator[Metric]:
    for name, text, by_outcome in (
        ("unified_queue_wait_seconds", "From submission to the first turn.", ended.waited),
        ("unified_job_completion_seconds", "From submission to the end.", ended.completed),
    ):
        family = HistogramMetricFamily(name, text, labels=["outcome"])
        for outcome, durations in sorted(by_outcome.items()):
            family.add_metric([outcome], durations.buckets(), durations.total)
        yield family
    slowdown = HistogramMetricFamily("unified_job_slowdown", "Completion of finished jobs as a multiple of their turns.")
    slowdown.add_metric([], ended.slowdowns.buckets(), ended.slowdowns.total)
    yield slowdown


def _of_supervisor(status: Mapping[str, Any], now: float) -> Iterator[Metric]:
    for name, text, key in (
        ("unified_disk_free_bytes", "Free on the disk of the root.", "disk_free_bytes"),
        ("unified_memory_used_bytes", "Memory that all jobs on slots take.", "memory_bytes"),
        ("unified_memory_total_bytes", "Memory that there is for them.", "memory_total_bytes"),
    ):
        if isinstance(status.get(key), int | float):
            yield GaugeMetricFamily(name, text, float(status[key]))
    lag = GaugeMetricFamily("unified_tick_lag_seconds", "Time since a tick last did its work.", labels=["tick"])
    for tick, last_ok in (status.get("ticks") or {}).items():
        lag.add_metric([tick], max(0.0, now - last_ok))
    yield lag


def _of_counters(counters: Mapping[str, Any], uuids: Mapping[str, str]) -> Iterator[Metric]:
    busy = CounterMetricFamily("unified_slot_busy_seconds", "Time that a slot trained.", labels=["slot", "device_uuid"])
    for slot, seconds in (counters.get("slot_busy_seconds") or {}).items():
        busy.add_metric([slot, uuids.get(slot, "")], seconds)
    restarts = CounterMetricFamily("unified_worker_restarts", "Workers that were replaced.", labels=["slot", "cause"])
    for slot, by_cause in (counters.get("worker_restarts") or {}).items():
        for cause, count in (by_cause if isinstance(by_cause, dict) else {"any": by_cause}).items():
            restarts.add_metric([slot, cause], count)
    rejected = CounterMetricFamily("unified_rejected_submissions", "Submissions that were none.", labels=["code"])
    for code, count in (counters.get("rejected") or {}).items():
        rejected.add_metric([code], count)
    yield from (busy, restarts, rejected)
    for name, text, key in (
        ("unified_leases_expired", "Jobs whose supervisor stopped renewing.", "leases_expired"),
        ("unified_fenced_writes", "Writes that came too late and changed nothing.", "fenced_writes"),
        ("unified_checkpoint_failures", "Checkpoints that could not be written.", "checkpoint_failures"),
        ("unified_scheduler_errors", "Times the scheduler failed.", "scheduler_errors"),
    ):
        yield CounterMetricFamily(name, text, float(counters.get(key) or 0))
    yield SummaryMetricFamily(
        "unified_checkpoint_seconds",
        "Time it took to write checkpoints.",
        count_value=int(counters.get("checkpoints") or 0),
        sum_value=float(counters.get("checkpoint_seconds") or 0.0),
    )
    decision = float(counters.get("decision_seconds") or 0.0)
    yield GaugeMetricFamily("unified_scheduler_decision_seconds", "Time the scheduler's last decision took.", decision)


def _device_uuids(status: Mapping[str, Any]) -> dict[str, str]:
    return {str(slot.get("index")): str(slot.get("device_uuid") or "") for slot in status.get("slots") or ()}
