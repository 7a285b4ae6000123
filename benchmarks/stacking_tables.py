"""What the stacking benchmark found, and whether its aims are reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.verdicts import Spread

MIN_EVER = 0.97
#: kind, number of models, least ratio to the loop at one thread
AIMS = (("encoder", 8, 1.4), ("mlp", 32, 1.5), ("lenet", 32, 1.2))
MIN_AGAINST_PROCESSES = ("encoder", 8, 1.4)
MAX_DIFFERENCE = {"inference": 1e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model, one number of them, one phase, one number of threads.

    Attributes:
        seconds: By way, of each round. ``unified`` is what measuring chose: the stack or the models side by side.
        notes: By way, what was chosen.
        tried: By way, seconds by what was tried.
        differences: By way, the largest difference to the loop after three steps: of weights, or of outputs.
        failed: By way, why it cannot do this.
        peak_bytes: By way, memory beyond what the process held before; empty where it was not measured.
        whole_machine_seconds: Seconds of a step of all models at a steady pace: with N processes, with a stack on each core.
    """

    kind: str
    count: int
    phase: str
    threads: int
    seconds: dict[str, list[float]]
    notes: dict[str, str]
    tried: dict[str, dict[str, float]]
    differences: dict[str, float]
    failed: dict[str, str]
    peak_bytes: dict[str, int]
    whole_machine_seconds: dict[str, float]

    def ratio(self, way: str) -> Spread | None:
        """Return how much faster than the loop a way is, over its rounds; None if it was not measured."""
        if way not in self.seconds:
            return None
        found = [loop / mine for loop, mine in zip(self.seconds["loop"], self.seconds[way], strict=True)]
        quarter = max(1, len(found) // 4)
        ordered = sorted(found)
        return Spread(median=median(found), low=ordered[quarter - 1], high=ordered[-quarter])

    def milliseconds(self, way: str) -> float:
        """Return the median of a round."""
        return median(self.seconds[way]) * 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An aim and what was found; ``value`` None where it was not measured."""

    text: str
    aim: float
    value: float | None
    is_reached: bool | None


def targets_of(cells: Sequence[Cell]) -> list[Target]:
    """Return the issue's aims for a CPU, and what was found."""
    found = []
    lowest = min(((cell.ratio("unified"), cell) for cell in cells), key=lambda pair: pair[0].median, default=None)  # type: ignore[union-attr]
    if lowest is not None and lowest[0] is not None:
        where = f"{lowest[1].kind}, N={lowest[1].count}, {lowest[1].phase}, {lowest[1].threads} threads"
        found.append(_at_least(f"never below the loop (worst: {where})", MIN_EVER, lowest[0].median))
    for kind, count, aim in AIMS:
        cell = _find(cells, kind, count)
        ratio = None if cell is None else cell.ratio("unified")
        found.append(_at_least(f"{kind}, N={count}, 1 thread, training: times the loop", aim, ratio and ratio.median))
    kind, count, aim = MIN_AGAINST_PROCESSES
    cell = _find(cells, kind, count)
    machine = {} if cell is None else cell.whole_machine_seconds
    value = machine["processes"] / machine["stacks"] if "stacks" in machine else None
    found.append(_at_least(f"{kind}, N={count}, whole machine: times {count} processes", aim, value))
    worst = max((cell.differences.get("stack", 0.0) for cell in cells if cell.phase == "inference"), default=None)
    if worst is not None:
        text = "inference: largest difference to the models alone"
        found.append(Target(text=text, aim=MAX_DIFFERENCE["inference"], value=worst, is_reached=worst <= 1e-5))
    return found


def _at_least(text: str, aim: float, value: float | None) -> Target:
    return Target(text=text, aim=aim, value=value, is_reached=None if value is None else value >= aim)


def _find(cells: Sequence[Cell], kind: str, count: int) -> Cell | None:
    wanted = (kind, count, "training", 1)
    return next((cell for cell in cells if (cell.kind, cell.count, cell.phase, cell.threads) == wanted), None)


def print_tables(cells: Sequence[Cell], targets: Sequence[Target], console: Console) -> None:
    """Print a table per phase and number of threads, and the aims."""
    for phase, threads in dict.fromkeys((cell.phase, cell.threads) for cell in cells):
        table = Table(title=f"{phase}, {threads} thread{'s' * (threads > 1)}: times the loop (quartiles)")
        heads = ("model", "N", "loop ms", "stack", "chosen", "unified", "vmap", "difference", "memory", "N processes")
        for head in heads:
            table.add_column(head, justify="left" if head in {"model", "chosen"} else "right")
        for cell in cells:
            if (cell.phase, cell.threads) == (phase, threads):
                table.add_row(*_row(cell))
        console.print(table)
    table = Table(title="aims")
    for head in ("aim", "at least / at most", "found", ""):
        table.add_column(head)
    for target in targets:
        said = {True: "reached", False: "not reached", None: "not measured"}[target.is_reached]
        table.add_row(target.text, f"{target.aim:g}", "-" if target.value is None else f"{target.value:.3g}", said)
    console.print(table)


def _row(cell: Cell) -> list[str]:
    machine, memory = cell.whole_machine_seconds, cell.peak_bytes
    chosen = cell.notes["unified"] + (f", {cell.notes['stack']}" if cell.notes["unified"] == "stacked" else "")
    return [
        cell.kind,
        str(cell.count),
        f"{cell.milliseconds('loop'):.2f}",
        _times(cell.ratio("stack")),
        chosen,
        _times(cell.ratio("unified")),
        _times(cell.ratio("vmap")),
        f"{cell.differences.get('stack', float('nan')):.1e}",
        _or_dash(memory, lambda: f"{memory['stack'] / max(memory['loop'], 1):.2f}x"),
        _or_dash(machine, lambda: f"{machine['processes'] / machine['stacks']:.2f}x"),
    ]


def _or_dash(found: dict, write: Callable[[], str]) -> str:
    return write() if found else "-"


def _times(spread: Spread | None) -> str:
    return "cannot" if spread is None else f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"
