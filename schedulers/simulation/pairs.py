"""How fast two kinds of jobs are on one slot together: a table in a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from schedulers.base import SchedulerConfigError

COLUMNS = ("one", "other", "speed")


def read_pairs(path: Path) -> dict[frozenset[str], float]:
    """Read a table of pairs: the columns ``one`` and ``other`` name kinds, ``speed`` what both do against one alone.

    Returns:
        The speed, in [1, 2], of each pair; of a kind with itself under a set of that one.

    Raises:
        SchedulerConfigError: If it is no such table; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise SchedulerConfigError(f"pairs {path}: expected a CSV file with the columns {', '.join(COLUMNS)}")
            return {frozenset((row["one"], row["other"])): _speed(path, reader.line_num, row["speed"]) for row in reader}
    except OSError as error:
        raise SchedulerConfigError(f"pairs {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SchedulerConfigError(f"pairs {path}: expected a CSV file, got something else: {error}") from error


def _speed(path: Path, line: int, text: str | None) -> float:
    try:
        speed = float(text or "")
    except ValueError:
        speed = 0.0
    if not 1.0 <= speed <= 2.0:
        raise SchedulerConfigError(f"pairs {path}, line {line}, column 'speed': expected a number from 1 to 2, got {text!r}")
    return speed
