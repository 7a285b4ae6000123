"""The picture of the merging benchmark: operations by task combination, relative to pruning alone, and what is shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.merging_aims import ALONE, OURS, ZIPPED, Run, flops_of
from benchmarks.merging_tables import PRUNING

COLOURS = {ALONE: "#999999", ZIPPED: "#d9822b", OURS: "#1f6fb4"}


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw a row for each network, set of tasks and pruning method."""
    rows = list(dict.fromkeys((run["network"], run["tasks"], run["method"]) for run in runs))
    figure, axes = plt.subplots(len(rows), 2, figsize=(11, 3.2 * len(rows)), squeeze=False, layout="constrained")
    for (network, tasks, method), (left, right) in zip(rows, axes, strict=True):
        same = [run for run in runs if (run["network"], run["tasks"], run["method"]) == (network, tasks, method)]
        _costs(same, left)
        left.set_title(
            f"{network}, {tasks} tasks, {PRUNING[method]}, {len(same)} seed{'s' if len(same) > 1 else ''}", fontsize=10
        )
        _sharing(same, right)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _costs(runs: Sequence[Run], axes: Axes) -> None:
    names = ["+".join(each["tasks"]) for each in runs[0]["report"]["schemes"][OURS]["combinations"]]
    for offset, scheme in enumerate((ALONE, ZIPPED, OURS)):
        ratios = [[flops_of(run, scheme, name) / flops_of(run, ALONE, name) for run in runs] for name in names]
        places = [place + 0.27 * (offset - 1) for place in range(len(names))]
        axes.bar(places, [fmean(values) for values in ratios], 0.25, label=scheme, color=COLOURS[scheme])
        for place, values in zip(places, ratios, strict=True):
            axes.plot([place] * len(values), values, "k.", markersize=4)
    axes.axhline(1, color="#555555", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("FLOPs / B1's")
    axes.set_xlabel("tasks that are run (a dot is a seed)")
    axes.legend(fontsize=8, ncols=3)


def _sharing(runs: Sequence[Run], axes: Axes) -> None:
    layers = [layer["name"] for layer in runs[0]["report"]["layers"]]
    for run in runs:
        found = {layer["name"]: 100 * layer["sharing"] for layer in run["report"]["layers"]}
        axes.plot(layers, [found.get(name, 0.0) for name in layers], "o-", label=f"seed {run['seed']}")
    axes.set_ylim(-3, 103)
    axes.set_ylabel("shared neurons %")
    axes.tick_params(axis="x", rotation=45 if len(layers) > 6 else 0)
    axes.set_title("sharing ratio by layer after pruning", fontsize=10)
    axes.legend(fontsize=8)
