"""``unified submit``: hands jobs in, waits until they were checked, and follows them if asked."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.errors import InvalidSubmission, UnifiedError
from unified.intake import job_folders
from unified.job_state import ENDED, JobState
from unified.quantities import MISSING, seconds_text, value_text
from unified.queue.records import JobRow, Submitted
from unified.queue.verb_rules import REQUEUE
from unified.queue.verbs import Queue
from unified.service.queue_command import command_line, print_end, who_asks
from unified.service.queue_output import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_TIMEOUT,
    Output,
    error_document,
    exit_code,
    job_document,
)

_POLL_SECONDS = 0.1
_FOLLOW_SECONDS = 0.5
_NEWS_SECONDS = 5.0  #: between two lines about the progress of one job


def submit(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    """Hand in what the paths name, and return the exit code.

    Raises:
        InvalidSubmission: If a path holds no job.
    """
    folders = list(_jobs_in(options.paths))
    if options.id is not None and len(folders) > 1:
        raise UnifiedError(f"--id names one job, and here are {len(folders)}; submit them one by one")
    accepted, errors = _hand_in(queue, folders, _changes(options), options, out)
    is_served = queue.is_served
    if accepted and is_served and not options.no_wait:
        accepted = _checked(queue, accepted, options.check_timeout)
    if out.as_json:
        _tell_json(queue, accepted, errors, out)
    else:
        _tell(queue, accepted, options, out, is_served=is_served)
    failed = [each.job.state for each in accepted if each.job.state in {JobState.FAILED, JobState.DEAD}]
    if options.wait and accepted:
        followed = follow(queue, [each.job.id for each in accepted], options.timeout, out)
        return EXIT_ERROR if errors else followed
    return EXIT_ERROR if errors or failed else EXIT_DONE


def _jobs_in(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.suffix.lower() == ".zip" and path.is_file():
            yield path
        else:
            yield from job_folders(path)


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    named = {"priority": options.priority, "id": options.id, "client_token": options.client_token}
    return {field: value for field, value in named.items() if value is not None}


def _hand_in(
    queue: Queue, folders: list[Path], changes: dict[str, Any], options: argparse.Namespace, out: Output
) -> tuple[list[Submitted], list[dict[str, Any]]]:
    """Submit each; what is refused keeps no other from being accepted."""
    accepted: list[Submitted] = []
    errors: list[dict[str, Any]] = []
    for folder in folders:
        try:
            accepted += queue.submit_all(folder, by=who_asks(), user=options.user, changes=changes)
        except UnifiedError as error:
            errors.append(error_document(error, None if isinstance(error, InvalidSubmission) else folder.name))
            if not out.as_json:
                out.error(error)
    return accepted, errors


def _checked(queue: Queue, accepted: list[Submitted], timeout: float) -> list[Submitted]:
    """Wait until each has been checked, or ``timeout`` seconds; return them as they are then."""
    deadline = time.monotonic() + timeout
    while True:
        accepted = [Submitted(job=queue.store.get(each.job.id), is_new=each.is_new) for each in accepted]
        is_pending = any(is_unchecked(each.job) for each in accepted)
        if not is_pending or time.monotonic() >= deadline or not queue.is_served:
            return accepted
        time.sleep(_POLL_SECONDS)


def is_unchecked(row: JobRow) -> bool:
    """Whether nobody has looked yet at a job's model and data."""
    return row.state is JobState.QUEUED and row.admission is None


def _tell_json(queue: Queue, accepted: list[Submitted], errors: list[dict[str, Any]], out: Output) -> None:
    jobs = [
        {
            **job_document(each.job, queue.reason(each.job)),
            "is_new": each.is_new,
            "checked": not is_unchecked(each.job),
            "problems": problems_of(queue, each.job),
        }
        for each in accepted
    ]
    out.document({"jobs": jobs, "errors": errors, **({"error": errors[0]} if errors else {})})


def _tell(queue: Queue, accepted: list[Submitted], options: argparse.Namespace, out: Output, *, is_served: bool) -> None:
    for each in accepted:
        said = "submitted" if each.is_new else f"already submitted: {each.job.state}"
        if not each.is_new and each.job.state in REQUEUE.moves:
            said += f"; to train it again: {command_line(options, 'requeue', each.job.id)}"
        out.line(each.job.id if out.is_quiet else f"{each.job.id}  {said}")
        if each.job.state is JobState.FAILED:
            for problem in problems_of(queue, each.job):
                out.complain(f"job {each.job.id}: {problem}")
    going_on = [each.job for each in accepted if each.job.state not in ENDED]
    if not out.is_quiet and not options.wait and going_on:
        named = going_on[0].id if len(going_on) == 1 else "ID"
        for words in (("show", named), ("logs", "-f", named), ("wait", named), ("cancel", named)):
            out.line(f"  {command_line(options, *words)}")
    if going_on and not is_served:
        kept = "the job is" if len(going_on) == 1 else "the jobs are"
        out.message(f"no supervisor is running; {kept} kept until one is: {command_line(options, 'serve')}")
    elif any(is_unchecked(job) for job in going_on) and not options.no_wait:
        out.message(
            f"not checked yet after {seconds_text(options.check_timeout)}; what comes of it: {command_line(options, 'ls')}"
        )


def problems_of(queue: Queue, row: JobRow) -> list[str]:
    """Return what is wrong with a job that failed its check, a line each."""
    if row.state is not JobState.FAILED:
        return []
    try:
        written = (queue.root.rejected / row.id / "reason.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        written = row.reason.removeprefix("invalid: ").replace(" | ", "\n")
    return written.splitlines()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What was last told of a job, and when (monotonic clock)."""

    state: JobState
    steps: int
    at: float


def follow(queue: Queue, jobs: list[str], timeout: float | None, out: Output) -> int:
    """Tell how jobs go on until all have ended, and return the exit code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    told: dict[str, _Told] = {}
    ended: dict[str, JobState] = {}
    while True:
        for row in [queue.store.get(job) for job in jobs if job not in ended]:
            if row.state in ENDED:
                ended[row.id] = row.state
                print_end(queue, row, out)
            elif _is_news(row, told.get(row.id)):
                told[row.id] = _Told(state=row.state, steps=row.steps_done, at=time.monotonic())
                _tell_progress(queue, row, out)
        if len(ended) == len(set(jobs)):
            return exit_code(list(ended.values()))
        if deadline is not None and time.monotonic() >= deadline:
            out.message(f"stopped following after {seconds_text(timeout)}; the jobs go on")
            return EXIT_TIMEOUT
        time.sleep(_FOLLOW_SECONDS)


def _is_news(row: JobRow, told: _Told | None) -> bool:
    if told is None or row.state is not told.state:
        return True
    return row.steps_done != told.steps and time.monotonic() - told.at >= _NEWS_SECONDS


def _tell_progress(queue: Queue, row: JobRow, out: Output) -> None:
    if out.as_json:
        out.document(job_document(row, queue.reason(row)))
    elif not out.is_quiet:
        total = MISSING if row.steps_total is None else row.steps_total
        out.line(f"{row.id}  {row.state}  step {row.steps_done}/{total}  loss {value_text(row.loss)}  {queue.reason(row)}")
