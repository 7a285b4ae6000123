"""What values on the command line may be; a wrong one is a usage error that says what was expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import isfinite
from pathlib import Path


def positive(text: str) -> int:
    """Return a whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def slots(text: str) -> int | str:
    """Return a number of slots, or ``"auto"``."""
    return text if text == "auto" else positive(text)


def seconds(text: str) -> float:
    """Return a finite duration above 0."""
    wrong = argparse.ArgumentTypeError(f"expected seconds, a number above 0, got {text!r}")
    try:
        number = float(text)
    except ValueError:
        raise wrong from None
    if not 0 < number < float("inf"):
        raise wrong
    return number


def above_zero(text: str) -> float:
    """Return a finite number above 0."""
    return _number(text, "above 0", lambda number: number > 0)


def within(least: float, most: float) -> Callable[[str], float]:
    """Return what reads a number from ``least`` to ``most``."""
    return lambda text: _number(text, f"from {least:g} to {most:g}", lambda number: least <= number <= most)


def _number(text: str, which: str, holds: Callable[[float], bool]) -> float:
    wrong = argparse.ArgumentTypeError(f"expected a number {which}, got {text!r}")
    try:
        number = float(text)
    except ValueError:
        raise wrong from None
    if not (isfinite(number) and holds(number)):
        raise wrong
    return number


def duration(text: str) -> float:
    """Return the seconds of a duration above 0, of ten years at most, with its unit: ``90s``, ``30m``, ``12h``, ``7d``."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if text[-1:] not in units:
        raise argparse.ArgumentTypeError(f"expected a duration with its unit, such as 90s, 30m, 12h or 7d; got {text!r}")
    length = seconds(text[:-1]) * units[text[-1]]
    if length > 3650 * units["d"]:
        raise argparse.ArgumentTypeError(f"expected at most ten years, 3650d, got {text!r}")
    return length


def user(text: str) -> str:
    """Return the name of a user."""
    if not 0 < len(text.strip()) <= 100 or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name of 1 to 100 printable characters, got {text!r}")
    return text.strip()


def whole(text: str) -> int:
    """Return a whole number from 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def drops(text: str) -> tuple[float, ...]:
    """Return drops of a score, each once, in the order given."""
    wrong = argparse.ArgumentTypeError(
        f"expected drops of a score from 0 up to 1 with commas between, such as 0.01 or 0,0.01,0.02; got {text!r}"
    )
    try:
        values = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise wrong from None
    if not all(0 <= value < 1 for value in values):
        raise wrong
    return values


def drop(text: str) -> float:
    """Return one drop of a score."""
    wrong = argparse.ArgumentTypeError(f"expected one drop of a score from 0 up to 1, such as 0.01; got {text!r}")
    try:
        value = float(text)
    except ValueError:
        raise wrong from None
    if not 0 <= value < 1:
        raise wrong
    return value


def alpha(text: str) -> float | str:
    """Return a fraction, infinity, or ``"auto"``."""
    if text in ("auto", "inf"):
        return text if text == "auto" else float("inf")
    try:
        return within(0, 1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, inf or auto; got {text!r}") from None


def names(text: str) -> tuple[str, ...]:
    """Return names with commas between."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"expected names with commas between, got {text!r}")
    return found


def archive(text: str) -> Path:
    """Return a path that ends in ``.pt2``."""
    path = Path(text)
    if path.suffix != ".pt2" or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file that ends in .pt2, got {text!r}")
    return path


def ratios(text: str) -> tuple[float, ...]:
    """Return pruning ratios, each once, in increasing order."""
    wrong = argparse.ArgumentTypeError(
        f"expected pruning ratios from 0 up to 1 with commas between, such as 0,0.3,0.6; got {text!r}"
    )
    try:
        values = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise wrong from None
    if not all(0 <= value < 1 for value in values):
        raise wrong
    return values


def batches(text: str) -> tuple[int, ...]:
    """Return batch sizes, each once, in increasing order."""
    try:
        return tuple(sorted({positive(part.strip()) for part in text.split(",")}))
    except argparse.ArgumentTypeError:
        wrong = f"expected batch sizes from 1 with commas between, such as 1,4,16; got {text!r}"
        raise argparse.ArgumentTypeError(wrong) from None


def subsets(text: str) -> str | tuple[tuple[str, ...], ...]:
    """Return ``"singles+all"`` or ``"all"``, or subsets of tasks: commas within, semicolons between them."""
    if text in ("singles+all", "all"):
        return text
    return tuple(dict.fromkeys(names(part) for part in text.split(";")))


def weights(text: str) -> dict[str, float]:
    """Return numbers above 0 by task, such as ``age=0.004,sex=1``."""
    return _by_task(text, above_zero, "weights by task, such as age=0.004,sex=1")


def floors(text: str) -> float | dict[str, float]:
    """Return a score from 0 to 1 for all tasks, or scores by task, such as ``age=0.8,sex=0.95``."""
    score = within(0, 1)
    return _by_task(text, score, "scores by task, such as age=0.8,sex=0.95") if "=" in text else score(text)


def _by_task(text: str, read: Callable[[str], float], what: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        task, equals, number = part.partition("=")
        if not equals or not task.strip():
            raise argparse.ArgumentTypeError(f"expected {what}; got {text!r}")
        found[task.strip()] = read(number)
    return found


def several(text: str) -> int:
    """Return a whole number from 2."""
    if not text.isascii() or not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number from 2, got {text!r}")
    return int(text)
