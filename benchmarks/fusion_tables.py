"""The fusion benchmark's figures over the seeds, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.fusion_records import THRESHOLDS, Search, Unit
from benchmarks.fusion_starts import FITTED, RANDOM, RENEWED
from benchmarks.verdicts import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a contender found for a threshold on a set, over the seeds.

    Attributes:
        set: Name of the set.
        contender: Its name, with the threshold where a search serves one alone.
        threshold: The allowed drop.
        speedup: Measured with all finalists in turns.
        seconds: Until the search had that model.
        held_out_drop: Largest of a task.
        took: Seconds of the whole search.
        candidates: Judged by the whole search.
        fully_trained: By the whole search.
    """

    set: str
    contender: str
    threshold: float
    speedup: Spread
    seconds: Spread
    held_out_drop: Spread
    took: Spread
    candidates: Spread
    fully_trained: Spread


def summaries(units: Sequence[Unit]) -> list[Summary]:
    """Return what every contender found for every threshold on every set."""
    grouped: dict[tuple[str, str, float], list[Search]] = {}
    for unit in units:
        for search in unit.searches:
            for threshold in search.contender.thresholds:
                grouped.setdefault((unit.set, search.contender.title, threshold), []).append(search)
    return [_summary(*key, searches) for key, searches in grouped.items()]


def _summary(set_name: str, title: str, threshold: float, searches: Sequence[Search]) -> Summary:
    ends = [search.end(threshold) for search in searches]
    return Summary(
        set=set_name,
        contender=title,
        threshold=threshold,
        speedup=Spread.of([end.speedup for end in ends]),
        seconds=Spread.of([end.seconds for end in ends]),
        held_out_drop=Spread.of([max(end.held_out_drops.values()) for end in ends]),
        took=Spread.of([search.seconds for search in searches]),
        candidates=Spread.of([len(search.judged) for search in searches]),
        fully_trained=Spread.of([search.fully_trained(float("inf")) for search in searches]),
    )


def print_units(units: Sequence[Unit], console: Console) -> None:
    """Print a table per set: medians over the seeds, lowest and highest in brackets where they differ.

    ``found after`` and ``held-out drop``, the largest of a task, are of the loosest threshold.
    """
    found = summaries(units)
    for name in dict.fromkeys(unit.set for unit in units):
        mine = [unit for unit in units if unit.set == name]
        first = mine[0]
        judged = "" if first.has_labels else ", no labels: drops are of agreement"
        seeds = "1 seed" if len(mine) == 1 else f"{len(mine)} seeds"
        table = Table(title=f"{name}: {first.models}, {first.source}, {seeds}{judged}")
        table.add_column("search")
        for threshold in THRESHOLDS:
            table.add_column(f"speedup at {100 * threshold:g} %", justify="right")
        for heading in ("found after, s", "took, s", "held-out drop, %", "candidates", "fully trained"):
            table.add_column(heading, justify="right")
        for title in dict.fromkeys(each.contender for each in found if each.set == name):
            rows = {each.threshold: each for each in found if (each.set, each.contender) == (name, title)}
            last = rows[max(rows)]
            speedups = [_shown(rows[each].speedup, 2) if each in rows else "" for each in THRESHOLDS]
            others = [_shown(last.seconds, 1), _shown(last.took, 1), _shown(last.held_out_drop, 2, times=100)]
            table.add_row(title, *speedups, *others, _shown(last.candidates, 0), _shown(last.fully_trained, 0))
        console.print(table)
        _print_starts(mine, console)
        for unit in mine:
            for failure in unit.failures:
                console.print(f"seed {unit.seed}: {failure}", markup=False)


def _print_starts(units: Sequence[Unit], console: Console) -> None:
    starts = [start for unit in units for start in unit.starts]
    if not starts:
        return
    table = Table(title=f"largest drop of a task with one adapter, before any training ({len(starts)} merges)")
    for heading in ("start of the adapter", "median", "lowest", "highest"):
        table.add_column(heading, justify="left" if heading.startswith("start") else "right")
    for name in (RANDOM, RANDOM + RENEWED, FITTED, FITTED + RENEWED):
        spread = Spread.of([start.drops[name] for start in starts])
        table.add_row(name, *(f"{value:.3f}" for value in (spread.median, spread.low, spread.high)))
    console.print(table)


def _shown(spread: Spread, digits: int, *, times: float = 1) -> str:
    middle, low, high = (f"{times * value:.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}–{high})"
