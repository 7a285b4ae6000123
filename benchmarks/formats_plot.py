"""The formats benchmark's plot: step time against eager, and estimated against true memory, a line per model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.formats_tables import Row

BLUE, ORANGE = "#2f6da8", "#d9903d"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of the accepted models."""
    accepted = [row for row in rows if row.outcome == "accepted"]
    figure = Figure(figsize=(10.0, 1.4 + 0.19 * max(len(accepted), 1)), layout="constrained")
    steps, memory = figure.subplots(1, 2, sharey=True)
    places = range(len(accepted))
    ratios = [row.step_ratio or (1.0, 1.0, 1.0) for row in accepted]
    middle = [ratio[0] for ratio in ratios]
    spread = [[m - low for m, low, _ in ratios], [high - m for m, _, high in ratios]]
    steps.errorbar(middle, places, xerr=spread, fmt="o", markersize=4, color=BLUE, elinewidth=1)
    _panel(steps, "step time, loaded / eager (quartiles)", (0.95, 1.05))
    memory.plot([row.peak_ratio or 1.0 for row in accepted], places, "o", markersize=4, color=BLUE, label="peak")
    memory.plot([row.eval_ratio or 1.0 for row in accepted], places, "x", markersize=4, color=ORANGE, label="evaluation")
    _panel(memory, "memory, estimate / measured", (0.9, 1.1))
    memory.legend(frameon=False, fontsize=8)
    steps.set_yticks(list(places), [row.name for row in accepted], fontsize=7)
    steps.set_ylim(max(len(accepted), 1) - 0.5, -0.5)  # from top to bottom
    figure.savefig(path, dpi=130)


def _panel(axis: Axes, title: str, band: tuple[float, float]) -> None:
    axis.axvspan(*band, color="#eeeeee", zorder=0)
    axis.axvline(1.0, color="#444444", linewidth=0.8)
    axis.set_title(title, fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
