"""Latency against the depth of heads, with the unused ones kept or removed (MTLsys, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.figures.drawing import COLOURS, MARKERS, Written, new_figure, share_legend, write
from serving.head_depth import DepthTiming
from serving.systems import System


def draw(found: Sequence[DepthTiming], place: Path, *, notes: Mapping[str, str]) -> Written:
    """Draw the latency of a network with all heads, and of it with one, and what share that saves."""
    title = "Latency of one task against the depth of the heads"
    figure, [[axes]] = new_figure(1, 1, title, width=6.2, height=4.0)
    depths = [row.depth for row in found]
    lines = (
        (System.B, "all heads kept", [row.kept_ms for row in found], [1e3 * row.kept.quiet_seconds for row in found]),
        (System.A, "unused heads removed", [row.removed_ms for row in found], [_quiet_ms(row) for row in found]),
    )
    for system, label, medians, quiet in lines:
        below = [median - low for median, low in zip(medians, quiet, strict=True)]
        axes.errorbar(depths, medians, yerr=[below, [0] * len(below)], color=COLOURS[system], marker=MARKERS[system],
                      markersize=5, linewidth=1.6, capsize=3, label=label)  # fmt: skip
    for row in found:
        axes.annotate(f"{-100 * row.cut:+.0f} %", (row.depth, _quiet_ms(row)), (0, -13), textcoords="offset points",
                      ha="center", fontsize=8, color=COLOURS[System.A])  # fmt: skip
    axes.set_xticks(depths)
    axes.set_xlabel("linear layers in each head", fontsize=9)
    axes.set_ylabel("inference latency (ms): median, bar to 10th percentile", fontsize=9)
    axes.set_ylim(bottom=0)
    share_legend(figure, axes)
    columns = [
        "depth",
        "kept_ms",
        "kept_p10_ms",
        "kept_iqr_ms",
        "removed_ms",
        "removed_p10_ms",
        "removed_iqr_ms",
        "cut",
        "runs",
    ]
    rows = [
        (
            row.depth,
            *(row.kept_ms, 1e3 * row.kept.quiet_seconds, 1e3 * row.kept.iqr_seconds),
            *(row.removed_ms, _quiet_ms(row), 1e3 * max(timing.iqr_seconds for timing in row.removed.values())),
            *(row.cut, row.kept.num_runs),
        )
        for row in found
    ]
    return write(figure, place, number=4, title=title, columns=columns, rows=rows, notes=notes)


def _quiet_ms(row: DepthTiming) -> float:
    return 1e3 * sum(timing.quiet_seconds for timing in row.removed.values()) / len(row.removed)
