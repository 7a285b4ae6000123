"""The benchmark's figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.modes import MODES
from benchmarks.records import RunRecord
from benchmarks.verdicts import Spread, Target, mixes, values

MIB = 2**20
STOPPED = " †"

COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("makespan s", "makespan", lambda value: f"{value:.1f}"),
    ("start-up s", "startup", lambda value: f"{value:.1f}"),
    ("without it s", "span", lambda value: f"{value:.1f}"),
    ("completion mean s", "mean_completion", lambda value: f"{value:.1f}"),
    ("p95 s", "p95_completion", lambda value: f"{value:.1f}"),
    ("steps/s", "steps_per_second", lambda value: f"{value:.1f}"),
    ("peak MiB", "peak_bytes", lambda value: f"{value / MIB:.0f}"),
)
"""Heading, figure of a run, and how a value is written."""


def print_tables(records: Sequence[RunRecord], found: Sequence[Target], console: Console, *, scale: str) -> None:
    """Print a table per mix, then the targets; ``scale`` names the amount of work."""
    for mix in mixes(records):
        console.print(_mix_table(records, mix))
    if found:
        console.print(_target_table(found, scale))


def _mix_table(records: Sequence[RunRecord], mix: str) -> Table:
    num_repeats = len({record.repeat for record in records if record.mix == mix})
    captions = ["median (lowest – highest)"] if num_repeats > 1 else []
    if any(record.is_stopped for record in records if record.mix == mix):
        captions.append("† stopped for taking too long: its times are lower bounds")
    table = Table(
        title=f"mix {mix}, {num_repeats} repeat{'s' if num_repeats > 1 else ''}",
        caption="; ".join(captions) or None,
    )
    table.add_column("mode", no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right")
    table.add_column("weights equal")
    for mode in MODES:
        runs = [each for each in records if each.mix == mix and each.mode == mode.name]
        if runs:
            is_bound = any(run.is_stopped for run in runs)
            cells = [_cell(list(values(records, mix, mode.name, figure).values()), write) for _, figure, write in COLUMNS]
            table.add_row(mode.name + (STOPPED if is_bound else ""), *cells, _equality(runs))
    return table


def _equality(runs: Sequence[RunRecord]) -> str:
    """Say whether all weights were equal, of the jobs that came to their ends."""
    if not all(run.is_equal for run in runs):
        return "[red]NO"
    return "of those that ended" if any(run.is_stopped for run in runs) else "yes"


def _cell(figures: Sequence[float], write: Callable[[float], str]) -> str:
    spread = Spread.of(figures)
    if len(figures) == 1:
        return write(spread.median)
    return f"{write(spread.median)} ({write(spread.low)} – {write(spread.high)})"


def _target_table(found: Sequence[Target], scale: str) -> Table:
    caption = "set for the full scale: with less work, start-up weighs more" if scale != "full" else None
    table = Table(title=f"targets, at {scale} scale", caption=caption)
    for heading in ("mix", "claim", "mode"):
        table.add_column(heading)
    for heading in ("at most", "measured", "reached"):
        table.add_column(heading, justify="right")
    for target in found:
        figure = _target_figure(target.spread, target.unit)
        verdict = "[green]yes" if target.is_reached else "[red]no"
        table.add_row(target.mix, target.claim, target.mode, f"{target.limit:g} {target.unit}", figure, verdict)
    return table


def _target_figure(spread: Spread, unit: str) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.3f} {unit}"
    return f"{spread.median:.3f} {unit} ({spread.low:.3f} – {spread.high:.3f})"
