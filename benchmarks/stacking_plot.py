"""The stacking benchmark's plot: how many times the loop each way is, over the number of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.stacking_tables import Cell

COLORS = {"unified": "#2f6da8", "stack": "#7fb0dc", "vmap": "#d9903d", "processes": "#9a9a9a"}


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Write a PNG: a row for each phase and number of threads, a column for each model."""
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    rows = list(dict.fromkeys((cell.phase, cell.threads) for cell in cells))
    if not kinds:
        return
    figure = Figure(figsize=(1.0 + 2.7 * len(kinds), 0.8 + 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(kinds), squeeze=False, sharex=True)
    for row, (phase, threads) in enumerate(rows):
        for column, kind in enumerate(kinds):
            mine = [cell for cell in cells if (cell.kind, cell.phase, cell.threads) == (kind, phase, threads)]
            _panel(axes[row][column], mine)
            if row == 0:
                axes[row][column].set_title(kind, fontsize=10)
        axes[row][0].set_ylabel(f"{phase}, {threads} thread{'s' * (threads > 1)}\ntimes the loop", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("models", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) if len(kinds) > 2 else 1, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=130)


def _panel(axis: Axes, cells: Sequence[Cell]) -> None:
    axis.axhline(1.0, color="#444444", linewidth=0.8)
    names = {"unified": "unified (as measured to pay)", "stack": "stack", "vmap": "torch.func.vmap"}
    for way, label in names.items():
        found = [(cell.count, ratio) for cell in cells if (ratio := cell.ratio(way)) is not None]
        if not found:
            axis.plot([], [], color=COLORS[way], label=label)
            continue
        counts = [count for count, _ in found]
        width, order = (2.2, 3) if way == "unified" else (1.2, 2)
        axis.plot(
            counts,
            [r.median for _, r in found],
            "o-",
            color=COLORS[way],
            label=label,
            markersize=3,
            linewidth=width,
            zorder=order,
        )
        if way == "unified":
            low, high = [ratio.low for _, ratio in found], [ratio.high for _, ratio in found]
            axis.fill_between(counts, low, high, color=COLORS[way], alpha=0.2, linewidth=0)
    machine = [(cell.count, cell.whole_machine_seconds) for cell in cells if cell.whole_machine_seconds]
    label = "a stack per core, times N processes"
    values = [each["processes"] / each["stacks"] for _, each in machine]
    axis.plot(
        [count for count, _ in machine], values, "s--", color=COLORS["processes"], label=label, markersize=3, linewidth=1.2
    )
    axis.set_xscale("log", base=2)
    ticks = sorted({cell.count for cell in cells})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, color="#eeeeee")
    axis.set_ylim(bottom=0)
