"""What ``unified variants select`` does: one decision, with what else there was to choose."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from serving.mishits import Residency
from serving.queries import AccuracyMode, Budget, Decision, Mishit, Offer, OnMishit, Query
from serving.selection import pareto_offers, select
from serving.table import Table
from unified.columns import fitting, natural
from unified.fusing.views import plain_table
from unified.listeners import json_line
from unified.run_command import EXIT_DONE
from unified.terminal import line_writer, make_console, show
from unified.variants.opening import opened, profiled

EXIT_MISHIT = 3
MOST_LINES = 12
_LEFT_OUT_FIRST = ("inference ms", "load ms", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectOptions:
    """The options of ``unified variants select``; see its help."""

    variants: Path
    family: str | None = None
    tasks: tuple[str, ...] | None = None
    latency_ms: float | None = None
    min_accuracy: float | Mapping[str, float] | None = None
    accuracy_mode: str = "per_task"
    budget: str = "optimal"
    on_mishit: str = "reject"
    rows: int = 1
    resident: str = "all"
    quantile: str = "p95"
    as_json: bool = False


def select_variants(options: SelectOptions) -> int:
    """Print what is chosen, and return the exit code.

    Raises:
        ServingError: If there is nothing to choose from, or the query is none.
    """
    with opened(options.variants, options.family) as (store, family):
        table = profiled(store, family)
    query = Query(
        tasks=frozenset(options.tasks or table.family.task_names),
        latency_ms=options.latency_ms,
        min_accuracy=options.min_accuracy,
        accuracy_mode=AccuracyMode(options.accuracy_mode),
        budget=Budget(options.budget),
        on_mishit=OnMishit(options.on_mishit),
    )
    state = Residency(options.resident).state(table)
    answer = select(query, table, state, rows=options.rows, quantile=options.quantile)
    others = pareto_offers(query.tasks, table, state, rows=options.rows, quantile=options.quantile)
    if options.as_json:
        line_writer(sys.stdout)(json_line(answer_to_json(answer, others, table)))
    else:
        _show(answer, others, table, options)
    return EXIT_DONE if isinstance(answer, Decision) and answer.mishit is None else EXIT_MISHIT


def answer_to_json(answer: Decision | Mishit, others: Sequence[Offer], table: Table) -> dict[str, Any]:
    """Return an answer as plain JSON: ``chosen`` is None if nothing is, ``mishit`` if the query is satisfied."""
    chosen = answer.offer if isinstance(answer, Decision) else None
    mishit = answer.mishit if isinstance(answer, Decision) else answer
    return {
        "family": table.family.name,
        "chosen": None if chosen is None else _offer_to_json(chosen, table),
        "mishit": None if mishit is None else str(mishit.reason),
        "closest": [] if mishit is None else [_offer_to_json(offer, table) for offer in mishit.closest],
        "front": [_offer_to_json(offer, table) for offer in others],
    }


def offers_table(offers: Sequence[tuple[str, Offer]], table: Table, width: int) -> RenderableType:
    """Return a line for each offer, with a word on it before.

    Args:
        offers: The words and the offers.
        table: Theirs.
        width: Columns of the screen; what it has no room for is left out, names of variants are never.
    """
    cells = [_cells(word, offer, table) for word, offer in offers]
    titles = list(cells[0]) if cells else ["variants"]
    widths = natural(titles, cells)
    widths["variants"] = max([len("variants"), *(len(name) for _, offer in offers for name in _names(offer, table).split())])
    shown = fitting(widths, width, _LEFT_OUT_FIRST)
    lines = plain_table(*shown)
    for title, column in zip(shown, lines.columns, strict=True):
        if title == "variants":
            column.justify, column.no_wrap = "left", False
        else:
            column.no_wrap = True
    for line in cells:
        lines.add_row(*(line[title] for title in shown))
    return lines


def _cells(word: str, offer: Offer, table: Table) -> dict[str, Text]:
    tasks = [task for task in table.family.task_names if task in offer.accuracy]
    latencies = {"predicted ms": offer.predicted_ms, "load ms": offer.load_ms, "inference ms": offer.infer_ms}
    texts = {"": word, "variants": _names(offer, table)} | {title: f"{value:.3f}" for title, value in latencies.items()}
    texts |= {f"{task} score" if task in (*texts, "mean") else task: f"{offer.accuracy[task]:.4f}" for task in tasks}
    if len(tasks) > 1:
        texts["mean"] = f"{offer.mean_accuracy:.4f}"
    return {title: Text(text) for title, text in texts.items()}


def _show(answer: Decision | Mishit, others: Sequence[Offer], table: Table, options: SelectOptions) -> None:
    mishit = answer.mishit if isinstance(answer, Decision) else answer
    chosen = answer.offer if isinstance(answer, Decision) else None
    console = make_console()
    lines = []
    if mishit is not None:
        lines.append(f"mishit: {mishit.reason.words}")
    if chosen is not None:
        ids = f" ({chosen.version})" if chosen.version != _names(chosen, table) else ""
        lines.append(f"chosen{' all the same' if mishit else ''}: {_names(chosen, table)}{ids}")
    words = {} if mishit is None else {offer.variants: "nearest" for offer in mishit.closest}
    words |= {} if chosen is None else {chosen.variants: "chosen"}
    named = [*([chosen] if chosen else []), *(mishit.closest if mishit else [])]
    offers = {offer.variants: offer for offer in [*named, *others]}
    shown = _nearest(sorted(offers.values(), key=lambda offer: offer.predicted_ms), words)
    show(console, Text("\n".join(lines)))
    if shown:
        show(console, offers_table([(words.get(offer.variants, ""), offer) for offer in shown], table, console.width))
        left = len(offers) - len(shown)
        more = f"; {left} more on the Pareto front (--json prints all)" if left else ""
        rows = f"{options.rows} row{'s' if options.rows > 1 else ''}"
        show(console, Text(f"{options.quantile} of {rows}, {options.resident} resident, {len(table)} variants{more}"))


def _nearest(offers: Sequence[Offer], words: Mapping[tuple[str, ...], str]) -> Sequence[Offer]:
    """Return the offers to show: those with a word, and of the others those next to the first of them."""
    at = next((place for place, offer in enumerate(offers) if offer.variants in words), 0)
    order = sorted(range(len(offers)), key=lambda place: (offers[place].variants not in words, abs(place - at), place))
    return [offers[place] for place in sorted(order[:MOST_LINES])]


def _names(offer: Offer, table: Table) -> str:
    return " + ".join(table.variants[table.index[key]].name for key in offer.variants)


def _offer_to_json(offer: Offer, table: Table) -> dict[str, Any]:
    return {
        "variants": list(offer.variants),
        "names": [table.variants[table.index[key]].name for key in offer.variants],
        "tasks": [list(tasks) for tasks in offer.tasks],
        "predicted_ms": offer.predicted_ms,
        "load_ms": offer.load_ms,
        "infer_ms": offer.infer_ms,
        "accuracy": dict(offer.accuracy),
        "mean_accuracy": offer.mean_accuracy,
    }
