"""The fault benchmark's figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.checkpoint_cost import CostRun, cost_ratios
from benchmarks.faults_aims import Aim
from benchmarks.neighbour import NeighbourLoss
from benchmarks.quantiles import Quantiles
from benchmarks.queue_latency import Latencies
from benchmarks.storm import Storm
from benchmarks.storm_verdict import Loss, Verdict, quantiles_of
from benchmarks.verdicts import Spread

SHOWN = 5  #: of what went wrong, so many are told in full

LOSS_ROWS = (
    ("death of a worker noticed, s", "noticed_seconds", "worker"),
    ("until its job trained again, s", "back_seconds", "worker"),
    ("supervisor killed, until a job trained again, s", "back_seconds", "supervisor"),
    ("work redone, steps", "redone_steps", None),
    ("work redone, s", "redone_seconds", None),
    ("work redone, checkpoint intervals in force", "redone_intervals", None),
    ("work redone beyond one interval, s", "beyond_seconds", None),
)


def print_storm(storm: Storm, verdict: Verdict, losses: Sequence[Loss], interval: float, console: Console) -> None:
    """Print what came of the storm; ``interval`` is that of checkpoints, in seconds."""
    seconds = storm.ended - storm.began
    mix = ", ".join(f"{count} {target}" for target, count in sorted(verdict.kills.items(), key=lambda item: -item[1]))
    console.print(f"storm of {seconds:.0f} s: {sum(verdict.kills.values())} SIGKILLs ({mix})")
    table = Table(title="what became of the jobs")
    columns = {
        "accepted": verdict.accepted,
        "lost": len(verdict.lost),
        "published twice": len(verdict.doubled),
        "weights compared": verdict.compared,
        "wrong": len(verdict.wrong),
        "illegal transitions": len(verdict.illegal),
        "unasked ends": len(verdict.unasked_ends),
        "attempts per job (jobs)": ", ".join(f"{count} ({jobs})" for count, jobs in verdict.attempts.items()),
    }
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*map(str, columns.values()))
    console.print(table)
    for text in [*verdict.lost, *verdict.doubled, *verdict.wrong, *verdict.illegal, *verdict.unasked_ends][:SHOWN]:
        console.print(f"  {text}", markup=False)
    rows = {name: quantiles_of(losses, figure, target) for name, figure, target in LOSS_ROWS}
    console.print(_quantile_table(f"what the kills cost, checkpoints every {interval:g} s", rows))


def print_neighbours(losses: Sequence[NeighbourLoss], interval_seconds: float, console: Console) -> None:
    """Print what crashes cost those beside them."""
    rows = {
        "without a slot, s": Quantiles.of([loss.waited_seconds for loss in losses]),
        "work redone, s": Quantiles.of([loss.redone_seconds for loss in losses if loss.redone_seconds is not None]),
        "both, s": Quantiles.of([loss.seconds for loss in losses]),
    }
    console.print(_quantile_table(f"a neighbour crashes, checkpoints every {interval_seconds:g} s", rows))


def print_latencies(latencies: Latencies, console: Console) -> None:
    """Print how quick a full queue is."""
    rows: dict[str, Quantiles | None] = {}
    for name, seconds in latencies.seconds.items():
        quantiles = Quantiles.of(seconds)
        rows[f"{name}, ms"] = None if quantiles is None else quantiles.times(1e3)
    console.print(_quantile_table(f"{latencies.queued} jobs of {latencies.job_bytes} bytes queued", rows))
    for processes, rate in latencies.rates.items():
        console.print(f"sustained by {processes} process{'es' if processes > 1 else ''}: {rate:.0f} submissions per second")


def print_costs(runs: Sequence[CostRun], console: Console) -> None:
    """Print what checkpoints cost."""
    table = Table(title="cost of checkpoints")
    for name in ("repeat", "interval, s", "training, s", "checkpoints", "their seconds", "share of training"):
        table.add_column(name, justify="right")
    for run in runs:
        interval = "none" if run.interval_seconds is None else f"{run.interval_seconds:g}"
        share = f"{run.checkpoint_seconds / run.total_seconds:.2%}"
        training, seconds = f"{run.total_seconds:.1f}", f"{run.checkpoint_seconds:.2f}"
        table.add_row(str(run.repeat), interval, training, str(run.checkpoints), seconds, share)
    console.print(table)
    ratios = cost_ratios(runs)
    if ratios:
        spread = Spread.of(ratios)
        console.print(f"with over without: {spread.median:.4f} ({spread.low:.4f} – {spread.high:.4f})")


def print_aims(aims: Sequence[Aim], console: Console, *, scale: str) -> None:
    """Print whether what was aimed at was reached."""
    caption = "set for the full scale" if scale != "full" else None
    table = Table(title=f"aims, at {scale} scale", caption=caption)
    for heading in ("claim", "bound", "measured", "reached"):
        table.add_column(heading, justify="left" if heading == "claim" else "right")
    for aim in aims:
        sign, unit = "≥" if aim.is_least else "≤", f" {aim.unit}" if aim.unit else ""
        measured = "nothing" if aim.measured is None else f"{aim.measured:.4g}{unit}"
        table.add_row(aim.claim, f"{sign} {aim.limit:g}{unit}", measured, "[green]yes" if aim.is_reached else "[red]no")
    console.print(table)


def _quantile_table(title: str, rows: Mapping[str, Quantiles | None]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for heading in ("count", "p50", "p90", "p99", "highest"):
        table.add_column(heading, justify="right")
    for name, found in rows.items():
        if found is None:
            table.add_row(name, "0", "", "", "", "")
        else:
            values = (found.p50, found.p90, found.p99, found.highest)
            table.add_row(name, str(found.count), *(f"{value:.3g}" for value in values))
    return table
