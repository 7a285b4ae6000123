"""The benchmark's plot: makespan, mean completion and peak memory of every mode on every mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.modes import MODES, Kind, Mode
from benchmarks.records import RunRecord
from benchmarks.verdicts import Spread, mixes, values

PANELS = (
    ("makespan", "makespan, s", 1.0),
    ("mean_completion", "mean completion since submission, s", 1.0),
    ("peak_bytes", "peak memory (PSS), MiB", 2.0**20),
)
"""Figure of a run, label, and what it is divided by."""

COLORS = {Kind.SEQUENTIAL: "#9a9a9a", Kind.PROCESSES: "#d9903d", Kind.UNIFIED: "#2f6da8"}
LABELS = {
    Kind.SEQUENTIAL: "plain PyTorch, one after another",
    Kind.PROCESSES: "plain PyTorch, N processes",
    Kind.UNIFIED: "unified",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: a mode, its figure, and whether that is only a lower bound because a run was stopped."""

    mode: Mode
    spread: Spread
    is_bound: bool


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Write a PNG: a row per figure, a column per mix; bars are medians, whiskers reach from lowest to highest."""
    names = mixes(records)
    figure = Figure(figsize=(1.8 + 4.2 * len(names), 9.6), layout="constrained")
    grid = figure.subplots(len(PANELS), len(names), squeeze=False)
    for row, (name, label, divisor) in enumerate(PANELS):
        for column, mix in enumerate(names):
            axes = grid[row][column]
            _panel(axes, _bars(records, mix, name, divisor), has_names=column == 0)
            axes.set_xlabel(label)
            if row == 0:
                num_jobs = len(next(each for each in records if each.mix == mix).jobs)
                axes.set_title(f"mix “{mix}”, {num_jobs} jobs")
    kinds = {mode.kind for mode in MODES if any(each.mode == mode.name for each in records)}
    handles = [Patch(color=COLORS[kind], label=LABELS[kind]) for kind in Kind if kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def _bars(records: Sequence[RunRecord], mix: str, figure: str, divisor: float) -> list[Bar]:
    bars = []
    for mode in MODES:
        runs = [each for each in records if each.mix == mix and each.mode == mode.name]
        if runs:
            found = [value / divisor for value in values(records, mix, mode.name, figure).values()]
            is_bound = figure != "peak_bytes" and any(run.is_stopped for run in runs)
            bars.append(Bar(mode=mode, spread=Spread.of(found), is_bound=is_bound))
    return bars


def _panel(axes: Axes, bars: Sequence[Bar], *, has_names: bool) -> None:
    """Draw the bars, the first on top, each with its value beyond its whisker."""
    longest = max(bar.spread.high for bar in bars)
    for place, bar in enumerate(bars):
        _draw_bar(axes, place, bar, longest)
    axes.set_yticks(range(len(bars)), [bar.mode.name if has_names else "" for bar in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, (1.45 if any(bar.is_bound for bar in bars) else 1.2) * longest)  # room for the values
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_bar(axes: Axes, place: int, bar: Bar, longest: float) -> None:
    spread, style = bar.spread, {"ecolor": "#333333", "capsize": 2.5, "height": 0.72}
    reach = [[spread.median - spread.low], [spread.high - spread.median]] if spread.low < spread.high else None
    axes.barh(place, spread.median, color=COLORS[bar.mode.kind], xerr=reach, **style)
    text = f"{spread.median:.1f}" if longest < 100 else f"{spread.median:.0f}"
    text = f"> {text}, stopped" if bar.is_bound else text
    axes.text(spread.high + 0.02 * longest, place, text, va="center", fontsize=8)
