"""The picture of the benchmark of serving: variants by latency and score, mishits, unused heads, and throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Found = Mapping[str, Any]
COLOURS = {"pruned": "#1f6fb4", "head_removed": "#5aa469", "single": "#d9822b"}
NAMES = {"pruned": "all tasks", "head_removed": "one task, heads removed", "single": "one task, trained alone"}


def draw(found: Found, path: Path) -> None:
    """Draw what was measured."""
    parts: dict[str, Callable[[Found, Axes], None]] = {
        "build": _variants, "mishits": _mishits, "heads": _heads, "load": _loads
    }  # fmt: skip
    there = {stage: part for stage, part in parts.items() if stage in found}
    if not there:
        return
    figure, axes = plt.subplots(1, len(there), figsize=(5.2 * len(there), 4), squeeze=False, layout="constrained")
    for (stage, part), place in zip(there.items(), axes[0], strict=True):
        part(found[stage], place)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _variants(found: Found, axes: Axes) -> None:
    for source, colour in COLOURS.items():
        rows = [row for row in found["rows"] if row["source"] == source]
        scores = [fmean(score for score in row["scores"].values() if score is not None) for row in rows]
        axes.scatter([row["p50_ms"]["1"] for row in rows], scores, s=16, color=colour, label=NAMES[source])
    axes.set_xlabel("latency of one sample, ms (median)")
    axes.set_ylabel("mean score of its tasks")
    axes.set_title("variants", fontsize=10)
    axes.legend(fontsize=8)


def _mishits(found: Found, axes: Axes) -> None:
    grids = [grid for grid in found["grids"] if len(grid["tasks"]) > 1 and grid["mode"] == "per_task"]
    names = {"A/optimal": "A: multi-task, heads removed", "B/optimal": "B: all heads", "C/equal": "C: single-task"}
    for offset, (system, name) in enumerate(names.items()):
        shares = [100 * grid["mishits"][system] for grid in grids]
        axes.bar([place + 0.27 * (offset - 1) for place in range(len(grids))], shares, 0.25, label=name)
    axes.set_xticks(range(len(grids)), [f"{grid['residency']} resident" for grid in grids])
    axes.set_ylabel("queries for all tasks that miss, %")
    axes.set_title("planned mishits", fontsize=10)
    axes.legend(fontsize=8)


def _heads(found: Found, axes: Axes) -> None:
    depths = [row["depth"] for row in found["rows"]]
    axes.plot(depths, [row["kept_ms"] for row in found["rows"]], "o-", color="#999999", label="all heads kept")
    axes.plot(depths, [row["removed_ms"] for row in found["rows"]], "o-", color="#5aa469", label="unused heads removed")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layers of a head")
    axes.set_ylabel("latency of one sample, ms (median)")
    axes.set_title("a query for one task", fontsize=10)
    axes.legend(fontsize=8)


def _loads(found: Found, axes: Axes) -> None:
    for load, colour in (("fast", "#1f6fb4"), ("accurate", "#d9822b")):
        for batching, style in ((True, "o-"), (False, "o--")):
            runs = [run for run in found["runs"] if run["load"] == load and run["batching"] == batching]
            clients = sorted({run["concurrency"] for run in runs})
            rates = [median(run["per_second"] for run in runs if run["concurrency"] == number) for number in clients]
            label = f"{load} variants, {'batching' if batching else 'none'}"
            axes.plot(clients, rates, style, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 4, 16], ["1", "4", "16"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients, one request under way each")
    axes.set_ylabel("answers per second")
    axes.set_title("loopback load", fontsize=10)
    axes.legend(fontsize=8)
