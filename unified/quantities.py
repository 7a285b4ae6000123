"""How numbers are shown to people: bytes, seconds, counts and measured values as short texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MISSING = "–"  #: shown where there is nothing to show

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P")


def bytes_text(num_bytes: float | None) -> str:
    """Show a size in binary units.

    >>> bytes_text(3 * 2**20 + 2**19), bytes_text(512), bytes_text(None)
    ('3.5 MiB', '512 B', '–')
    """
    if num_bytes is None:
        return MISSING
    value, unit = _scaled(float(num_bytes), 1024.0, _BINARY)
    return f"{_three_digits(value)} {unit}"


def count_text(count: float | None, unit: str = "") -> str:
    """Show a count in decimal units.

    >>> count_text(61706), count_text(2.5e9, "FLOP"), count_text(12)
    ('61.7 k', '2.5 GFLOP', '12')
    """
    if count is None:
        return MISSING
    value, prefix = _scaled(float(count), 1000.0, _DECIMAL)
    return f"{_three_digits(value)} {prefix}{unit}".rstrip()


def seconds_text(seconds: float | None) -> str:
    """Show a duration.

    >>> seconds_text(0.04219), seconds_text(12.34), seconds_text(185), seconds_text(7600)
    ('0.042 s', '12.3 s', '3 min 05 s', '2 h 07 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock_text(seconds: float | None) -> str:
    """Show a duration as a clock does.

    >>> clock_text(65), clock_text(3725), clock_text(None)
    ('1:05', '1:02:05', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def value_text(value: float | None) -> str:
    """Show a loss or a metric with four significant digits.

    >>> value_text(0.97123), value_text(1.5e-6), value_text(float("nan")), value_text(0.5)
    ('0.9712', '1.5e-06', 'nan', '0.5')
    """
    return MISSING if value is None else f"{value:.4g}"


def times_text(value: float | None) -> str:
    """Show how many times as much something is.

    >>> times_text(1.0349), times_text(12.34), times_text(430.2), times_text(None)
    ('1.03x', '12.3x', '430x', '–')
    """
    return MISSING if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}x"


def spread_text(mean: float, p95: float, write: Callable[[float], str] = seconds_text) -> str:
    """Show what many values came to.

    >>> spread_text(12.34, 185.0)
    'mean 12.3 s, p95 3 min 05 s'
    """
    return f"mean {write(mean)}, p95 {write(p95)}"


def metrics_text(metrics: dict[str, float]) -> str:
    """Show metrics in one line.

    >>> metrics_text({"accuracy": 0.98, "test_loss": 0.0712})
    'accuracy 0.98, test_loss 0.0712'
    """
    return ", ".join(f"{name} {value_text(value)}" for name, value in metrics.items())


def plural(count: int, noun: str) -> str:
    """Count things.

    >>> plural(1, "job"), plural(3, "job")
    ('1 job', '3 jobs')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> tuple[float, str]:
    """Return ``value`` in the largest of ``units`` (each ``base`` times the last) in which it is >= 1."""
    index = 0
    # 0.9995: what would be shown as 1000 of one unit is 1 of the next
    while index < len(units) - 1 and abs(value) >= base * 0.9995:
        value /= base
        index += 1
    return value, units[index]


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 or value == int(value) else f"{value:.3g}"


def stack_text(members: Sequence[str], speedup: float | None) -> str:
    """Return a stack in words.

    >>> stack_text(("lr0.1", "lr0.2", "lr0.3", "lr0.4"), 1.7)
    'stack of 4: lr0.1, lr0.2, … 1.7x'
    """
    names = ", ".join(members) if len(members) <= 3 else ", ".join([*members[:2], "…"])
    text = f"stack of {len(members)}: {names}"
    return text if speedup is None else f"{text} {speedup:.1f}x"
