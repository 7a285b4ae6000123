"""The pictures of a report: FLOPs, sharing, the estimator's curves, rounds of pruning. The only file with matplotlib."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusion.merging.records import ALONE, ORIGINAL, OURS, ZIPPED

_COLOURS = {ORIGINAL: "#c3cad4", ALONE: "#7d8897", ZIPPED: "#d98c2b", OURS: "#2f6fb3"}
_GROUPS = ("#2f6fb3", "#d98c2b", "#3a9a6b", "#b65a8c", "#8169c4", "#5f8fa8", "#a8843e")
_INK = "#76808d"  # is read on white and on black
_STYLE = {
    "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "unified", "font.family": ["sans-serif"],
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "legend.frameon": False,
}  # fmt: skip
_MAX_COMBINATIONS = 15
_COLUMNS = 3


def figures(report: dict[str, Any]) -> dict[str, Figure]:
    """Return the figures of a report that was written as JSON, by name; only those that there is something to show in."""
    with mpl.rc_context(_STYLE):
        found = {"flops": _flops(report), "sharing": _sharing(report)}
        if report["curves"]:
            found["curves"] = _curves(report)
        if any(scheme["rounds"] for scheme in report["schemes"].values()):
            found["rounds"] = _rounds(report)
        return found


def svg_of(figure: Figure) -> str:
    """Return a figure as an element to stand in a page; the same figure gives the same text."""
    with mpl.rc_context(_STYLE):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _flops(report: dict[str, Any]) -> Figure:
    schemes = report["schemes"]
    names = [record["tasks"] for record in schemes[OURS]["combinations"]][:_MAX_COMBINATIONS]
    figure = Figure(figsize=(max(5.0, 1.5 + len(names) * 0.35 * len(schemes)), 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(schemes)
    size, unit = _unit(report)
    for place, (name, scheme) in enumerate(schemes.items()):
        values = [record["flops"] / size for record in scheme["combinations"][: len(names)]]
        positions = [number + (place - (len(schemes) - 1) / 2) * width for number in range(len(names))]
        axes.bar(positions, values, width * 0.92, label=name, color=_COLOURS[name])
    axes.set_xticks(range(len(names)), [_label(tasks) for tasks in names])
    axes.set_ylabel(f"{unit} per sample")
    axes.legend(ncols=len(schemes), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _sharing(report: dict[str, Any]) -> Figure:
    layers = report["layers"]
    groups = _groups(report)
    figure = Figure(figsize=(max(5.0, 1.5 + 0.7 * len(layers)), 3.2), layout="constrained")
    axes = figure.subplots()
    below = [0.0] * len(layers)
    for number, group in enumerate(groups):
        shares = [layer["sizes"].get(group, 0) / max(1, layer["live"]) for layer in layers]
        axes.bar(range(len(layers)), shares, 0.7, bottom=below, label=group, color=_GROUPS[number % len(_GROUPS)])
        below = [old + new for old, new in zip(below, shares, strict=True)]
    for place, layer in enumerate(layers):
        axes.annotate(f"{layer['sharing']:.0%}", (place, 1.01), ha="center", va="bottom")
    axes.set_xticks(range(len(layers)), [layer["name"] for layer in layers])
    if len(layers) > 6:
        axes.tick_params(axis="x", labelrotation=60)
    axes.set_ylabel("share of live neurons (above: sharing ratio)")
    axes.set_ylim(0, 1.08)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _curves(report: dict[str, Any]) -> Figure:
    layers = list(dict.fromkeys(curve["layer"] for curve in report["curves"]))
    rows = -(-len(layers) // _COLUMNS)
    columns = min(_COLUMNS, len(layers))
    figure = Figure(figsize=(max(7.0, 3.6 * columns), 2.6 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    groups = list(dict.fromkeys("+".join(curve["tasks"]) for curve in report["curves"]))
    for axes, layer in zip(grid, layers, strict=False):
        for curve in report["curves"]:
            if curve["layer"] == layer:
                _curve(axes, curve, _GROUPS[groups.index("+".join(curve["tasks"])) % len(_GROUPS)])
        axes.set_title(layer, loc="left")
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("nats about the other tasks")
    for number, group in enumerate(groups):
        grid[0].plot([], [], color=_GROUPS[number % len(_GROUPS)], label=f"for {group}")
    grid[0].plot([], [], color=_INK, linestyle="--", label="shuffled labels")
    grid[0].plot([], [], color=_INK, linestyle=":", label="alpha; dot: last one in")
    figure.legend(*grid[0].get_legend_handles_labels(), ncols=len(groups) + 2, loc="outside upper left")
    figure.supxlabel("neurons in the set", fontsize=9)
    return figure


def _curve(axes: Axes, curve: dict[str, Any], colour: str) -> None:
    numbers = range(1, len(curve["information"]) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(numbers, curve["information"], color=colour)
    axes.plot(numbers, curve["null"], color=colour, linestyle="--", linewidth=0.9)
    if curve["threshold"] is not None:
        axes.axhline(curve["threshold"], color=colour, linestyle=":", linewidth=0.9)
    if curve["num_chosen"]:
        axes.plot([curve["num_chosen"]], [curve["information"][curve["num_chosen"] - 1]], "o", color=colour, markersize=4)


def _rounds(report: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    size, unit = _unit(report)
    for name, scheme in report["schemes"].items():
        networks = dict.fromkeys(tuple(record["network"]) for record in scheme["rounds"])
        for tasks, line in zip(networks, itertools.cycle(("-", "--", ":", "-.")), strict=False):
            rounds = [record for record in scheme["rounds"] if tuple(record["network"]) == tasks]
            label = name if len(tasks) == len(report["tasks"]) else f"{name} {_label(tasks)}"
            _pruning(left, rounds, label, (_COLOURS[name], line), size)
    ours = report["schemes"][OURS]["rounds"]
    for number, task in enumerate(report["tasks"]):
        colour = _GROUPS[number % len(_GROUPS)]
        right.plot([record["number"] for record in ours], [record["scores"][task] for record in ours], color=colour, label=task)
        right.axhline(report["floors"][task], color=colour, linestyle=":", linewidth=0.9)
    left.set(xlabel="round", ylabel=f"{unit}, all its tasks (hollow: undone)", ylim=(0, None))
    right.set(xlabel="round", ylabel=f"score of {OURS} on validation (dotted: floor)")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend()
    right.legend()
    return figure


def _pruning(axes: Axes, rounds: Sequence[dict[str, Any]], label: str, look: tuple[str, str], size: float) -> None:
    colour, line = look
    whole = "+".join(rounds[0]["network"])
    numbers = [record["number"] for record in rounds]
    values = [record["flops"][whole] / size for record in rounds]
    axes.plot(numbers, values, color=colour, linestyle=line, linewidth=1, label=label)
    for kept, face in ((True, colour), (False, "none")):
        points = [place for place, record in enumerate(rounds) if record["is_feasible"] is kept]
        axes.scatter(
            [numbers[place] for place in points], [values[place] for place in points], s=14, edgecolors=colour,
            facecolors=face,
        )  # fmt: skip


def _unit(report: dict[str, Any]) -> tuple[float, str]:
    """Return the unit that suits the FLOPs of all tasks together: its size and its name."""
    largest = max(scheme["combinations"][-1]["flops"] for scheme in report["schemes"].values())
    return next((size, unit) for size, unit in ((1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1, "FLOP")) if largest >= size)


def _groups(report: dict[str, Any]) -> list[str]:
    """Return the groups that occur, those of one task first."""
    found = {group for layer in report["layers"] for group in layer["sizes"]}
    sizes = {record: len(record.split("+")) for record in found}
    return sorted(found, key=lambda group: (sizes[group], group))


def _label(tasks: Sequence[str]) -> str:
    """Name a combination in few characters a line."""
    return "\n+ ".join(tasks)
