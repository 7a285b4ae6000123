"""Score against pruning, of variants pretrained on all tasks and of those trained for one alone (MTLsys, figure 6).

The paper calls its own result inconclusive; the figure is drawn and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.errors import ServingError
from serving.figures.drawing import COLOURS, MARKERS, Cell, Written, new_figure, share_legend, write
from serving.records import Source, Variant
from serving.systems import System
from serving.table import Table

_LINES = (
    (Source.HEAD_REMOVED, System.A, "pretrained on all tasks, then one"),
    (Source.SINGLE, System.C, "one task from the beginning"),
)


def draw(table: Table, place: Path, *, notes: Mapping[str, str]) -> Written:
    """Draw the score of each task against the pruning ratio that was asked for.

    Raises:
        ServingError: If no variant answers one task alone.
    """
    names = table.family.task_names
    title = "Score against pruning"
    figure, axes = new_figure(1, len(names), title)
    rows: list[Sequence[Cell]] = []
    for column, (task, one) in enumerate(zip(names, axes[0], strict=True)):
        for source, system, label in _LINES:
            found = _pruned(table, task, source)
            ratios = [100 * variant.ratio for variant, _ in found]
            scores = [float(table.scores[at, column]) for _, at in found]
            one.plot(
                ratios, scores, "-", color=COLOURS[system], marker=MARKERS[system], markersize=5, linewidth=1.6, label=label
            )
            rows += [_row(task, variant, score) for (variant, _), score in zip(found, scores, strict=True)]
        one.set_title(task, fontsize=9)
        one.set_xlabel("pruning ratio asked for (%)", fontsize=9)
        one.set_ylabel("score", fontsize=9)
    if not rows:
        raise ServingError(f"family {table.family.name!r} has no profiled variants of one task alone")
    share_legend(figure, axes[0][0])
    columns = ["task", "source", "ratio", "channels_gone", "parameters_gone", "flops_gone", "score", "variant"]
    return write(figure, place, number=6, title=title, columns=columns, rows=rows, notes=notes)


def _pruned(table: Table, task: str, source: Source) -> list[tuple[Variant, int]]:
    places = [at for at, variant in enumerate(table.variants) if (variant.source, variant.tasks) == (source, (task,))]
    return sorted(((table.variants[at], at) for at in places), key=lambda found: (found[0].ratio, found[0].id))


def _row(task: str, variant: Variant, score: float) -> Sequence[Cell]:
    gone = [variant.achieved.get(what, "") for what in ("channels", "parameters", "flops")]
    return (task, variant.source, variant.ratio, *gone, score, variant.id)
