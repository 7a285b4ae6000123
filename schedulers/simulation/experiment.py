"""Several policies over one workload, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import fmean, median

from schedulers.base import JobView, Scheduler
from schedulers.needs import check_needs
from schedulers.registry import create
from schedulers.simulation.fairness import Fairness, fairness_of
from schedulers.simulation.metrics import Metrics, mean_of, metrics_of, ratios_to, spread_of
from schedulers.simulation.outcome import Outcome
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.traces import Selection, Trace, auto_quantum
from schedulers.simulation.workload import SimJob

#: fields of JobView that a simulation has no values for, unless the trace has
_NOT_ALWAYS = frozenset(
    {
        "user_shares", "priority", "deadline", "num_epochs", "num_parameters",
        "memory_resident_bytes", "memory_peak_bytes", "utilisation",
    }
)  # fmt: skip
ALWAYS_SUPPLIED = frozenset(field.name for field in fields(JobView)) - _NOT_ALWAYS
_ESTIMATED = frozenset({"step_seconds", "estimate_seconds", "steps_total", "steps_done"})

Progress = Callable[[str, int, int], object]  #: what runs, jobs done, jobs in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What policies are compared on.

    Attributes:
        trace: Where the jobs come from.
        selection: Which of them, and what is made of them.
        host: The machine.
        quantum: Seconds of a turn, of each policy that has a quantum and is not given one; None: a tenth of the median
            duration, at least a minute.
        seeds: How many seeds the estimates are drawn with, one after another from ``selection.seed`` on.
    """

    trace: Trace
    selection: Selection
    host: Host
    quantum: float | None = None
    seeds: int = 1

    def workloads(self) -> Iterator[list[SimJob]]:
        """Yield the jobs, once for each seed."""
        for seed in range(self.selection.seed, self.selection.seed + self.seeds):
            yield self.trace.workload(replace(self.selection, seed=seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one policy.

    Attributes:
        policy: As spelled; with what sets it apart from the others, if anything does.
        metrics: Its numbers; their means, over several seeds.
        spread: Their sample standard deviations over the seeds.
        ratios: Its numbers over those of the first row.
        by_seed: Its numbers, seed by seed; once if it does not decide by estimates.
        outcome: What it made of the first workload.
        fairness: How it treated users there; None without users.
    """

    policy: str
    metrics: Metrics
    spread: Metrics
    ratios: dict[str, float | None]
    by_seed: tuple[Metrics, ...]
    outcome: Outcome
    fairness: Fairness | None

    @property
    def gain(self) -> float | None:
        """How many times smaller its mean JCT is than that of the first row."""
        ratio = self.ratios["mean_jct"]
        return 1 / ratio if ratio else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows, the first of which the others are measured against, and what they were made under.

    Attributes:
        setup: What they were made under.
        num_jobs: Number of jobs.
        mean_seconds: Their mean duration.
        median_seconds: Their median duration.
        quantum: Seconds of a turn.
        rows: What came of each policy.
    """

    setup: Setup
    num_jobs: int
    mean_seconds: float
    median_seconds: float
    quantum: float
    rows: tuple[Row, ...]


def compare(spellings: Sequence[str], setup: Setup, progress: Progress = lambda policy, done, total: None) -> Comparison:
    """Run each policy over the same jobs.

    Where slots co-run units, the first row is the first policy without that: what there was before.

    Raises:
        SchedulerConfigError: If a spelling is wrong, or a policy decides by what the trace lacks.
    """
    jobs = next(setup.workloads())
    quantum = auto_quantum(jobs) if setup.quantum is None else setup.quantum
    for spelling in spellings:  # what is wrong with the last one should not come out an hour later
        supplied = ALWAYS_SUPPLIED | setup.trace.supplied(setup.selection)
        check_needs(spelling, _create(spelling, quantum).needs, supplied, f"trace {setup.trace.name!r}")
    planned = [(spelling, spelling, setup.host) for spelling in spellings]
    if setup.host.corun_limit > 1:
        planned.insert(0, (f"{spellings[0]} alone", spellings[0], setup.host.alone))
    rows: list[Row] = []
    for label, spelling, host in planned:
        rows.append(_row(label, spelling, replace(setup, host=host, quantum=quantum), progress, rows[0] if rows else None))
    lengths = [job.seconds for job in jobs]
    return Comparison(
        setup=setup,
        num_jobs=len(jobs),
        mean_seconds=fmean(lengths),
        median_seconds=median(lengths),
        quantum=quantum,
        rows=tuple(rows),
    )


def _row(label: str, spelling: str, setup: Setup, progress: Progress, base: Row | None) -> Row:
    assert setup.quantum is not None
    first: Outcome | None = None
    found: list[Metrics] = []
    for jobs in setup.workloads():
        scheduler = _create(spelling, setup.quantum)
        outcome = simulate(jobs, scheduler, setup.host, progress=partial(_tell, progress, label, len(jobs)))
        first = first or outcome
        found.append(metrics_of(outcome, setup.host.slots))
        if not scheduler.needs & _ESTIMATED:
            break  # another seed changes nothing but the estimates
    assert first is not None
    metrics = mean_of(found)
    return Row(
        policy=label,
        metrics=metrics,
        spread=spread_of(found),
        ratios=ratios_to(base.metrics if base else metrics, metrics),
        by_seed=tuple(found),
        outcome=first,
        fairness=fairness_of(first, setup.host.slots),
    )


def _tell(progress: Progress, label: str, num_jobs: int, num_done: int) -> None:
    progress(label, num_done, num_jobs)


def _create(spelling: str, quantum: float) -> Scheduler:
    return create(spelling, {"quantum": f"{quantum:.6f}s"})
