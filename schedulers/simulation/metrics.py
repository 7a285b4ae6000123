"""What a policy made of a workload, in numbers.

Completion is counted from submission: time in service alone would praise a policy that lets everybody wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, stdev
from typing import Any

from schedulers.simulation.fairness import Fairness, fairness_of
from schedulers.simulation.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The numbers of one policy. Times are in seconds of the simulation; JCT is completion minus submission.

    Attributes:
        mean_jct: Mean JCT.
        p50: Median JCT.
        p95: 95th percentile.
        p99: 99th percentile.
        max: Greatest JCT.
        slowdown_p50: Median of JCT over the duration alone.
        slowdown_p95: 95th percentile of it.
        slowdown_p99: 99th percentile of it.
        makespan: From the first submission to the last completion.
        preemptions: How often a job lost its slot before its end and had to wait.
        longest_wait: The longest time that a job was without service.
        accepted: Number of jobs that were accepted.
        refused: Number of jobs that were not.
        late: Number of the accepted that missed their deadlines.
        jain: Jain's index of what users had against their fair shares; 1 is best, None without users.
        deviation: Largest distance of one of them from their mean, in percent of it.
        worst_rho: The greatest finish-time fairness of a user, see :mod:`schedulers.simulation.fairness`.
        decision_p50: Real time of a decision, median.
        decision_p99: 99th percentile of it.
        wrong_answers: Answers of the scheduler that could not be carried out.
    """

    mean_jct: float
    p50: float
    p95: float
    p99: float
    max: float
    slowdown_p50: float
    slowdown_p95: float
    slowdown_p99: float
    makespan: float
    preemptions: float
    longest_wait: float
    accepted: float
    refused: float
    late: float
    jain: float | None
    deviation: float | None
    worst_rho: float | None
    decision_p50: float
    decision_p99: float
    wrong_answers: float


def metrics_of(outcome: Outcome, slots: int) -> Metrics:
    """Return the numbers of an outcome; all 0 if it has no jobs."""
    times = sorted(job.completion_seconds for job in outcome.jobs)
    slowdowns = sorted(job.completion_seconds / job.seconds for job in outcome.jobs if job.seconds > 0)
    fairness: Fairness | None = fairness_of(outcome, slots)
    return Metrics(
        mean_jct=fmean(times) if times else 0.0,
        p50=percentile(times, 0.5),
        p95=percentile(times, 0.95),
        p99=percentile(times, 0.99),
        max=times[-1] if times else 0.0,
        slowdown_p50=percentile(slowdowns, 0.5),
        slowdown_p95=percentile(slowdowns, 0.95),
        slowdown_p99=percentile(slowdowns, 0.99),
        makespan=outcome.makespan,
        preemptions=sum(job.preemptions for job in outcome.jobs),
        longest_wait=max((job.longest_wait for job in outcome.jobs), default=0.0),
        accepted=len(outcome.jobs),
        refused=len(outcome.refused),
        late=sum(job.is_late for job in outcome.jobs),
        jain=fairness.jain if fairness else None,
        deviation=fairness.deviation if fairness else None,
        worst_rho=fairness.worst_rho if fairness else None,
        decision_p50=percentile(sorted(outcome.decision_seconds), 0.5),
        decision_p99=percentile(sorted(outcome.decision_seconds), 0.99),
        wrong_answers=outcome.num_wrong,
    )


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the value at ``int(part * n)`` of n values in rising order; 0 if there are none.

    >>> percentile([1, 2, 3, 4], 0.5)
    3
    """
    return ordered[int(part * len(ordered))] if ordered else 0.0


def mean_of(several: Sequence[Metrics]) -> Metrics:
    """Return the mean of each number over runs with other seeds."""
    return _each(several, fmean)


def spread_of(several: Sequence[Metrics]) -> Metrics:
    """Return the sample standard deviation of each number over runs with other seeds; 0 for one run."""
    return _each(several, lambda values: stdev(values) if len(values) > 1 else 0.0)


def ratios_to(base: Metrics, metrics: Metrics) -> dict[str, float | None]:
    """Return each number over that of ``base``; None where there is none, or ``base`` has 0."""
    ratios = {}
    for field in fields(Metrics):
        ours, theirs = getattr(metrics, field.name), getattr(base, field.name)
        ratios[field.name] = ours / theirs if ours is not None and theirs else None
    return ratios


def _each(several: Sequence[Metrics], function: Callable[[list[float]], float]) -> Metrics:
    found: dict[str, Any] = {}  # of floats, but for those that a workload without users has not
    for field in fields(Metrics):
        values = [value for metrics in several if (value := getattr(metrics, field.name)) is not None]
        found[field.name] = function(values) if values else None
    return Metrics(**found)
