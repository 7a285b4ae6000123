"""The scheduling benchmark's plot: what a decision costs, and makespan and completion under every policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.records import RunRecord
from benchmarks.scheduler_decisions import NUM_RESIDENT, WINDOW, DecisionCost
from benchmarks.schedulers_tables import MAX_SELECT_MS, modes_in
from benchmarks.verdicts import Spread, values

_COLORS = ("#2f6da8", "#d9903d")


def draw(decisions: Sequence[DecisionCost], runs: Sequence[RunRecord], path: Path) -> None:
    """Write a PNG: decisions on the left, the jobs on the right; of what was not measured the panel says so."""
    figure = Figure(figsize=(13.0, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    answers, whole = ([getattr(each, part).p99 for each in decisions] for part in ("select", "whole"))
    _bars(left, [each.policy for each in decisions], {"answer": answers, "asked and checked": whole})
    left.set_title(f"a decision over {NUM_RESIDENT} resident and {WINDOW} queued jobs")
    left.set_xlabel("p99, ms")
    if decisions:
        left.set_xscale("log")
        left.axvline(MAX_SELECT_MS, color="#444444", linewidth=0.8, linestyle="--")
    modes = modes_in(runs)
    figures = {"makespan": "makespan", "mean completion since submission": "mean_completion"}
    medians = {
        label: [Spread.of([*values(runs, "small", mode, name).values()]).median for mode in modes]
        for label, name in figures.items()
    }
    _bars(right, modes, medians)
    right.set_title("eight small jobs handed in at once, one slot of one thread")
    right.set_xlabel("s")
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, names: Sequence[str], groups: dict[str, list[float]]) -> None:
    """Draw a bar of each group for each name, the first on top."""
    if not names:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    height = 0.8 / len(groups)
    for number, (label, lengths) in enumerate(groups.items()):
        places = [place + (number - (len(groups) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, lengths, height=height, color=_COLORS[number], label=label)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(groups))
