"""``unified simulate``: what schedulers would do to a trace. Free of torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from schedulers.base import SchedulerConfigError
from schedulers.quanta import parse_time
from schedulers.registry import create
from schedulers.simulation.experiment import Comparison, Progress, Setup, compare
from schedulers.simulation.golden import GOLDEN, golden_jobs
from schedulers.simulation.pairs import read_pairs
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.traces import Selection, read_trace
from schedulers.spelling import split
from unified.simulate_tables import admission_lines, comparison_tables, golden_table, head_line
from unified.terminal import line_writer, make_console, show

EXIT_WRONG_TIMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What the command line said; the names are those of its options. ``version`` is that of the package."""

    trace: Path
    compare: str
    jobs: int
    load: float
    min_seconds: float
    max_seconds: float
    sigma: float
    seed: int
    seeds: int
    users_column: str
    deadline_factor: float | None
    slots: int
    quantum: str
    corun: float
    corun_table: Path | None
    placement: Literal["global", "resident"]
    switch_seconds: float
    checkpoint_seconds: float
    as_json: bool
    plot: Path | None
    version: str


def simulate_trace(options: SimulateOptions) -> int:
    """Compare schedulers over a trace, print what came of it, and return the exit code.

    Raises:
        SchedulerConfigError: If the trace is none, a scheduler is spelled wrongly, or it decides by what the trace lacks.
    """
    spellings = split(options.compare)
    if not spellings:
        raise SchedulerConfigError(f"--compare: expected schedulers such as fcfs,srtf; got {options.compare!r}")
    setup = _setup(options)
    with _progress_bar() as progress:
        comparison = compare(spellings, setup, progress)
    if options.plot is not None:
        from schedulers.simulation.plots import write_plots

        write_plots(comparison, options.plot)
    if options.as_json:
        line_writer(sys.stdout)(json.dumps(comparison_json(comparison, options.version), allow_nan=False))
        return 0
    console = make_console()
    for content in (head_line(comparison), *comparison_tables(comparison), *admission_lines(comparison)):
        show(console, content)
    _warn_of_wrong_answers(comparison)
    return 0


def golden(*, version: str, as_json: bool) -> int:
    """Run the paper's case, print when each job was done, and return 0 if all of it is as it must be."""
    found = {
        spelling: tuple(job.completion for job in simulate(golden_jobs(), create(spelling), Host()).jobs) for spelling in GOLDEN
    }
    is_right = all(
        abs(ours - theirs) < 1e-6
        for spelling, times in GOLDEN.items()
        for ours, theirs in zip(found[spelling], times, strict=True)
    )
    if as_json:
        rows = {spelling: {"completion": list(times), "expected": list(GOLDEN[spelling])} for spelling, times in found.items()}
        line_writer(sys.stdout)(json.dumps({"version": version, "equal": is_right, "policies": rows}))
    else:
        show(make_console(), golden_table([job.id for job in golden_jobs()], found, GOLDEN))
    return 0 if is_right else EXIT_WRONG_TIMES


def comparison_json(comparison: Comparison, version: str) -> dict:
    """Return a comparison as what ``json.dumps`` takes."""
    setup = comparison.setup
    return {
        "version": version,
        "trace": setup.trace.name,
        "jobs": comparison.num_jobs,
        "mean_seconds": comparison.mean_seconds,
        "median_seconds": comparison.median_seconds,
        "quantum_seconds": comparison.quantum,
        "seeds": setup.seeds,
        "selection": asdict(setup.selection),
        "host": asdict(setup.host) | {"pairs": {" + ".join(sorted(pair)): speed for pair, speed in setup.host.pairs.items()}},
        "policies": [
            {
                "policy": row.policy,
                "gain": row.gain,
                "metrics": asdict(row.metrics),
                "ratios": row.ratios,
                "spread": asdict(row.spread),
                "rho": row.fairness.rho if row.fairness else None,
                "normalised_service": row.fairness.normalised if row.fairness else None,
                "wrong_answer": row.outcome.wrong or None,
            }
            for row in comparison.rows
        ],
    }


def _setup(options: SimulateOptions) -> Setup:
    return Setup(
        trace=read_trace(options.trace),
        selection=Selection(
            jobs=options.jobs,
            min_seconds=options.min_seconds,
            max_seconds=options.max_seconds,
            slots=options.slots,
            load=options.load,
            sigma=options.sigma,
            seed=options.seed,
            users_column=options.users_column,
            deadline_factor=options.deadline_factor,
        ),
        host=Host(
            slots=options.slots,
            corun=options.corun,
            pairs={} if options.corun_table is None else read_pairs(options.corun_table),
            placement=options.placement,
            switch_seconds=options.switch_seconds,
            checkpoint_seconds=options.checkpoint_seconds,
        ),
        quantum=None if options.quantum == "auto" else parse_time(options.quantum, "--quantum"),
        seeds=options.seeds,
    )


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show on a terminal who runs and how far it is; on stderr, so that stdout holds results alone."""
    if not sys.stderr.isatty():
        yield lambda policy, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda policy, done, total: bar.update(task, description=policy, completed=done, total=total)


def _warn_of_wrong_answers(comparison: Comparison) -> None:
    for row in comparison.rows:
        if row.outcome.num_wrong:
            line_writer(sys.stderr)(
                f"unified: scheduler {row.policy}: {row.outcome.num_wrong} answers could not be carried out and were decided "
                f"by fcfs; the first: {row.outcome.wrong}"
            )
