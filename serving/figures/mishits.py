"""The share of queries that a system cannot satisfy, by their floor: for all tasks (MTLsys, figure 5), for each (figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from serving.figures.drawing import COLOURS, MARKERS, Cell, Written, name_of, new_figure, share_legend, write
from serving.figures.panels import ALONE, TOGETHER, Line, Panel
from serving.mishits import Comparison, Floor, Residency, Setting, compare
from serving.queries import AccuracyMode, Budget
from serving.systems import System
from serving.table import Table

_NUM_LABELS = 5
_MODES = {AccuracyMode.PER_TASK: "floor for each task", AccuracyMode.AVERAGE: "floor for the average"}


def draw_all_tasks(
    table: Table, place: Path, *, residencies: Sequence[Residency], setting: Setting, steps: int, notes: Mapping[str, str]
) -> tuple[Written, list[Comparison]]:
    """Draw the mishits of queries for all tasks: a row for each residency, a column for each meaning of a floor (figure 5)."""
    tasks = frozenset(table.family.task_names)
    panels = [
        [Panel(tasks=tasks, setting=replace(setting, residency=residency, mode=mode)) for mode in AccuracyMode]
        for residency in residencies
    ]
    return _draw(table, place, 5, panels, TOGETHER, steps, notes)


def draw_each_task(
    table: Table, place: Path, *, residencies: Sequence[Residency], setting: Setting, steps: int, notes: Mapping[str, str]
) -> tuple[Written, list[Comparison]]:
    """Draw the mishits of queries for each task, a row for each residency (figure 8)."""
    tasks = [frozenset([task]) for task in table.family.task_names]
    panels = [[Panel(tasks=one, setting=replace(setting, residency=residency)) for one in tasks] for residency in residencies]
    return _draw(table, place, 8, panels, ALONE, steps, notes)


def _draw(
    table: Table,
    place: Path,
    number: int,
    panels: Sequence[Sequence[Panel]],
    lines: Sequence[Line],
    steps: int,
    notes: Mapping[str, str],
) -> tuple[Written, list[Comparison]]:
    title = f"Mishits of queries for {'all tasks' if number == 5 else 'each task'}, over {steps} latency limits"
    figure, axes = new_figure(len(panels), len(panels[0]), title)
    rows: list[Sequence[Cell]] = []
    compared = []
    for panel, one in zip(chain.from_iterable(panels), chain.from_iterable(axes), strict=True):
        found = compare(table, panel.tasks, panel.setting, steps=steps)
        compared.append(found)
        _draw_lines(one, found, lines, table.family.task_names)
        one.set_title(panel.title + (f", {_MODES[panel.setting.mode]}" if number == 5 else ""), fontsize=9)
        rows += [(*panel.cells, *row) for row in _rows(found, lines)]
    share_legend(figure, axes[0][0])
    columns = ["tasks", "residency", "mode", "system", "budget", "floor", "least_limit_ms", "greatest_limit_ms", "mishits"]
    return write(figure, place, number=number, title=title, columns=columns, rows=rows, notes=notes), compared


def _draw_lines(axes: Axes, found: Comparison, lines: Sequence[Line], names: Sequence[str]) -> None:
    is_split = len(found.tasks) > 1
    for system, budget in lines:
        grid = found.grids[system, budget]
        style = "--" if is_split and system is System.C and budget is Budget.OPTIMAL else "-"
        axes.plot(range(len(grid.floors)), 100 * grid.ratios, style, color=COLOURS[system], marker=MARKERS[system],
                  markersize=4, linewidth=1.6, label=name_of(system, budget if is_split else None))  # fmt: skip
    floors = found.grids[lines[0]].floors
    places = np.unique(np.linspace(0, len(floors) - 1, _NUM_LABELS).round().astype(int))
    order = [name for name in names if name in found.tasks]
    is_average = found.setting.mode is AccuracyMode.AVERAGE
    axes.set_xticks(places, [_label(floors[at], order, is_average=is_average) for at in places], fontsize=8)
    what = order[0] if not is_split else f"mean of {', '.join(order)}" if is_average else f"({', '.join(order)})"
    axes.set_xlabel(f"required score: {what}", fontsize=9)
    axes.set_ylabel("mishits (% of limits)", fontsize=9)
    axes.set_ylim(-3, 103)


def _label(floor: Floor, order: Sequence[str], *, is_average: bool) -> str:
    if is_average:
        return f"{sum(floor.values()) / len(floor):.2f}"
    return "\n".join(f"{floor[name]:.2f}" for name in order)


def _rows(found: Comparison, lines: Sequence[Line]) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for system, budget in lines:
        grid = found.grids[system, budget]
        for floor, ratio in zip(grid.floors, grid.ratios.tolist(), strict=True):
            named = ";".join(f"{task}={value:.4g}" for task, value in floor.items())
            rows.append((found.setting.mode, system, budget, named, float(grid.limits[0]), float(grid.limits[-1]), ratio))
    return rows
