"""The table that a merge prints at its end: scores and costs for every combination of tasks, and what is said below it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from fusion.merging.records import OURS, CombinationRecord, MergeReport, joined
from unified.fusing.views import plain_table
from unified.quantities import MISSING, count_text, plural, seconds_text

if TYPE_CHECKING:
    from unified.merging.session import Merged


def end_table(report: MergeReport) -> RenderableType:
    """Return a line per combination: score, FLOPs and latency of each scheme, and the gain in FLOPs over the baselines."""
    schemes = report.schemes
    titles = [f"{what} {name}" for what in ("score", "FLOPs", "latency") for name in schemes]
    gained = [f"gain over {name}" for name in report.gains]
    table = plain_table("tasks", *titles, *gained)
    for number, record in enumerate(schemes[OURS].combinations):
        rows = [scheme.combinations[number] for scheme in schemes.values()]
        table.add_row(
            joined(record.tasks),
            *(f"{row.score:.2%}" for row in rows),
            *(count_text(row.flops) for row in rows),
            *(_latency(row) for row in rows),
            *(f"{found.ratios[record.tasks]:.2f}x" for found in report.gains.values()),
        )
    return table


def end_lines(merged: Merged, num_threads: int) -> list[str]:
    """Return what is to be said below the table."""
    report = merged.report
    lines = [f"note: {note}" for note in (*report.notes, *merged.notes)]
    if not report.is_held_out:
        lines.append("the scores are of the data that chose, for there are none held out")
    lines += [
        f"{name} takes {found.average:.2f} times the FLOPs of {OURS} on average over the combinations, {found.peak:.2f} at most"
        for name, found in report.gains.items()
    ]
    lines.append(f"alpha {report.alpha:g}, {seconds_text(report.seconds)} with {plural(num_threads, 'CPU thread')}")
    if merged.folder is not None:
        lines.append(f"the merged model and report.html are in {Path(merged.folder)}")
    return lines


def _latency(row: CombinationRecord) -> str:
    return MISSING if row.latency is None else f"{row.latency.median_seconds * 1e3:.3g} ms"
