"""The table that a merge prints at its end: scores and costs for every combination of tasks, and what is said below it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from fusion.merging.records import OURS, TITLES, CombinationRecord, MergeReport, joined
from unified.fusing.views import plain_table
from unified.quantities import MISSING, count_text, plural, seconds_text

if TYPE_CHECKING:
    from unified.merging.session import Merged


def end_table(report: MergeReport) -> RenderableType:
    """Return a line for each combination and scheme: score, FLOPs, latency, and its FLOPs over ours."""
    table = plain_table("tasks", "network", "score", "FLOPs", "latency", "FLOPs over PAM")
    table.columns[1].justify = "left"
    for number, record in enumerate(report.schemes[OURS].combinations):
        for place, (name, scheme) in enumerate(report.schemes.items()):
            row = scheme.combinations[number]
            gained = f"{report.gains[name].ratios[record.tasks]:.2f}x" if name in report.gains else ""
            what = Text(title(name, report), style="bold" if name == OURS else "")
            costs = (f"{row.score:.2%}", count_text(row.flops), _latency(row), gained)
            table.add_row("" if place else joined(record.tasks), what, *costs)
    return table


def end_lines(merged: Merged, num_threads: int) -> list[str]:
    """Return what is to be said below the table."""
    report = merged.report
    lines = [f"note: {note}" for note in (*report.notes, *merged.notes)]
    if not report.is_held_out:
        lines.append("the scores are of the data that chose, for there are none held out")
    lines += [
        f"{TITLES[name]}: {found.average:.2f} times the FLOPs of {OURS} on average, at most {found.peak:.2f}"
        for name, found in report.gains.items()
    ]
    lines += _warnings(report)
    if not report.schemes[OURS].is_feasible:
        lines.append(
            "not every task is good enough: allow a larger --max-drop, train with more --steps, or share less (--alpha)"
        )
    lines.append(f"alpha {report.alpha:g}, {seconds_text(report.seconds)} with {plural(num_threads, 'CPU thread')}")
    if merged.folder is not None:
        lines.append(f"the merged model and report.html are in {Path(merged.folder)}")
    return lines


def title(name: str, report: MergeReport) -> str:
    """Name a scheme as it was made."""
    return TITLES[name] if report.settings.get("prune", "taylor") else TITLES[name].removesuffix(", then pruned")


def _warnings(report: MergeReport) -> list[str]:
    """Say where the figures above speak against merging, or are no measure of it."""
    said = []
    for name, found in report.gains.items():
        scheme = report.schemes[name]
        if not scheme.is_feasible:
            said.append(f"{TITLES[name]}: falls below a floor, so that its FLOPs are no measure for {OURS}")
        elif found.average < 1:
            where = "every combination" if found.peak < 1 else "the average of the combinations"
            said.append(f"{TITLES[name]} takes fewer FLOPs here, for {where}, and keeps every floor: merging did not pay")
    return said


def _latency(row: CombinationRecord) -> str:
    return MISSING if row.latency is None else f"{row.latency.median_seconds * 1e3:.3g} ms"
