"""Between rows of the tables and records: every conversion is here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from unified.job_state import JobState
from unified.queue.records import JobRow, NewJob, Transition, WaitingRow
from unified.queue.schema import JOB, TRANSITION

_FIELDS = tuple(field.name for field in dataclasses.fields(JobRow))
_TRANSITION_FIELDS = tuple(field.name for field in dataclasses.fields(Transition))
_JSON = frozenset({"spec", "metrics", "admission"})

#: What :func:`job_row` wants selected.
JOB_COLUMNS = tuple(JOB.c[name] for name in _FIELDS)
WAITING_COLUMNS = tuple(JOB.c[field.name] for field in dataclasses.fields(WaitingRow))
TRANSITION_COLUMNS = tuple(TRANSITION.c[name] for name in _TRANSITION_FIELDS)

#: Fields that a move may change besides the state. The others are what was submitted, or go with the state and the lease.
MUTABLE = frozenset(_FIELDS) - {
    "id",
    "name",
    "user",
    "spec",
    "content_sha256",
    "client_token",
    "state",
    "reason",
    "submit_time",
    "epoch",
    "holder",
    "lease_expires",
    "boot_id",
    "slot",
}


def job_row(row: Sequence[Any]) -> JobRow:
    """Return the record of a row that has :data:`JOB_COLUMNS`."""
    values = dict(zip(_FIELDS, row, strict=True))
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    values["state"] = JobState(values["state"])
    return JobRow(**values)


def transition_row(row: Sequence[Any]) -> Transition:
    """Return the record of a row that has :data:`TRANSITION_COLUMNS`."""
    values = dict(zip(_TRANSITION_FIELDS, row, strict=True))
    values["old"] = None if values["old"] is None else JobState(values["old"])
    values["new"] = JobState(values["new"])
    return Transition(**values)


def columns_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a :class:`JobRow` as the columns that hold them."""
    columns = {name: json.dumps(value) if name in _JSON and value is not None else value for name, value in changes.items()}
    if "metrics" in columns and columns["metrics"] is None:
        columns["metrics"] = "{}"
    if "admission" in columns:
        columns["is_checked"] = columns["admission"] is not None
    return columns


def columns_of_new(job: NewJob, *, now: float, reason: str) -> dict[str, Any]:
    """Return the columns of a job that was just submitted."""
    submitted = {field.name: getattr(job, field.name) for field in dataclasses.fields(job) if field.name != "grant"}
    zeros = ("epoch", "steps_done", "training_seconds", "num_job_failures", "num_infra_failures", "num_blames")
    return {
        **columns_of(submitted),
        **dict.fromkeys(zeros, 0),
        "state": JobState.QUEUED,
        "reason": reason,
        "submit_time": now,
        "metrics": "{}",
        "is_alone": False,
        "is_checked": False,
    }
