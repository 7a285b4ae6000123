"""All the figures that the variants of a family allow, by one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServingError
from serving.figures import frontier, heads, mishits, robustness
from serving.figures.drawing import Written
from serving.head_depth import DepthTiming
from serving.mishits import Comparison, Residency, Setting
from serving.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What was drawn.

    Attributes:
        written: Figures, by their number.
        left_out: Number of each of the others, and why.
        compared: The grids of figures 5 and 8.
        depths: What figure 4 shows.
    """

    written: tuple[Written, ...]
    left_out: Mapping[int, str]
    compared: tuple[Comparison, ...]
    depths: tuple[DepthTiming, ...]


def draw_figures(
    table: Table,
    folder: Path,
    *,
    residencies: Sequence[Residency] = tuple(Residency),
    setting: Setting | None = None,
    steps: int = 20,
    measure: Callable[[], tuple[DepthTiming, ...]] | None = None,
) -> Drawn:
    """Draw figures 3 to 8 of MTLsys into a folder, each as PNG and CSV; leave out what the variants do not allow.

    Args:
        table: Of a family, with multi-task and single-task variants.
        folder: Is made.
        residencies: What is assumed to be loaded: a panel or row of panels for each.
        setting: Rows and quantile of latency; its residency and mode do not matter.
        steps: Of latency limits and of floors.
        measure: Measures latency against head depth for figure 4; None leaves it out.
    """
    setting = setting or Setting()
    notes = notes_of(table, residencies, setting)
    left_out: dict[int, str] = {}
    written: list[Written] = []
    compared: list[Comparison] = []
    depths: list[DepthTiming] = []
    common = {"residencies": residencies, "setting": setting, "notes": notes}

    def draw_mishits(draw: Callable[..., tuple[Written, list[Comparison]]], place: Path) -> Written:
        found, grids = draw(table, place, steps=steps, **common)
        compared.extend(grids)
        return found

    def draw_heads() -> Written:
        if measure is None:
            raise ServingError("latency against head depth was not measured")
        depths.extend(measure())
        return heads.draw(depths, folder / "fig4-heads", notes=notes)

    figures: dict[int, Callable[[], Written]] = {
        3: lambda: frontier.draw_all_tasks(table, folder / "fig3-frontier-all-tasks", **common),
        4: draw_heads,
        5: lambda: draw_mishits(mishits.draw_all_tasks, folder / "fig5-mishits-all-tasks"),
        6: lambda: robustness.draw(table, folder / "fig6-robustness", notes=notes),
        7: lambda: frontier.draw_each_task(table, folder / "fig7-frontier-each-task", **common),
        8: lambda: draw_mishits(mishits.draw_each_task, folder / "fig8-mishits-each-task"),
    }
    for number, draw in figures.items():
        try:
            written.append(draw())
        except ServingError as error:
            left_out[number] = str(error)
    return Drawn(written=tuple(written), left_out=left_out, compared=tuple(compared), depths=tuple(depths))


def notes_of(table: Table, residencies: Sequence[Residency], setting: Setting) -> dict[str, str]:
    """Return what the head of each CSV says: what it was measured on and is about."""
    trainings = (variant.provenance.get("training", {}) for variant in table.variants)
    seeds = sorted({str(training["seed"]) for training in trainings if "seed" in training})
    return {
        "family": f"{table.family.name}, {len(table)} variants, {len(table.suspect)} of them with a disturbed profile",
        "hardware": table.hardware,
        "latency": f"{setting.quantile} of {setting.rows} row{'s' if setting.rows > 1 else ''}, milliseconds",
        "residency": ", ".join(residencies),
        "seeds": ", ".join(seeds) or "not known",
    }
