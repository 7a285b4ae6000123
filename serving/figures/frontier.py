"""The best score within each latency, for all tasks (MTLsys, figure 3) and for each (figure 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from matplotlib.axes import Axes

from serving.figures.drawing import COLOURS, MARKERS, Cell, Written, name_of, new_figure, share_legend, write
from serving.figures.panels import ALONE, TOGETHER, Line, Panel
from serving.mishits import Residency, Setting
from serving.queries import Budget, Decision, Offer, Query
from serving.selection import pareto_offers, select
from serving.systems import System, view
from serving.table import Table

_NO_REAL_TIE = 1 + 1e-9  #: n times a cost, divided by n, may be a hair below the cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From this limit on, this is the most accurate answer."""

    limit_ms: float
    offer: Offer


def frontier(table: Table, tasks: frozenset[str], setting: Setting, budget: Budget) -> list[Step]:
    """Return the limits at which the best mean score of some tasks rises, increasing."""
    state, rows, quantile = setting.residency.state(table), setting.rows, setting.quantile
    if budget is Budget.OPTIMAL:
        offers = pareto_offers(tasks, table, state, rows=rows, quantile=quantile)
        return [Step(limit_ms=offer.predicted_ms, offer=offer) for offer in offers]
    cost = table.latency(rows, quantile) + state.load_ms
    limits = {float(ms) * share * _NO_REAL_TIE for ms in cost for share in (1, len(tasks))}
    found: list[Step] = []
    for limit in sorted(limits):
        answer = select(Query(tasks=tasks, latency_ms=limit, budget=budget), table, state, rows=rows, quantile=quantile)
        if isinstance(answer, Decision) and (not found or answer.offer.mean_accuracy > found[-1].offer.mean_accuracy):
            found.append(Step(limit_ms=limit, offer=answer.offer))
    return found


def draw_all_tasks(
    table: Table, place: Path, *, residencies: Sequence[Residency], setting: Setting, notes: Mapping[str, str]
) -> Written:
    """Draw the mean score of all tasks against latency, a panel for each residency (figure 3)."""
    tasks = frozenset(table.family.task_names)
    panels = [[Panel(tasks=tasks, setting=replace(setting, residency=residency)) for residency in residencies]]
    return _draw(table, place, 3, panels, TOGETHER, notes)


def draw_each_task(
    table: Table, place: Path, *, residencies: Sequence[Residency], setting: Setting, notes: Mapping[str, str]
) -> Written:
    """Draw the score of each task against latency, a row for each residency (figure 7)."""
    tasks = [frozenset([task]) for task in table.family.task_names]
    panels = [[Panel(tasks=one, setting=replace(setting, residency=residency)) for one in tasks] for residency in residencies]
    return _draw(table, place, 7, panels, ALONE, notes)


def _draw(
    table: Table, place: Path, number: int, panels: Sequence[Sequence[Panel]], lines: Sequence[Line], notes: Mapping[str, str]
) -> Written:
    title = "Best mean score of all tasks within a latency" if number == 3 else "Best score of each task within a latency"
    figure, axes = new_figure(len(panels), len(panels[0]), title)
    rows: list[Sequence[Cell]] = []
    for panel, one in zip(chain.from_iterable(panels), chain.from_iterable(axes), strict=True):
        found = {line: frontier(view(table, line[0]), panel.tasks, panel.setting, line[1]) for line in lines}
        _draw_lines(one, found, is_split=len(panel.tasks) > 1)
        one.set_title(panel.title, fontsize=9)
        one.set_xlabel("latency limit (ms)", fontsize=9)
        one.set_ylabel("mean score" if len(panel.tasks) > 1 else "score", fontsize=9)
        for (system, budget), steps in found.items():
            rows += [
                (*panel.cells, system, budget, step.limit_ms, step.offer.mean_accuracy, step.offer.version) for step in steps
            ]
    share_legend(figure, axes[0][0])
    columns = ["tasks", "residency", "system", "budget", "limit_ms", "mean_score", "variants"]
    return write(figure, place, number=number, title=title, columns=columns, rows=rows, notes=notes)


def _draw_lines(axes: Axes, found: Mapping[Line, Sequence[Step]], *, is_split: bool) -> None:
    end = max((steps[-1].limit_ms for steps in found.values() if steps), default=1.0) * 1.05
    for (system, budget), steps in found.items():
        limits, scores = [step.limit_ms for step in steps], [step.offer.mean_accuracy for step in steps]
        style = "--" if is_split and system is System.C and budget is Budget.OPTIMAL else "-"
        label = name_of(system, budget if is_split else None)
        axes.step([*limits, end], [*scores, *scores[-1:]] if scores else [math.nan], style, where="post", color=COLOURS[system],
                  marker=MARKERS[system], markersize=4, markevery=range(len(limits)), linewidth=1.6, label=label)  # fmt: skip
    axes.set_xlim(left=0)
