"""The picture of a search's candidates: speedup to the right, drop upwards, the front as a line, as SVG."""

from __future__ import annotations

import math
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 760, 390, 84, 44, 40, 84
_COLOURS = {"accepted": "#2a9d4a", "failed": "#d1495b", "unknown": "#9aa4b1"}
_TICKS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SLOWEST = 0.9  #: what is slower is drawn there


def front_svg(report: dict[str, Any]) -> str:
    """Return the picture of how every candidate ended, and of the front.

    Args:
        report: As :meth:`fusion.search.report.FusionReport.to_json` gives it.
    """
    seen = [(gain_of(record, report), drop_of(record), record) for record in report["candidates"]]
    points = [(gain, drop, record) for gain, drop, record in seen if drop is not None]
    fastest = max([1.2, *(gain for gain, _, _ in points)]) * 1.05

    def x(gain: float) -> float:
        return _LEFT + (max(_SLOWEST, gain) - _SLOWEST) / (fastest - _SLOWEST) * (_WIDTH - _LEFT - _RIGHT)

    def y(drop: float) -> float:
        # nearly linear below half a point in a hundred, logarithmic above
        share = math.asinh(min(max(drop, 0.0), 1.0) / 0.005) / math.asinh(1 / 0.005)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    lines = [_grid(y(tick), f"{100 * tick:g}%") for tick in _TICKS]
    lines += [_tick(x(value), f"{value:g}x") for value in _round_values(fastest)]
    lines += [_limit(y(threshold)) for threshold in {entry["threshold"] for entry in report["best"]}]
    dots = [
        f"<circle cx='{x(gain):.1f}' cy='{y(drop):.1f}' r='4' fill='{_COLOURS.get(record['status'], _COLOURS['unknown'])}' "
        f"fill-opacity='.75'><title>candidate {record['number']}: {gain:.2f}x, drop {drop:.2%}, {record['status']}</title>"
        "</circle>"
        for gain, drop, record in points
    ]
    line = " ".join(f"{x(point['speedup']):.1f},{y(point['drop']):.1f}" for point in report["front"])
    front = f"<polyline points='{line}' fill='none' class='axis' stroke-width='1.5' stroke-dasharray='2 3'/>"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' role='img' aria-label='candidates' width='{_WIDTH}' height='{_HEIGHT}' "
        f"viewBox='0 0 {_WIDTH} {_HEIGHT}'>{''.join(lines)}{front}{''.join(dots)}{_titles(report)}{_legend()}</svg>"
    )


def gain_of(record: dict[str, Any], report: dict[str, Any]) -> float:
    """Return the cost of the original over that of a candidate."""
    return report["original"]["cost"] / record["cost"] if record["cost"] else math.inf


def drop_of(record: dict[str, Any]) -> float | None:
    """Return the largest drop of a task: of one that was accepted at its best check, else at the last; None without one."""
    drops = [[value for value in check["drops"].values() if value is not None] for check in record["checks"]]
    largest = [max(values) for values in drops if values]
    if not largest:
        return None
    return min(largest) if record["status"] == "accepted" else largest[-1]


def cost_label(report: dict[str, Any]) -> str:
    """Say what a predicted gain is a gain of."""
    metric = report["settings"].get("metric", "latency")
    return "predicted speedup" if metric == "latency" else f"gain in {metric}"


def _titles(report: dict[str, Any]) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f"<text x='{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}' y='{_HEIGHT - 6}' text-anchor='middle' class='soft'>"
        f"{cost_label(report)}</text>"
        f"<text transform='translate(16 {middle:.0f}) rotate(-90)' text-anchor='middle' class='soft'>largest drop</text>"
    )


def _legend() -> str:
    return "".join(
        f"<circle cx='{_LEFT + 6 + 96 * place}' cy='14' r='4' fill='{colour}'/>"
        f"<text x='{_LEFT + 15 + 96 * place}' y='18' class='soft'>{'ended early' if status == 'unknown' else status}</text>"
        for place, (status, colour) in enumerate(_COLOURS.items())
    )


def _round_values(fastest: float) -> list[float]:
    steps = (0.1, 0.2, 0.5, *(size * 10.0**power for power in range(9) for size in (1, 2, 5)))
    step = next((step for step in steps if (fastest - 1) / step <= 8), steps[-1])
    return [1 + number * step for number in range(min(9, int((fastest - 1) / step) + 1))]


def _grid(y: float, label: str) -> str:
    return (
        f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' class='grid'/>"
        f"<text x='{_LEFT - 8}' y='{y + 4:.1f}' text-anchor='end' class='soft'>{label}</text>"
    )


def _tick(x: float, label: str) -> str:
    return f"<text x='{x:.1f}' y='{_HEIGHT - _BOTTOM + 18}' text-anchor='middle' class='soft'>{label}</text>"


def _limit(y: float) -> str:
    return (
        f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#d1495b' stroke-dasharray='5 4'/>"
        f"<text x='{_WIDTH - _RIGHT + 6}' y='{y + 4:.1f}' class='soft'>allowed</text>"
    )
