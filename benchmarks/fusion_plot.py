"""The fusion benchmark's plot: per set, the best speedup over time by search, and the final ones for each allowed drop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.fusion_records import THRESHOLDS, Search, Unit
from benchmarks.verdicts import Spread

CURVES_AT = 0.01
COLORS = {
    "guided": "#2f6da8",
    "paper-pr": "#d9903d",
    "paper": "#b5562b",
    "random": "#8a6fb0",
    "tree": "#5c9e6a",
    "all-shared": "#9a9a9a",
}
GRID = 200


def draw(units: Sequence[Unit], seconds: float, path: Path) -> None:
    """Write a PNG: a column per set; above, curves at 1 % with the spread over the seeds; below, bars at 0, 1 and 2 %."""
    names = list(dict.fromkeys(unit.set for unit in units))
    if not names:
        return
    figure = Figure(figsize=(1.2 + 4.3 * len(names), 7.4), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    shown: list[str] = []
    for column, name in enumerate(names):
        mine = [unit for unit in units if unit.set == name]
        shown += _curves(grid[0][column], mine, seconds)
        _bars(grid[1][column], mine)
        grid[0][column].set_title(f"{mine[0].models} ({mine[0].source})", fontsize=10)
        if column == 0:
            grid[0][column].set_ylabel(f"best speedup found, {100 * CURVES_AT:g} % allowed\n(by the table of costs)")
            grid[1][column].set_ylabel("final speedup, measured")
    names_shown = [name for name in COLORS if name in shown]
    handles = [Line2D([], [], color=COLORS[name], linewidth=3, label=name) for name in names_shown]
    seeds = len({unit.seed for unit in units})
    title = f"lines and bars: median of {seeds} seeds; bands and whiskers: lowest to highest" if seeds > 1 else "one seed"
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, title=title)
    figure.savefig(path, dpi=130)


def _curves(axes: Axes, units: Sequence[Unit], seconds: float) -> list[str]:
    """Draw the curve of each contender; return whose."""
    drawn = []
    last = max([seconds, *(search.seconds for unit in units for search in unit.searches)])  # a pass is not cut in the middle
    times = np.linspace(0, last, GRID)
    for name, color in COLORS.items():
        found = [search for unit in units if (search := unit.search(name, CURVES_AT)) is not None]
        if found:
            values = np.array([_best(search, times) for search in found])
            axes.plot(times, np.median(values, axis=0), color=color, linewidth=1.8, drawstyle="steps-post")
            if len(found) > 1:
                axes.fill_between(
                    times, values.min(axis=0), values.max(axis=0), step="post", color=color, alpha=0.15, linewidth=0
                )
            drawn.append(name)
    axes.set_xlim(0, last)
    axes.set_ylim(bottom=0.95)
    axes.axvline(seconds, color="#555555", linewidth=0.7, linestyle=":")
    axes.set_xlabel("seconds of search (dotted: its budget)")
    _plain(axes)
    return drawn


def _best(search: Search, times: np.ndarray) -> np.ndarray:
    arrivals = sorted(search.arrivals(CURVES_AT))
    best = np.ones_like(times)
    for seconds, speedup in arrivals:
        best[times >= seconds] = np.maximum(best[times >= seconds], speedup)
    return best


def _bars(axes: Axes, units: Sequence[Unit]) -> None:
    names = [name for name in COLORS if any(unit.search(name, each) is not None for unit in units for each in THRESHOLDS)]
    width = 0.84 / max(1, len(names))
    for place, name in enumerate(names):
        for group, threshold in enumerate(THRESHOLDS):
            found = [search.end(threshold).speedup for unit in units if (search := unit.search(name, threshold)) is not None]
            if found:
                spread = Spread.of(found)
                at = group + (place - (len(names) - 1) / 2) * width
                reach = [[spread.median - spread.low], [spread.high - spread.median]] if len(found) > 1 else None
                style = {"ecolor": "#333333", "capsize": 2}
                axes.bar(at, spread.median, width=0.92 * width, color=COLORS[name], yerr=reach, **style)
                axes.text(at, spread.high, f" {spread.median:.2f}", ha="center", va="bottom", fontsize=6, rotation=90)
    axes.set_xticks(range(len(THRESHOLDS)), [f"≤ {100 * each:g} %" for each in THRESHOLDS])
    axes.set_xlabel("allowed drop on held-out samples")
    axes.axhline(1.0, color="#555555", linewidth=0.7)
    axes.margins(y=0.15)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
