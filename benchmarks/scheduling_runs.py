"""What the scheduling benchmark simulates, and the figures that it keeps of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from schedulers.simulation.experiment import Row, Setup, compare
from schedulers.simulation.metrics import Metrics
from schedulers.simulation.simulator import Host
from schedulers.simulation.traces import Selection, read_trace

TRACES = {"openb": "alibaba_openb_gpu2023.csv", "philly-vc2": "philly_vc_muri_trace2.csv"}
CORUN = 1.3
MAX_WAIT_SECONDS = 72 * 3600.0
AGING = ("aging(srtf,weight=0.02,max_wait=72h)", "aging(srtf,weight=0.3,max_wait=72h)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Policies that are compared under one way of running them; the first is the base.

    Attributes:
        name: Of the way.
        policies: Spellings.
        corun: Speed of two units on one slot; over 1, the base also runs alone.
        placement: May a unit go on anywhere, or only where it began?
    """

    name: str
    policies: tuple[str, ...]
    corun: float = 1.0
    placement: Literal["global", "resident"] = "global"


PLANS = (
    Plan(
        name="time-sliced",
        policies=("fcfs", "sjf:length=seconds", "default", "srtf", "hrrn", *AGING, "las", "2dlas", "stride", "drr"),
    ),
    Plan(name="co-running", policies=("fcfs", "default", "srtf", "hrrn", "aging(hrrn,weight=0,max_wait=72h)"), corun=CORUN),
    Plan(name="time-sliced, resident", policies=("fcfs", "default", "hrrn"), placement="resident"),
    Plan(name="co-running, resident", policies=("fcfs", "default", "hrrn"), corun=CORUN, placement="resident"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is simulated."""

    traces: Path
    jobs: int = 1200
    seeds: int = 5
    slots: int = 4
    load: float = 0.9
    sigma: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The figures of one policy.

    Attributes:
        trace: Name of the trace.
        plan: Name of the plan.
        policy: Its spelling, with ``alone`` for a base that does not co-run.
        quantum: Seconds of a turn.
        num_jobs: Number of jobs.
        num_slots: Number of slots.
        gain: Mean JCT of the base over its own.
        p99_ratio: Its 99th percentile of JCT over that of the base.
        metrics: All its figures; means over the seeds.
        spread: Their sample standard deviations over the seeds.
        gain_by_seed: The gain, seed by seed; once if estimates are nothing to it.
        p99_ratio_by_seed: The ratio of the tails, likewise.
        longest_wait_by_seed: The longest time without service, likewise.
    """

    trace: str
    plan: str
    policy: str
    quantum: float
    num_jobs: int
    num_slots: int
    gain: float
    p99_ratio: float
    metrics: dict[str, float | None]
    spread: dict[str, float | None]
    gain_by_seed: tuple[float, ...]
    p99_ratio_by_seed: tuple[float, ...]
    longest_wait_by_seed: tuple[float, ...]


def measured(trace: str, plan: Plan, settings: Settings) -> list[Finding]:
    """Return the figures of every policy of a plan on a trace."""
    setup = Setup(
        trace=read_trace(settings.traces / TRACES[trace]),
        selection=Selection(jobs=settings.jobs, slots=settings.slots, load=settings.load, sigma=settings.sigma),
        host=Host(slots=settings.slots, corun=plan.corun, placement=plan.placement),
        seeds=settings.seeds,
    )
    comparison = compare(plan.policies, setup)
    base = comparison.rows[0].metrics
    return [
        _finding(row, base, trace=trace, plan=plan.name, quantum=comparison.quantum, num_jobs=comparison.num_jobs, setup=setup)
        for row in comparison.rows
    ]


def _finding(row: Row, base: Metrics, *, trace: str, plan: str, quantum: float, num_jobs: int, setup: Setup) -> Finding:
    return Finding(
        trace=trace,
        plan=plan,
        policy=row.policy,
        quantum=quantum,
        num_jobs=num_jobs,
        num_slots=setup.host.slots,
        gain=base.mean_jct / row.metrics.mean_jct,
        p99_ratio=row.metrics.p99 / base.p99,
        metrics=asdict(row.metrics),
        spread=asdict(row.spread),
        gain_by_seed=tuple(base.mean_jct / metrics.mean_jct for metrics in row.by_seed),
        p99_ratio_by_seed=tuple(metrics.p99 / base.p99 for metrics in row.by_seed),
        longest_wait_by_seed=tuple(metrics.longest_wait for metrics in row.by_seed),
    )
