"""What a queue did, from its store and its timeline, as what the simulator is given. Free of torch.

A queue keeps less than a run: the newest turns alone are known. Jobs whose turns are not all known are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified.errors import UnifiedError
from unified.job_state import JobState
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.verbs import Queue
from unified.replay import PlayedRun, RunRecord


def is_queue(folder: Path) -> bool:
    """Say whether a folder is a queue's."""
    return Root(path=folder).database.is_file()


def read_queue(folder: Path) -> PlayedRun:
    """Read the finished jobs of a queue.

    Raises:
        UnifiedError: If there are none whose turns are all known, or they were trained under several schedulers.
    """
    with Queue.open(folder) as queue:
        rows = queue.store.jobs(states=(JobState.FINISHED,))
        turns = _turns(queue.root.timeline)
        sealed = {row.id: _sealed(queue.root.result(row.id) / "result.json") for row in rows}
    steps: dict[str, int] = {}
    for turn in turns:
        steps[turn["job"]] = steps.get(turn["job"], 0) + turn["steps"]
    known = [row for row in rows if row.finished_time is not None and steps.get(row.id, 0) >= max(1, row.steps_done)]
    schedulers = {str(sealed[row.id].get("scheduler")) for row in known}
    if len(schedulers) > 1:
        raise UnifiedError(f"{folder}: its jobs were trained under several schedulers ({', '.join(sorted(schedulers))})")
    record = RunRecord()
    for event in _events(known, turns, schedulers):
        record.take(event)
    return record.played({row.id: row.spec for row in known}, where=str(folder))


def _turns(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # torn by a kill; the writer went on behind it
            continue
    return found


def _sealed(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _events(rows: Sequence[JobRow], turns: Sequence[Mapping[str, Any]], schedulers: set[str]) -> list[dict[str, Any]]:
    """Return what a run's log would have: all that is known, in order of time."""
    names = {row.id for row in rows}
    mine = [turn for turn in turns if turn["job"] in names]
    events: list[dict[str, Any]] = []
    for row in rows:
        admission = row.admission or {}
        length = {"num_epochs": row.spec.get("epochs") or 1, "num_steps": row.steps_done}
        size = {"num_parameters": (admission.get("estimate") or {}).get("num_parameters", 0)}
        whose = {"job": row.id, "user": row.user, "ready_at": admission.get("checked_time", row.submit_time)}
        events.append({"event": "JobSubmitted", "at": row.submit_time, **whose, **length, **size})
        events.append({"event": "JobFinished", "at": row.finished_time, "job": row.id})
    for turn in mine:
        events.append({"event": "TurnStarted", "at": turn["start"], "job": turn["job"]})
        events.append({"event": "TurnEnded", "at": turn["end"], "job": turn["job"], "slot": turn["slot"]})
    events.sort(key=lambda event: (event["at"], event["event"] == "TurnStarted"))  # a turn ends before the next begins
    if not events:
        return []
    slots = [""] * (1 + max((turn["slot"] for turn in mine), default=-1))
    started = {"event": "RunStarted", "at": events[0]["at"], "scheduler": next(iter(schedulers)), "slots": slots}
    return [started, *events]
