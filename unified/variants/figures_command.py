"""What ``unified variants figures`` does: the paper's figures over the variants of a store, and what they show as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import RenderableType
from rich.text import Text

from serving.errors import ServingError
from serving.figures.everything import Drawn, draw_figures
from serving.hardware import Hardware
from serving.head_depth import DepthTiming, measure_head_depth
from serving.measuring import using_threads
from serving.mishits import COMPARED, Comparison, Residency, Setting
from serving.queries import Budget
from serving.records import Variant
from serving.shared_encoder import HIDDEN, with_deeper_heads
from serving.store import VariantStore
from unified.fusing.views import plain_table
from unified.run_command import EXIT_DONE
from unified.terminal import make_console, show
from unified.variants.opening import opened, profiled


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOptions:
    """The options of ``unified variants figures``; see its help."""

    variants: Path
    out: Path
    family: str | None = None
    grid: int = 20
    residency: str | None = None
    rows: int = 1
    quantile: str = "p50"
    head_seconds: float = 20.0


def draw(options: FigureOptions) -> int:
    """Draw the figures, print what they show, and return the exit code.

    Raises:
        ServingError: If there is nothing to draw from.
    """
    with opened(options.variants, options.family) as (store, family):
        table = profiled(store, family)
        drawn = draw_figures(
            table,
            options.out,
            residencies=[Residency(options.residency)] if options.residency else list(Residency),
            setting=Setting(rows=options.rows, quantile=options.quantile),
            steps=options.grid,
            measure=lambda: _measure_heads(store, family, table.hardware, options),
        )
    if not drawn.written:
        raise ServingError("\n".join(drawn.left_out.values()))
    console = make_console()
    for content in _contents(drawn):
        show(console, content)
    return EXIT_DONE


def mishits_table(compared: Sequence[Comparison]) -> RenderableType:
    """Return a line for each kind of query: the share that each system misses, and how many times fewer ours is."""
    lines = plain_table("tasks", "resident", "floor for", "A", "B", "C, equal", "C, optimal", "C/A", "C optimal/A")
    for column in lines.columns[1:3]:
        column.justify = "left"
    for found in compared:
        shares = [found.grids[key].ratio for key in COMPARED]
        lines.add_row(
            Text(", ".join(sorted(found.tasks))),
            str(found.setting.residency),
            str(found.setting.mode).replace("_", " "),
            *(f"{100 * share:.1f} %" for share in shares),
            *(_times(found.times_fewer(budget)) for budget in (Budget.EQUAL, Budget.OPTIMAL)),
        )
    return lines


def depths_table(found: Sequence[DepthTiming]) -> RenderableType:
    """Return a line for each depth of heads."""
    lines = plain_table("layers in a head", "all heads ms", "one head ms", "saved")
    for row in found:
        lines.add_row(str(row.depth), f"{row.kept_ms:.3f}", f"{row.removed_ms:.3f}", f"{100 * row.cut:.1f} %")
    return lines


def _contents(drawn: Drawn) -> list[RenderableType]:
    found: list[RenderableType] = []
    if drawn.compared:
        found += [Text("\nmishits (figures 5 and 8), share of the grid"), mishits_table(drawn.compared)]
    if drawn.depths:
        heads = f"\nunused heads (figure 4): this family's encoder, new heads of {HIDDEN} units a layer, not trained"
        found += [Text(heads), depths_table(drawn.depths)]
    written = plain_table("figure", "file", "shows")
    for column in written.columns[1:]:
        column.justify, column.no_wrap = "left", False
    for one in drawn.written:
        written.add_row(str(one.figure), Text(str(one.png)), one.title)
    found += [Text(), written]
    found += [Text(f"figure {number} left out: {why}") for number, why in drawn.left_out.items()]
    return found


def _measure_heads(store: VariantStore, family: str, hardware: str, options: FigureOptions) -> tuple[DepthTiming, ...]:
    """Time the encoder of a family with new heads, on the device and threads that its variants were profiled with."""
    place = store.hardware(family).get(hardware) or Hardware.here()
    device = torch.device(place.device)
    whole = _unpruned(store.variants(family))
    examples = tuple(_rows_of(tensor, options.rows).to(device) for tensor in store.examples(family))
    make = with_deeper_heads(store.folder(whole.id), examples)
    with using_threads(place.threads):
        return measure_head_depth(make, examples, max_seconds=options.head_seconds)


def _unpruned(variants: Sequence[Variant]) -> Variant:
    """Return the least pruned variant of several tasks."""
    several = [variant for variant in variants if len(variant.tasks) > 1]
    if not several:
        raise ServingError("no variant answers several tasks, so that no head is unused")
    return min(several, key=lambda variant: (-len(variant.tasks), variant.ratio, variant.name))


def _rows_of(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor[torch.arange(rows) % len(tensor)]


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if math.isfinite(ratio) else "A none"
