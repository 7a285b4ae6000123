"""What came of a sweep: a row for each member, best first, for tables, ``NAME.sweep.json`` and ``NAME.sweep.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.job_state import JobState
from unified.progress import JobProgress
from unified.queue.files import write_durably
from unified.run_state import SWEEP_TABLES
from unified.summary import Summary, finite
from unified.sweeps import value_text

_TIMES = ("completion_seconds", "slowdown", "training_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResults:
    """A sweep and its members as they stand.

    Attributes:
        name: The sweep's name.
        fields: The swept fields, in the order written.
        ranked_by: What orders the members, smallest first: ``"test_loss"`` if any has one, else ``"train_loss"``. Those
            without one, or with one that is not finite, come behind, and last those that did not finish.
        members: The members, best first; equal ones in the order of the sweep.
    """

    name: str
    fields: tuple[str, ...]
    ranked_by: str
    members: tuple[JobProgress, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that any member has."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.metrics))

    def to_json(self) -> dict[str, Any]:
        """Return the rows as plain JSON; what is no finite number is null."""
        rows = [
            {
                "job": member.name,
                "values": dict(member.values),
                "state": str(member.state),
                "reason": member.reason,
                "metrics": dict(member.metrics),
                "completion_seconds": member.completion_seconds,
                "slowdown": member.slowdown,
                "training_seconds": member.training_seconds,
            }
            for member in self.members
        ]
        return finite({"name": self.name, "fields": list(self.fields), "ranked_by": self.ranked_by, "members": rows})

    def to_csv(self) -> str:
        """Return the rows as CSV: text as it is, other values in JSON, nothing for what a member does not have."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        metrics = self.metrics
        writer.writerow(["job", *self.fields, "state", *metrics, *_TIMES, "reason"])
        for member in self.members:
            values = [value_text(member.values[field]) if field in member.values else "" for field in self.fields]
            measured = [_number(member.metrics.get(name)) for name in metrics]
            times = [_seconds(getattr(member, name)) for name in _TIMES]
            row = [member.name, *values, str(member.state), *measured, *times, member.reason or ""]
            writer.writerow(row)
        return out.getvalue()


def sweep_results(summary: Summary) -> tuple[SweepResults, ...]:
    """Return the sweeps of a run, in order of submission."""
    members: dict[str, list[JobProgress]] = {}
    for job in summary.jobs.values():
        if job.sweep is not None:
            members.setdefault(job.sweep, []).append(job)
    return tuple(_results(name, jobs) for name, jobs in members.items())


def write_sweeps(folder: Path, sweeps: Sequence[SweepResults]) -> None:
    """Write the tables of a run's sweeps into its folder, where no job can have their names."""
    for sweep in sweeps:
        contents = (json.dumps(sweep.to_json(), indent=2) + "\n", sweep.to_csv())
        for suffix, content in zip(SWEEP_TABLES, contents, strict=True):
            write_durably(folder / f"{sweep.name}{suffix}", content.encode())


def _results(name: str, jobs: Sequence[JobProgress]) -> SweepResults:
    fields = tuple(dict.fromkeys(field for job in jobs for field in job.values))
    ranked_by = "test_loss" if any("test_loss" in job.metrics for job in jobs) else "train_loss"

    def rank(job: JobProgress) -> tuple[bool, bool, float]:
        loss = job.metrics.get(ranked_by, math.nan)
        is_finite = math.isfinite(loss)
        return job.state is not JobState.FINISHED, not is_finite, loss if is_finite else 0.0

    return SweepResults(name=name, fields=fields, ranked_by=ranked_by, members=tuple(sorted(jobs, key=rank)))


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)
