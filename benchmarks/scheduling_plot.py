"""The scheduling benchmark's plot: what each policy gains in the mean, and what that costs in the tail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.scheduling_runs import Finding

_MARKERS = {"time-sliced": "o", "co-running": "^", "time-sliced, resident": "s", "co-running, resident": "D"}


def draw(findings: Sequence[Finding], path: Path) -> None:
    """Write a PNG: a panel for each trace, a point for each policy and plan."""
    traces = list(dict.fromkeys(finding.trace for finding in findings))
    policies = list(dict.fromkeys(finding.policy for finding in findings))
    colours = {policy: colormaps["tab20"](index) for index, policy in enumerate(policies)}
    figure = Figure(figsize=(6.4 * len(traces), 5.4), layout="constrained")
    for axes, trace in zip(figure.subplots(1, len(traces), squeeze=False)[0], traces, strict=True):
        for finding in (each for each in findings if each.trace == trace):
            axes.plot(
                finding.gain,
                finding.p99_ratio,
                _MARKERS[finding.plan],
                color=colours[finding.policy],
                markerfacecolor="none" if "resident" in finding.plan else None,
            )
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.axvline(1.0, color="grey", linewidth=0.8)
        axes.set(
            title=f"{trace}, load 0.9, sigma 1",
            xlabel="mean JCT of fcfs / mean JCT (more is better)",
            ylabel="p99 JCT / p99 JCT of fcfs (less is better)",
            xscale="log",
        )
        axes.set_xticks([1, 2, 3, 5, 8, 12])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    for policy in policies:
        axes.plot([], [], "o", color=colours[policy], label=policy)
    for plan, marker in _MARKERS.items():
        axes.plot([], [], marker, color="black", markerfacecolor="none" if "resident" in plan else None, label=plan)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)
