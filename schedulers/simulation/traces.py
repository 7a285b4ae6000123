"""Public traces of clusters as workloads: CSV files with a header, a line per job.

``job_id``, ``submit_s`` and ``duration_s`` must be there; the columns ``num_gpus``, ``user``, ``priority``, ``weight``,
``iterations``, ``num_epochs``, ``num_parameters`` and ``model`` are used if they are. A column that is empty throughout counts
as missing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import exp, isfinite
from pathlib import Path
from random import Random
from statistics import median
from typing import TypeVar

from schedulers.base import SchedulerConfigError
from schedulers.simulation.workload import SimJob

Number = TypeVar("Number", int, float)

REQUIRED = ("job_id", "submit_s", "duration_s")

#: a field of JobView that comes from a column, and the column
COLUMN_OF = {
    "priority": "priority",
    "weight": "weight",
    "num_epochs": "num_epochs",
    "num_parameters": "num_parameters",
}


class TraceError(SchedulerConfigError):
    """A file is no trace, or no workload can be made of it; the message says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is taken from a trace, and what is made of it.

    Attributes:
        jobs: The most jobs, the first ones.
        min_seconds: The least duration.
        max_seconds: The greatest duration.
        slots: Those of the host, for ``load``.
        load: Work that arrives in the time of the trace, against what the slots could do in it: arrivals are scaled to it.
        sigma: How wrong estimates are: each is the duration times exp of a normal number with this deviation; 0: exact.
        seed: Of those numbers.
        users_column: The column that says whose a job is.
        deadline_factor: Each job is to be done this many times its duration after its submission; None: no deadlines.
    """

    jobs: int = 1200
    min_seconds: float = 30.0
    max_seconds: float = 86_400.0
    slots: int = 4
    load: float = 0.9
    sigma: float = 1.0
    seed: int = 0
    users_column: str = "user"
    deadline_factor: float | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A job of a trace that may be taken: one GPU, a known time."""

    line: int
    values: Mapping[str, str]
    submit: float
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace as it was read.

    Attributes:
        name: Of the file, without its ending.
        columns: Those that have values.
        rows: Its one-GPU jobs, by (submit, duration).
    """

    name: str
    columns: frozenset[str]
    rows: tuple[_Row, ...]

    def supplied(self, selection: Selection) -> frozenset[str]:
        """Return the fields of ``JobView``, of those that a trace may lack, that its jobs have."""
        fields = {field for field, column in COLUMN_OF.items() if column in self.columns}
        if selection.users_column in self.columns:
            fields.add("user_shares")
        if selection.deadline_factor is not None:
            fields.add("deadline")
        return frozenset(fields)

    def workload(self, selection: Selection) -> list[SimJob]:
        """Return the jobs of a selection.

        Raises:
            TraceError: If there are none, or the users' column has no values although it was named.
        """
        if selection.users_column not in self.columns and selection.users_column != "user":
            raise TraceError(
                f"trace {self.name}: no column {selection.users_column!r} with values; it has {_listed(self.columns)}"
            )
        fitting = [row for row in self.rows if selection.min_seconds <= row.duration <= selection.max_seconds]
        chosen = fitting[: selection.jobs]
        if not chosen:
            raise TraceError(
                f"trace {self.name}: none of its {len(self.rows)} one-GPU jobs lasts {selection.min_seconds:g} to "
                f"{selection.max_seconds:g} s; widen --min-seconds and --max-seconds"
            )
        first, last = chosen[0].submit, chosen[-1].submit
        work = sum(row.duration for row in chosen)
        scale = work / (selection.load * selection.slots * (last - first)) if last > first else 1.0
        random = Random(selection.seed)
        return [
            self._job(row, f"{index:06} {row.values['job_id']}", (row.submit - first) * scale, selection, random)
            for index, row in enumerate(chosen)
        ]

    def _job(self, row: _Row, name: str, submit: float, selection: Selection, random: Random) -> SimJob:
        """Return a row as a job; its name begins with its place, as policies let ties go by name."""
        factor = selection.deadline_factor
        return SimJob(
            id=name,
            submit_time=submit,
            seconds=row.duration,
            user=row.values.get(selection.users_column, "") if selection.users_column in self.columns else "",
            priority=self._count(row, "priority", 0, least=None),
            weight=self._number(row, "weight", 1.0),
            deadline=None if factor is None else submit + factor * row.duration,
            num_epochs=self._count(row, "num_epochs", 1, least=1),
            steps_total=self._count(row, "iterations", 0, least=1) or None,
            num_parameters=self._count(row, "num_parameters", 0, least=0),
            kind=row.values.get("model", ""),
            estimate_seconds=row.duration * exp(random.gauss(0, selection.sigma)) if selection.sigma > 0 else None,
        )

    def _number(self, row: _Row, column: str, default: float) -> float:
        if column not in self.columns:
            return default
        return _parse(self.name, row.line, row.values, column, float, "a positive number", lambda value: value > 0)

    def _count(self, row: _Row, column: str, default: int, *, least: int | None) -> int:
        if column not in self.columns:
            return default
        kind = "a whole number" if least is None else f"a whole number of at least {least}"
        return _parse(self.name, row.line, row.values, column, int, kind, lambda value: least is None or value >= least)


def read_trace(path: Path) -> Trace:
    """Read a trace.

    Raises:
        TraceError: If it is not one; the message names line, column and value.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read(path.stem, file)
    except OSError as error:
        raise TraceError(f"trace {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"trace {path}: expected a CSV file with a header, got something else: {error}") from error


def auto_quantum(jobs: Iterable[SimJob]) -> float:
    """Return the quantum for a workload: a tenth of the median duration, at least a minute."""
    return max(60.0, median(job.seconds for job in jobs) / 10)


def _read(name: str, lines: Iterable[str]) -> Trace:
    reader = csv.DictReader(lines)
    header = reader.fieldnames or []
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        raise TraceError(
            f"trace {name}: expected a CSV file with the columns {_listed(REQUIRED)}; "
            f"{_listed(missing)} is not in its first line, which has {_listed(header[:12]) or 'nothing'}"
        )
    rows, seen, filled = [], set(), set()
    for values in reader:
        line = reader.line_num
        if None in values or None in values.values():
            count = sum(value is not None for column, value in values.items() if column is not None)
            count += len(values.get(None) or ())  # type: ignore[call-overload]
            raise TraceError(f"trace {name}, line {line}: expected {len(header)} values, got {count}")
        if values["job_id"] in seen:
            raise TraceError(f"trace {name}, line {line}: column 'job_id': {values['job_id']!r} is there twice")
        seen.add(values["job_id"])
        filled |= {column for column, value in values.items() if value}
        submit, duration = (
            _parse(name, line, values, column, float, "a number of seconds from 0 to 1e12", lambda value: 0 <= value <= 1e12)
            for column in ("submit_s", "duration_s")
        )
        rows.append(_Row(line, values, submit, duration))
    if "num_gpus" in filled:
        rows = [row for row in rows if _parse(name, row.line, row.values, "num_gpus", float, "a number", lambda _: True) == 1]
    ordered = sorted(rows, key=lambda row: (row.submit, row.duration))
    return Trace(name=name, columns=frozenset(filled), rows=tuple(ordered))


def _parse(
    name: str,
    line: int,
    values: Mapping[str, str],
    column: str,
    kind: type[Number],
    expected: str,
    holds: Callable[[Number], bool],
) -> Number:
    text = values[column]
    with suppress(ValueError, OverflowError):  # no number, or a whole one too large for a float
        number = kind(text)
        if isfinite(number) and holds(number):
            return number
    raise TraceError(f"trace {name}, line {line}, column {column!r}: expected {expected}, got {text!r}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names) if isinstance(names, frozenset) else names)
