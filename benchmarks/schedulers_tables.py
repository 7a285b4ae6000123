"""The scheduling benchmark's figures as tables, and against what was aimed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.modes import SEQUENTIAL_1
from benchmarks.quantiles import Quantiles
from benchmarks.records import RunRecord
from benchmarks.scheduler_decisions import NUM_RESIDENT, WINDOW, DecisionCost
from benchmarks.scheduler_engine import Shares, Switches
from benchmarks.tables import COLUMNS
from benchmarks.verdicts import Spread, Target, paired, values

MAX_SELECT_MS = 1.0
MAX_MAKESPAN = 1.02
MAX_SWITCH_MS = 5.0
MAX_DEVIATION = 10.0
#: Policies that train each job to its end: they share no time, and have no target.
TO_THE_END = frozenset({"fcfs", "sjf"})


def modes_in(runs: Sequence[RunRecord]) -> list[str]:
    """Return the modes, baselines first, then in the order of the first repeat."""
    return sorted(dict.fromkeys(run.mode for run in runs), key=lambda mode: mode.startswith("unified"))


def targets_of(
    decisions: Sequence[DecisionCost], runs: Sequence[RunRecord], switches: Switches | None, shares: Sequence[Shares]
) -> list[Target]:
    """Return the targets that were measured."""
    return [*_decision_targets(decisions), *_makespan_targets(runs), *_engine_targets(switches, shares)]


def _decision_targets(decisions: Sequence[DecisionCost]) -> Iterator[Target]:
    claim = f"p99 of a decision, {NUM_RESIDENT} resident and {WINDOW} queued"
    for each in decisions:
        spread = Spread.of([each.select.p99])
        yield Target(claim=claim, mix="decisions", mode=each.policy, spread=spread, limit=MAX_SELECT_MS, unit="ms")


def _makespan_targets(runs: Sequence[RunRecord]) -> Iterator[Target]:
    for mode in modes_in(runs):
        if not mode.startswith("unified") or mode.removeprefix("unified, ") in TO_THE_END:
            continue
        found = paired(runs, "small", "makespan", mode=mode, baselines=[SEQUENTIAL_1.name])
        if found:
            claim = "makespan over the plain loop, 1 thread"
            yield Target(claim=claim, mix="small", mode=mode, spread=Spread.of(found), limit=MAX_MAKESPAN)


def _engine_targets(switches: Switches | None, shares: Sequence[Shares]) -> Iterator[Target]:
    if switches is not None:
        claim = "p99 of making room for a resident unit, beyond one step"
        spread = Spread.of([switches.beyond_step.p99])
        yield Target(claim=claim, mix="engine", mode="preemption", spread=spread, limit=MAX_SWITCH_MS, unit="ms")
    for each in shares:
        weights = ":".join(f"{weight:g}" for weight in each.weights.values())
        claim = f"slot time of users of weights {weights}, {each.num_turns} turns: largest deviation"
        spread = Spread.of([each.deviation])
        yield Target(claim=claim, mix="engine", mode=each.policy, spread=spread, limit=MAX_DEVIATION, unit="%")


def print_found(
    decisions: Sequence[DecisionCost],
    runs: Sequence[RunRecord],
    switches: Switches | None,
    shares: Sequence[Shares],
    console: Console,
) -> None:
    """Print a table for each part that was measured."""
    if decisions:
        console.print(_decisions_table(decisions))
    if runs:
        console.print(_runs_table(runs))
    if switches is not None:
        table = _table("making room for a resident unit, ms", "", *_QUANTILES)
        for name, found in (("in all", switches.seconds), ("a step", switches.step), ("beyond it", switches.beyond_step)):
            table.add_row(name, *_cells(found))
        console.print(table)
    if shares:
        table = _table("slot time of users, s", "scheduler", "weights", "turns", "seconds", "deviation %")
        for each in shares:
            weights, seconds = ([f"{value:.3g}" for value in found.values()] for found in (each.weights, each.seconds))
            table.add_row(each.policy, " : ".join(weights), str(each.num_turns), " : ".join(seconds), f"{each.deviation:.1f}")
        console.print(table)


_QUANTILES = ("p50", "p90", "p99", "highest")


def _cells(found: Quantiles) -> list[str]:
    return [f"{getattr(found, name):.3g}" for name in _QUANTILES]


def _decisions_table(decisions: Sequence[DecisionCost]) -> Table:
    titles = [f"{what} {name}" for what in ("answer", "end to end") for name in _QUANTILES]
    table = _table(f"a decision over {NUM_RESIDENT} resident and {WINDOW} queued jobs, ms", "scheduler", *titles)
    for each in decisions:
        table.add_row(each.policy, *_cells(each.select), *_cells(each.whole))
    return table


def _runs_table(runs: Sequence[RunRecord]) -> Table:
    """Return a line per mode; times are since submission, medians over the repeats."""
    num_jobs, num_repeats = len(runs[0].jobs), len({run.repeat for run in runs})
    table = _table(
        f"{num_jobs} small jobs handed in at once, median of {num_repeats}",
        "mode",
        *(heading for heading, _, _ in COLUMNS),
        "makespan x",
        "without start-up x",
        "weights equal",
    )
    for mode in modes_in(runs):
        cells = [write(Spread.of([*values(runs, "small", mode, figure).values()]).median) for _, figure, write in COLUMNS]
        for figure in ("makespan", "span"):
            found = paired(runs, "small", figure, mode=mode, baselines=[SEQUENTIAL_1.name])
            cells.append(f"{Spread.of(found).median:.3f}" if found else "–")
        is_equal = all(run.is_equal for run in runs if run.mode == mode)
        table.add_row(mode, *cells, "yes" if is_equal else "[red]NO")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    return table
