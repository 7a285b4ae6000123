"""The tables that fusion prints at its end: each allowed drop's model, and how each task came out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from fusion.search.report import Entry, FusionReport, TaskEnd
from unified.fusing.views import cost_text, drop_text, plain_table, times_text
from unified.fusing.writing import folders
from unified.quantities import MISSING, count_text, plural, seconds_text, value_text

if TYPE_CHECKING:
    from unified.fusing.session import Fusion


def end_table(report: FusionReport) -> RenderableType:
    """Return what was found: a line per allowed drop, and under it a line per task."""
    models = plain_table("drop allowed", "speedup", "latency", "before", "FLOPs", "before", "parameters", "before")
    for entry in report.best.values():
        models.add_row(*_model_cells(entry, report))
    tasks = plain_table("task", "score", "before", "drop", "held out", "before", "drop")
    for entry in report.best.values():
        if len(report.best) > 1:
            tasks.add_row(Text(f"within {value_text(entry.threshold)}", style="bold"))
        for task in entry.tasks:
            tasks.add_row(*_task_cells(task))
    return Group(models, Text(), tasks)


def end_lines(fusion: Fusion, out: Path, num_threads: int) -> list[str]:
    """Return what is to be said below the table."""
    report = fusion.report
    lines = [f"note: {note}" for note in (*report.notes, *fusion.notes)]
    for entry in report.best.values():
        if entry.number == 0:
            lines.append(
                f"nothing faster was found within {value_text(entry.threshold)}: its model is the originals side by side"
            )
        if entry.rejected:
            numbers = ", ".join(map(str, entry.rejected))
            lines.append(f"within {value_text(entry.threshold)} on validation but not on held-out data: candidates {numbers}")
        if entry.is_within is None:
            lines.append(f"the drops of the model within {value_text(entry.threshold)} were not checked on held-out data")
    searched = f"{plural(len(report.candidates), 'candidate')} in {seconds_text(report.seconds)}"
    lines.append(f"{report.why}: {searched} with {plural(num_threads, 'CPU thread')}")
    others = [path.name for path in folders(report, out).values() if path != out]
    also = f" (and in {', '.join(others)} of it)" if others else ""
    lines.append(f"the fused model and report.html are in {out}{also}")
    return lines


def _model_cells(entry: Entry, report: FusionReport) -> list[str]:
    return [
        value_text(entry.threshold),
        times_text(entry.speedup),
        cost_text(entry.timing.median_seconds, "latency"),
        cost_text(entry.original_timing.median_seconds, "latency"),
        count_text(entry.flops),
        count_text(report.original["flops"]),
        count_text(entry.parameters),
        count_text(report.original["parameters"]),
    ]


def _task_cells(task: TaskEnd) -> list[str]:
    test_drop = math.nan if task.test_drop is None else task.test_drop
    kind = "own metric" if task.kind == "callable" else task.kind
    return [
        f"{task.task} ({kind})",
        value_text(task.after),
        value_text(task.before),
        drop_text(task.drop),
        MISSING if task.test_after is None else value_text(task.test_after),
        MISSING if task.test_before is None else value_text(task.test_before),
        drop_text(test_drop),
    ]
