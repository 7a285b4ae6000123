"""The scheduling benchmark's figures as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import stdev

from rich.console import Console
from rich.table import Table

from benchmarks.scheduling_runs import Finding

_SHOWN = (
    ("mean JCT s", "mean_jct", "{:,.0f}"),
    ("p50 s", "p50", "{:,.0f}"),
    ("p99 s", "p99", "{:,.0f}"),
    ("slowdown p95", "slowdown_p95", "{:,.1f}"),
    ("no service h", "longest_wait", "{:,.1f}"),
    ("preempted", "preemptions", "{:,.0f}"),
    ("decision p99 ms", "decision_p99", "{:.2f}"),
)
_SCALE = {"longest_wait": 1 / 3600, "decision_p99": 1000.0}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print a table for each trace and plan."""
    for (trace, plan), rows in groupby(findings, key=lambda finding: (finding.trace, finding.plan)):
        console.print(_table(trace, plan, list(rows)))


def _table(trace: str, plan: str, rows: Sequence[Finding]) -> Table:
    first = rows[0]
    table = Table(
        title=f"{trace}, {plan}: {first.num_jobs} jobs, {first.num_slots} slots, quantum {first.quantum:,.0f} s",
        caption="gain: mean JCT of the first row over its own; ± standard deviation over seeds",
    )
    table.add_column("policy", overflow="fold", max_width=40)
    for heading in ("gain", "p99 / base", *(heading for heading, _, _ in _SHOWN)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [form.format((row.metrics[name] or 0.0) * _SCALE.get(name, 1.0)) for _, name, form in _SHOWN]
        table.add_row(row.policy, _with_spread(row.gain, row.gain_by_seed), f"{row.p99_ratio:.2f}", *cells)
    return table


def _with_spread(value: float, by_seed: Sequence[float]) -> str:
    return f"{value:.2f}" + (f" ± {stdev(by_seed):.2f}" if len(by_seed) > 1 else "")
