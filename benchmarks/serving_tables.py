"""The benchmark of serving in a terminal: the variants, mishits, loads, and the targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fusion_coverage_targets import Target

Found = Mapping[str, Any]


def print_found(found: Found, targets: Sequence[Target], console: Console) -> None:
    """Print a table for each stage that was run, then the targets."""
    for stage, make in _TABLES.items():
        if stage in found:
            for table in make(found[stage]):
                console.print(table)
    for target in targets:
        console.print(target.line)


def _variants(found: Found) -> Iterator[Table]:
    tasks = list(found["rows"][0]["scores"])
    headings = ("variant", "ratio", "parameters gone", "FLOPs gone", *tasks, "p50 ms", "p95 ms", "at 16", "load cold", "warm")
    table = _table("variants (scores on validation panels, one thread)", headings)
    for row in sorted(found["rows"], key=lambda row: (row["source"], row["tasks"], row["ratio"])):
        gone = [f"{row['achieved'].get(of, 0):.2f}" for of in ("parameters", "flops")]
        scores = ["" if score is None else f"{score:.3f}" for score in row["scores"].values()]
        times = [row["p50_ms"]["1"], row["p95_ms"]["1"], row["p50_ms"].get("16", float("nan")), row["load_cold_ms"]]
        table.add_row(row["name"], f"{row['ratio']:g}", *gone, *scores, *(f"{ms:.2f}" for ms in [*times, row["load_warm_ms"]]))
    yield table
    if "apart" in found:
        table = _table("the multi-task system built and profiled", ("way", "seconds"))
        table.add_row("together, by unified variants", f"{found['seconds']:.0f}")
        table.add_row("one after another in separate processes", f"{found['apart']['total_seconds']:.0f}")
        yield table


def _mishits(found: Found) -> Iterator[Table]:
    systems = list(found["grids"][0]["mishits"])
    table = _table("share of planned queries that miss", ("tasks", "resident", "floors", *systems))
    for grid in found["grids"]:
        shares = [f"{grid['mishits'][system]:.3f}" for system in systems]
        table.add_row("+".join(grid["tasks"]), grid["residency"], grid["mode"], *shares)
    yield table


def _heads(found: Found) -> Iterator[Table]:
    table = _table("unused heads kept or removed, batch 1", ("layers of a head", "kept ms", "removed ms", "saved"))
    for row in found["rows"]:
        table.add_row(str(row["depth"]), f"{row['kept_ms']:.3f}", f"{row['removed_ms']:.3f}", f"{row['cut']:.0%}")
    yield table


def _loads(found: Found) -> Iterator[Table]:
    headings = ("load", "clients", "batching", "requests/s", "p50 ms", "p99 ms", "rows in a batch", "late", "ratio")
    table = _table("loopback load, medians over repeats", headings)
    runs = found["runs"]
    for key in dict.fromkeys((run["load"], run["concurrency"], run["batching"]) for run in runs):
        mine = [run for run in runs if (run["load"], run["concurrency"], run["batching"]) == key]
        load, concurrency, batching = key
        figures = [median(run[name] for run in mine) for name in ("per_second", "p50_ms", "p99_ms", "batch_rows")]
        ratios = found["ratios"][load][str(concurrency)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if batching else ""
        late = str(sum(run["late"] for run in mine))
        cells = [f"{figures[0]:.0f}", *(f"{value:.2f}" for value in figures[1:]), late, spread]
        table.add_row(load, str(concurrency), "yes" if batching else "no", *cells)
    yield table
    table = _table("reading a request of one panel", ("tensors", "ms"))
    for name, milliseconds in found["read_ms"].items():
        table.add_row(name, f"{milliseconds:.3f}")
    yield table


def _select(found: Found) -> Iterator[Table]:
    table = _table("selection among 1,000 variants", ("measure", "value"))
    for name, value in found.items():
        table.add_row(name, str(value) if isinstance(value, Mapping) else f"{value:.4g}")
    yield table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    return table


_TABLES = {"build": _variants, "select": _select, "mishits": _mishits, "heads": _heads, "load": _loads}
