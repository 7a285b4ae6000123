"""How quanta, times and numbers are spelled in the options of a scheduler."""

from __future__ import annotations

import re

from schedulers.base import Epochs, Quantum, SchedulerConfigError, Seconds, Steps

DEFAULT_QUANTUM = Seconds(2.0)  #: long against the cost of a switch, short against people's patience

_QUANTUM = re.compile(r"(?P<count>\d+)\s*(?P<unit>steps?|epochs?|)")
_SECONDS_OF = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(?P<count>\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>ms|s|min|h|d|)")


def parse_quantum(text: str | Quantum) -> Quantum:
    """Read the spelling of a quantum; a bare number counts steps. A quantum is returned as it is.

    >>> parse_quantum("200"), parse_quantum("1epoch"), parse_quantum("500ms")
    (Steps(count=200), Epochs(count=1), Seconds(count=0.5))

    Raises:
        SchedulerConfigError: If it is not a positive number with one of these units.
    """
    if not isinstance(text, str):
        return text
    text = text.strip()
    match = _QUANTUM.fullmatch(text)
    if match is not None:
        return (Epochs if match["unit"].startswith("epoch") else Steps)(int(match["count"]))
    match = _TIME.fullmatch(text)
    if match is None or not match["unit"]:
        raise SchedulerConfigError(f"option 'quantum': expected e.g. 200, 200steps, 1epoch, 2s or 500ms, got {text!r}")
    return Seconds(parse_time(text, "quantum"))


def parse_seconds(text: str | Seconds, option: str = "quantum") -> Seconds:
    """Read a quantum that must be a time, such as ``"2s"``, ``"500ms"`` or ``"10min"``; a bare number counts seconds.

    Raises:
        SchedulerConfigError: If it is not a positive time.
    """
    return text if isinstance(text, Seconds) else Seconds(parse_time(text, option))


def parse_time(text: str | float, option: str) -> float:
    """Read a time in seconds, such as ``"72h"``, ``"30min"`` or ``"1.5"``.

    >>> parse_time("72h", "max_wait")
    259200.0

    Raises:
        SchedulerConfigError: If it is not a time.
    """
    if not isinstance(text, str):
        return float(text)
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise SchedulerConfigError(f"option {option!r}: expected a time such as 500ms, 2s, 10min, 72h or 3d, got {text!r}")
    return float(match["count"]) * _SECONDS_OF[match["unit"]]


def time_text(seconds: float) -> str:
    """Show a time in an explanation, as exactly as people want to know it.

    >>> time_text(7), time_text(0.78575), time_text(-185.2), time_text(9000), time_text(300000)
    ('7 s', '0.786 s', '-3 min 05 s', '2 h 30 min', '3 d 11 h')
    """
    if abs(seconds) < 99.95:
        return f"{seconds:.3g} s"
    if abs(seconds) == float("inf"):
        return f"{seconds} s"
    sign, whole = "-" if seconds < 0 else "", round(abs(seconds))
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    if minutes < 48 * 60:
        return f"{sign}{minutes // 60} h {minutes % 60:02d} min"
    hours = round(whole / 3600)
    return f"{sign}{hours // 24} d {hours % 24} h"


def parse_number(text: str | float, option: str) -> float:
    """Read a number from 0 on, such as ``"0.1"``.

    Raises:
        SchedulerConfigError: If it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise SchedulerConfigError(f"option {option!r}: expected a number from 0 on, got {text!r}")
    return number
