"""What ``unified simulate`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from statistics import stdev

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schedulers.simulation.experiment import Comparison, Row
from schedulers.simulation.metrics import Metrics
from unified.quantities import MISSING, plural

_MOST_USERS = 10
_POLICY_WIDTH = 24  #: columns; longer spellings are folded
_RHO_WIDTH = 12

_TIMES = ("mean_jct", "p50", "p95", "p99", "max", "makespan", "longest_wait")
_REST = ("slowdown_p50", "slowdown_p95", "slowdown_p99", "preemptions", "decision_p50", "decision_p99")
_FAIRNESS = ("jain", "deviation", "worst_rho")


def head_line(comparison: Comparison) -> RenderableType:
    """Return what all rows have in common."""
    setup, host = comparison.setup, comparison.setup.host
    seeds = f"seed {setup.selection.seed}" if setup.seeds == 1 else f"{setup.seeds} seeds from {setup.selection.seed}"
    costs = "" if not host.switch_seconds + host.checkpoint_seconds else (
        f", switch {host.switch_seconds:g} s, checkpoint {host.checkpoint_seconds:g} s"
    )  # fmt: skip
    pairs = f" but for {plural(len(host.pairs), 'pair')}" if host.pairs else ""
    return Text(
        f"{setup.trace.name}: {comparison.num_jobs} jobs of {comparison.mean_seconds:,.0f} s (median "
        f"{comparison.median_seconds:,.0f} s)\n{host.slots} slots, load {setup.selection.load:g}, sigma "
        f"{setup.selection.sigma:g}, {seeds}, corun {host.corun:g}{pairs}, quantum {comparison.quantum:,.0f} s, "
        f"placement {host.placement}{costs}"
    )


def comparison_tables(comparison: Comparison) -> list[RenderableType]:
    """Return the tables: times since submission, slowdown and the price of deciding, and users if there are any."""
    has_spread = comparison.setup.seeds > 1
    times = _table("seconds since submission", ["gain", *(_title(name) for name in _TIMES)])
    rest = _table("slowdown, preemptions, ms of a decision", [_title(name) for name in _REST])
    for row in comparison.rows:
        spread = [f"±{value:,.0f}" for value in _values(row.spread, _TIMES)] if has_spread else []
        ratios = [_times(row.ratios[name]) for name in _TIMES]
        gains = [_times(row.gain), "", *([_gain_spread(row, comparison.rows[0])] if has_spread else [])]
        _add(
            times,
            row.policy,
            gains,
            *zip(map(_whole, _values(row.metrics, _TIMES)), ratios, *([spread] if spread else []), strict=True),
        )
        _add(rest, row.policy, *([text] for text in _rest_cells(row.metrics)))
    tables: list[RenderableType] = [times, rest]
    if comparison.rows[0].fairness is not None:
        tables += [_fairness_table(comparison), _users_table(comparison)]
    return tables


def admission_lines(comparison: Comparison) -> list[RenderableType]:
    """Return a line for each policy, where jobs have deadlines."""
    return [
        Text(
            f"{row.policy}: accepted {row.metrics.accepted:.0f}, refused {row.metrics.refused:.0f}, "
            f"late among accepted {row.metrics.late:.0f}" + ("; its figures are of these alone" if row.metrics.refused else "")
        )
        for row in comparison.rows
        if comparison.setup.selection.deadline_factor is not None
    ]


def golden_table(
    names: Sequence[str], found: Mapping[str, Sequence[float]], expected: Mapping[str, Sequence[float]]
) -> RenderableType:
    """Return when each job of the golden case was done, and whether that is as it must be."""
    table = _table("the paper's three models on one slot: seconds until done", [*names, "mean", "as by arithmetic"])
    for spelling, times in found.items():
        wrong = [
            f"{name} should be {theirs:g}"
            for name, ours, theirs in zip(names, times, expected[spelling], strict=True)
            if abs(ours - theirs) >= 1e-6
        ]
        mean = sum(times) / len(times)
        _add(table, spelling, *([f"{time:.1f}"] for time in (*times, mean)), ["; ".join(wrong) or "yes"])
    return table


def _fairness_table(comparison: Comparison) -> RenderableType:
    table = _table("fairness among users", ["Jain index", "largest deviation", "worst rho"])
    for row in comparison.rows:
        jain, deviation, rho = _values(row.metrics, _FAIRNESS)
        _add(table, row.policy, [f"{jain:.3f}"], [f"{deviation:.0f} %"], [f"{rho:.2f}"])
    return table


def _users_table(comparison: Comparison) -> RenderableType:
    """Return each user's rho under each policy; of many users, those with the most slot time."""
    jobs: dict[str, list[float]] = {}
    for job in comparison.rows[0].outcome.jobs:
        jobs.setdefault(job.user, []).append(job.seconds)
    users = sorted(jobs, key=lambda user: (-sum(jobs[user]), user))[:_MOST_USERS]
    which = f"; the {_MOST_USERS} of {len(jobs)} with the most slot time" if len(jobs) > len(users) else ""
    table = _table(None, ["jobs", "slot seconds"], first="user")
    for row in comparison.rows:
        table.add_column(row.policy, justify="right", overflow="fold", max_width=_RHO_WIDTH)
    for user in users:
        rhos = [row.fairness.rho.get(user) if row.fairness else None for row in comparison.rows]
        cells = [MISSING if rho is None else f"{rho:.2f}" for rho in rhos]
        _add(table, user, [f"{len(jobs[user]):,}"], [f"{sum(jobs[user]):,.0f}"], *([cell] for cell in cells))
    title = f"rho of users (above 1: worse off than with slots of their own){which}"
    return Group(Text(title, style="bold"), table)


def _table(title: str | None, columns: Sequence[str], first: str = "policy") -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), title_style="bold")
    table.add_column(first, max_width=_POLICY_WIDTH, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _add(table: Table, name: str, *cells: Sequence[str]) -> None:
    """Add a policy or a user; each cell has a line or more."""
    table.add_row(Text(name), *(Text("\n".join(cell)) for cell in cells))


def _values(metrics: Metrics, names: Sequence[str]) -> list[float]:
    return [getattr(metrics, name) or 0.0 for name in names]


def _rest_cells(metrics: Metrics) -> list[str]:
    *slowdowns, preemptions, p50, p99 = _values(metrics, _REST)
    return [*(f"{value:,.1f}" for value in slowdowns), f"{preemptions:,.0f}", f"{1000 * p50:.2f}", f"{1000 * p99:.2f}"]


def _gain_spread(row: Row, base: Row) -> str:
    """Return the spread of the gain over the seeds; one that knows no estimates has one row for all of them."""
    gains = [theirs.mean_jct / ours.mean_jct for theirs, ours in zip(cycle(base.by_seed), row.by_seed, strict=False)]
    return f"±{stdev(gains):.2f}" if len(gains) > 1 else "±0.00"


def _title(name: str) -> str:
    return (
        name.removeprefix("slowdown_").replace("_jct", " JCT").replace("decision_", "ms ").replace("longest_wait", "no service")
    )


_whole: Callable[[float], str] = "{:,.0f}".format


def _times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}x"
