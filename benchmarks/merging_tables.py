"""The merging benchmark in a terminal: the layout of the paper's Table 1, with spread, and the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fusion_coverage_targets import Target
from benchmarks.merging_aims import ALONE, ORIGINAL, OURS, ZIPPED, Run, combination, flops_of

PUBLISHED = {  # Table 1: LeNet-5 on panels of 496x124
    ("vib", "A"): "95.42 / 95.30 / 94.67 %, 28.34 / 52.58 / 28.49",
    ("vib", "B"): "96.30 / 96.40 / 95.70 %, 28.34 / 52.58 / 26.16",
    ("vib", "A+B"): "95.86 / 95.85 / 95.19 %, 56.69 / 52.58 / 48.68",
    ("taylor", "A"): "95.82 / 95.73 / 95.70 %, 18.64 / 31.19 / 18.65",
    ("taylor", "B"): "96.46 / 96.72 / 96.38 %, 18.64 / 31.19 / 18.65",
    ("taylor", "A+B"): "96.14 / 96.22 / 96.04 %, 37.27 / 31.19 / 26.48",
}
PRUNING = {"taylor": "P2 (Taylor)", "vib": "P1 (VIB)"}


def print_runs(runs: Sequence[Run], found: Sequence[Target], console: Console) -> None:
    """Print a table for each network and set of tasks, the gains, then the targets."""
    for network, tasks in dict.fromkeys((run["network"], run["tasks"]) for run in runs):
        mine = [run for run in runs if (run["network"], run["tasks"]) == (network, tasks)]
        console.print(_table(network, mine))
        for method in dict.fromkeys(run["method"] for run in mine):
            same = [run for run in mine if run["method"] == method]
            for scheme in (ALONE, ZIPPED):
                average = _spread([run["report"]["gains"][scheme]["average"] for run in same], "{:.2f}")
                peak = _spread([run["report"]["gains"][scheme]["peak"] for run in same], "{:.2f}")
                console.print(f"{PRUNING[method]}: gain over {scheme}: average {average}, peak {peak}")
    for target in found:
        console.print(target.line, highlight=False)


def print_studies(studies: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Print both studies."""
    rows = studies["relatedness"]
    alphas = list(dict.fromkeys(row["alpha"] for row in rows))
    table = Table(title="shared neurons in % of all, by what the labels tell about each other (6.3.1)")
    table.add_column("I(A; B) bits")
    for alpha in alphas:
        table.add_column(f"alpha {alpha:g}", justify="right")
    for bits in dict.fromkeys(row["information_bits"] for row in rows):
        mine = {row["alpha"]: 100 * row["shared_share"] for row in rows if row["information_bits"] == bits}
        table.add_row(f"{bits:g}", *(f"{mine[alpha]:.1f}" for alpha in alphas))
    console.print(table)
    table = Table(title="exclusive neurons where task B is a part of task A, as found (6.3.2): A / B / in both sets / live")
    layers = list(studies["inclusion"][0]["live"])
    for heading in ("alpha", *layers):
        table.add_column(heading, justify="right")
    for row in studies["inclusion"]:
        cells = [
            f"{row['only_a'][name]} / {row['only_b'][name]} / {row['both'][name]} / {row['live'][name]}" for name in layers
        ]
        table.add_row(f"{row['alpha']:g}", *cells)
    console.print(table)


def _table(network: str, runs: Sequence[Run]) -> Table:
    seeds = sorted({run["seed"] for run in runs})
    table = Table(
        title=f"{network}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        caption="mean ± standard deviation over seeds; held-out accuracy in %; MFLOP for one panel, 2 for a multiply-add",
    )
    for heading in ("pruning", "tasks"):
        table.add_column(heading)
    for heading in ("unpruned %", "B1 %", "B2 %", "PAM %", "B1 MFLOP", "B2 MFLOP", "PAM MFLOP"):
        table.add_column(heading, justify="right")
    if network == "lenet5":
        table.add_column("published B1 / B2 / PAM", style="dim")
    for method in dict.fromkeys(run["method"] for run in runs):
        same = [run for run in runs if run["method"] == method]
        for each in same[0]["report"]["schemes"][OURS]["combinations"]:
            tasks = "+".join(each["tasks"])
            accuracy = [_cell(same, lambda run, s=scheme, t=tasks: 100 * combination(run, s, t)["score"]) for scheme in
                        (ORIGINAL, ALONE, ZIPPED, OURS)]  # fmt: skip
            cost = [_cell(same, lambda run, s=scheme, t=tasks: flops_of(run, s, t) / 1e6) for scheme in (ALONE, ZIPPED, OURS)]
            published = [PUBLISHED.get((method, tasks), "")] if network == "lenet5" else []
            table.add_row(PRUNING[method], tasks, *accuracy, *cost, *published)
    return table


def _cell(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    return _spread([value(run) for run in runs], "{:.2f}")


def _spread(values: Sequence[float], form: str) -> str:
    mean = form.format(fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(stdev(values))}"
