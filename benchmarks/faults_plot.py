"""The fault benchmark's plot: kills and finished jobs over time, and the distributions of latencies and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.queue_latency import START, Latencies
from benchmarks.storm import MIX, Storm
from benchmarks.storm_verdict import Loss
from unified.job_state import JobState

COLORS = {"worker": "#9a9a9a", "submitter": "#6aa84f", "supervisor": "#c0392b", "http": "#8e5ea2"}
BLUE, ORANGE = "#2f6da8", "#d9903d"
CURVE_COLORS = (BLUE, ORANGE, "#6aa84f", "#8e5ea2", "#c0392b", "#9a9a9a", "#7fb2dd", "#b7950b")


def draw(storm: Storm | None, losses: Sequence[Loss], latencies: Latencies | None, path: Path) -> None:
    """Write a PNG of what there is; nothing if there is nothing."""
    panels = (["storm", "losses"] if storm is not None else []) + (["latencies"] if latencies is not None else [])
    if not panels:
        return
    figure = Figure(figsize=(5.8 * len(panels), 5.0), layout="constrained")
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    if storm is not None:
        _draw_storm(axes["storm"], storm)
        _draw_losses(axes["losses"], losses)
    if latencies is not None:
        _draw_latencies(axes["latencies"], latencies)
    figure.savefig(path, dpi=130)


def _draw_storm(axes: Axes, storm: Storm) -> None:
    """Draw kills and finished jobs, counted from the start; supervisors' kills as lines."""
    ends = [move.time for ended in storm.jobs for move in ended.transitions if move.new is JobState.FINISHED]
    _draw_count(axes, [kill.time - storm.began for kill in storm.kills], "SIGKILLs", COLORS["worker"])
    _draw_count(axes, [time - storm.began for time in ends], "jobs finished", BLUE)
    for target in MIX:
        if target != "worker":
            times = [kill.time - storm.began for kill in storm.kills if kill.target == target]
            height = [-0.02 * len(storm.kills)] * len(times)
            axes.plot(times, height, "|", color=COLORS[target], markersize=7, label=f"{target} killed")
    axes.set_xlabel("seconds")
    _finish(axes, "the storm")


def _draw_count(axes: Axes, times: Sequence[float], label: str, color: str) -> None:
    axes.step([0.0, *sorted(times)], np.arange(len(times) + 1), where="post", color=color, label=label)


def _draw_losses(axes: Axes, losses: Sequence[Loss]) -> None:
    figures = {
        "death of a worker noticed, s": [loss.noticed_seconds for loss in losses if loss.target == "worker"],
        "trains again after a worker's death, s": [loss.back_seconds for loss in losses if loss.target == "worker"],
        "trains again after a supervisor's, s": [loss.back_seconds for loss in losses if loss.target == "supervisor"],
        "work redone, s": [loss.redone_seconds for loss in losses],
    }
    known = {name: [value for value in values if value is not None] for name, values in figures.items()}
    _draw_shares(axes, known, "seconds")
    _finish(axes, "what each kill cost")


def _draw_latencies(axes: Axes, latencies: Latencies) -> None:
    found = {name: seconds for name, seconds in latencies.seconds.items() if name != START}
    in_ms = {name: [1e3 * value for value in seconds] for name, seconds in found.items()}
    _draw_shares(axes, in_ms, "milliseconds")
    _finish(axes, f"latency, {latencies.queued} jobs queued")


def _draw_shares(axes: Axes, figures: Mapping[str, Sequence[float]], label: str) -> None:
    """Draw, for each figure, which share of its values is at most so large; on a logarithmic axis."""
    for (name, values), color in zip(figures.items(), CURVE_COLORS, strict=False):
        if values:
            ordered = np.maximum(np.sort(values), 1e-3)
            axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=color, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("share of values up to it")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
