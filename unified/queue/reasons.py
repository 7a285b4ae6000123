"""Why a job stands where it stands, in words for its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unified.admission import TRUSTED_FORMS
from unified.job_state import ENDED, RESIDENT, JobState
from unified.quantities import bytes_text, plural, seconds_text
from unified.queue.records import UNDER, JobRow
from unified.queue.store import JobStore

NO_SUPERVISOR = "supervisor not running"

#: What becomes of jobs that were on a slot when their supervisor ended.
_WHEN_SERVED = {
    JobState.LOADING: "goes on from its last checkpoint",
    JobState.RUNNING: "goes on from its last checkpoint",
    JobState.PAUSING: "is paused",
    JobState.CANCELLING: "is cancelled",
}
_WINDOW = 100_000  #: more jobs before one than this are not counted


def reason(row: JobRow, *, is_served: bool, now: float) -> str:
    """Return why ``row`` stands where it stands, in a few words.

    Args:
        row: The job.
        is_served: Whether a supervisor runs.
        now: The wall clock.
    """
    if row.state is JobState.RETRY_WAIT:
        text = _retry(row, now)
        return text if is_served else f"{text}; {NO_SUPERVISOR}"
    if is_served or row.state in ENDED or row.state is JobState.PAUSED:
        return row.reason
    if row.state in _WHEN_SERVED:
        return f"{NO_SUPERVISOR}; {_WHEN_SERVED[row.state]} when one runs"
    return NO_SUPERVISOR


def _retry(row: JobRow, now: float) -> str:
    left = max(0.0, (row.not_before or now) - now)
    when = f"retry in {left:.0f} s" if left < 99.5 else f"retry in {seconds_text(left)}"
    tries = f"({row.num_job_failures} of {row.max_retries})"
    return f"{when} {tries}: {row.reason}" if row.reason else f"{when} {tries}"


def explain(row: JobRow, store: JobStore, status: dict[str, Any] | None, *, now: float) -> list[str]:
    """Say in sentences what a job waits for, and what decides when it is its turn.

    Args:
        row: The job.
        store: Where it is.
        status: What the supervisor says of itself; None if none runs.
        now: The wall clock.
    """
    packer, under, scheduler = reason(row, is_served=status is not None, now=now).partition(UNDER)
    lines = [f"{row.id} is {row.state}: {packer}"]
    if under:
        lines.append(f"Scheduler {scheduler}.")
    if row.state in ENDED:
        return [*lines, *_of_the_end(row)]
    if status is None:
        lines.append("No supervisor runs: nothing trains until 'unified serve' is started on this root.")
    if row.state is JobState.PAUSED:
        lines.append(f"It stays so until it is resumed: unified resume {row.id}")
    if row.state in {JobState.QUEUED, JobState.RETRY_WAIT}:
        lines += _of_waiting(row, store, status)
    if not (under and _looks_at("deadline", status)):  # else the scheduler has said it
        lines += _of_deadline(row, status, now)
    lines += _of_itself(row, store, status)
    return lines


def _of_the_end(row: JobRow) -> Iterator[str]:
    if row.state is JobState.FINISHED:
        yield f"Its result is in {row.result_path}."
    else:
        yield f"It does not go on by itself; to try it again: unified requeue {row.id}"


def _of_deadline(row: JobRow, status: dict[str, Any] | None, now: float) -> Iterator[str]:
    if row.deadline_seconds is None:
        return
    left = row.submit_time + row.deadline_seconds - now
    when = f"is in {seconds_text(left)}" if left >= 0 else f"was {seconds_text(-left)} ago"
    unseen = "" if _looks_at("deadline", status) else f"; scheduler {(status or {}).get('scheduler')} does not look at it"
    yield f"Its deadline {when}{unseen}."


def _looks_at(field: str, status: dict[str, Any] | None) -> bool:
    """Return whether the scheduler decides by a field, as far as is known."""
    return field in (status or {}).get("decides_by", [field])


def _of_waiting(row: JobRow, store: JobStore, status: dict[str, Any] | None) -> Iterator[str]:
    if row.admission is None:
        yield "Its model and data are yet to be checked; it can be given a slot after that."
    else:
        waiting = [job.id for job in store.waiting(_WINDOW)]
        scheduler = str((status or {}).get("scheduler", ""))
        if row.id in waiting and scheduler.startswith("priority"):
            place = waiting.index(row.id)
            yield f"By priority ({row.priority}, lower runs earlier) and time, {plural(place, 'job')} would come before it."
        elif row.priority and not _looks_at("priority", status):
            yield f"Scheduler {scheduler} does not look at its priority of {row.priority}."
    if status is None:
        return
    slots = status.get("slots") or []
    busy = sum(slot.get("running") is not None for slot in slots)
    yield f"Scheduler {status.get('scheduler', '?')} decides over {plural(len(slots), 'slot')}, {busy} of them busy."
    total, used = status.get("memory_total_bytes"), status.get("memory_bytes")
    if row.memory_bytes is not None and total:
        yield f"It needs {bytes_text(row.memory_bytes)}; {bytes_text(used)} of {bytes_text(total)} are in use."
    if status.get("is_draining"):
        yield "The supervisor is being stopped: it starts nothing any more."


def _of_itself(row: JobRow, store: JobStore, status: dict[str, Any] | None) -> Iterator[str]:
    if row.is_alone:
        yield "It must have a slot to itself: it was there when a worker died, or ran out of memory beside others."
    banned = sorted(other for pair in store.bans() if row.id in pair for other in pair if other != row.id)
    if banned:
        yield f"It may not share a slot with {', '.join(banned)}: together they brought down a worker."
    if row.spec.get("colocate") == "same-user" or _runs_code(row):
        yield "Its process hosts only its user's jobs, from start to end: its model runs code, or job.json asks for that."
    if row.num_job_failures:
        yield f"It failed {plural(row.num_job_failures, 'time')} for reasons of its own; {row.max_retries} retries are allowed."
    if row.num_infra_failures:
        yield f"Its worker or host failed {plural(row.num_infra_failures, 'time')} since its last progress."
    if row.slot is not None:
        neighbours = [job.id for job in store.jobs(states=tuple(RESIDENT)) if job.slot == row.slot and job.id != row.id]
        beside = f" beside {', '.join(neighbours)}" if neighbours else ", alone"
        yield f"It is on slot {row.slot}{beside}."
        gain = next((slot.get("gain") for slot in (status or {}).get("slots") or () if slot.get("index") == row.slot), None)
        if gain is not None:
            yield f"What runs there and what runs beside it are together {gain:.2f} times as fast as one after the other."


def _runs_code(row: JobRow) -> bool:
    return (row.admission or {}).get("model", {}).get("form") in TRUSTED_FORMS
