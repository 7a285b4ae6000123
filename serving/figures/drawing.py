"""How figures look, and how they are written: a PNG beside a CSV, whose head says what it was measured on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from serving.queries import Budget
from serving.systems import System

#: As in the paper: the multi-task system red, all heads kept blue, single-task models green.
COLOURS: Mapping[System, str] = {System.A: "#c0392b", System.B: "#1f6fb4", System.C: "#2e8b57"}
#: The same mark for the same system in all figures, so that they can be told apart without colour.
MARKERS: Mapping[System, str] = {System.A: "o", System.B: "s", System.C: "^"}
DOTS_PER_INCH = 150
_GRID, _TEXT = "#dddddd", "#333333"

Cell = str | float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A figure's files.

    Attributes:
        figure: Number in the paper.
        title: What it shows.
        png: The picture.
        csv: The numbers.
    """

    figure: int
    title: str
    png: Path
    csv: Path


def new_figure(
    rows: int, columns: int, title: str, *, width: float = 4.6, height: float = 3.5
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of so many panels, each ``width`` by ``height`` inches, and its axes by row and column."""
    figure = Figure(figsize=(max(5.5, width * columns), height * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, color=_TEXT)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(visible=True, color=_GRID, linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8, colors=_TEXT)
    return figure, [list(row) for row in axes]


def share_legend(figure: Figure, axes: Axes) -> None:
    """Put one legend below all panels, of the lines of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=max(1, int(figure.get_figwidth() // 3)), fontsize=9, frameon=False
    )


def name_of(system: System, budget: Budget | None = None) -> str:
    """Return what a legend says of a system, and of how it splits a limit where that makes a difference."""
    split = "" if budget is None or system is not System.C else f", {budget} split of the limit"
    return f"{system}: {system.words}{split}"


def write(
    figure: Figure,
    place: Path,
    *,
    number: int,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    notes: Mapping[str, str],
) -> Written:
    """Write a figure.

    Args:
        figure: The picture.
        place: Path without ending; its folder is made.
        number: In the paper.
        title: What it shows.
        columns: Of the table.
        rows: Of the table, a cell for each column.
        notes: What the head of the table says: one line of ``# name: value`` each.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    png, table = place.with_name(f"{place.name}.png"), place.with_name(f"{place.name}.csv")
    figure.savefig(png, dpi=DOTS_PER_INCH)
    with table.open("w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in {"figure": f"{number}, {title}", **notes}.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_text(cell) for cell in row] for row in rows])
    return Written(figure=number, title=title, png=png, csv=table)


def _text(cell: Cell) -> str:
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
