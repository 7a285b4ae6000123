"""What the queue's verbs do on the command line: ask the queue, and tell. The parsers are in ``unified.queue_parsers``."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from unified.errors import UnifiedError
from unified.job_state import ENDED, RESIDENT, JobState
from unified.progress import shown_metrics
from unified.quantities import metrics_text, seconds_text
from unified.queue.errors import QueueError
from unified.queue.reasons import reason
from unified.queue.records import JobRow
from unified.queue.verbs import Queue
from unified.service.queue_output import (
    EXIT_DONE,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_TIMEOUT,
    Output,
    error_document,
    exit_code,
    job_document,
)

_POLL_SECONDS = 0.2


def run_verb(options: argparse.Namespace) -> int:
    """Do what a parsed command line of a verb says, and return the exit code.

    Raises:
        UnifiedError: If it cannot be done; with ``--json`` that is printed instead.
    """
    out = Output(as_json=options.json, is_quiet=options.quiet)
    try:
        try:
            return _run(options, out)
        except SQLAlchemyError as error:
            raise QueueError(f"the store of {options.root} did not do it: {str(error).splitlines()[0]}; try again") from error
    except KeyboardInterrupt:
        out.message(f"detached; nothing was cancelled{_look_again(options)}")
        return EXIT_INTERRUPTED
    except (UnifiedError, OSError) as error:
        if not out.as_json:
            raise
        out.document({"error": error_document(error, getattr(options, "id", None))})
        return EXIT_ERROR


def _run(options: argparse.Namespace, out: Output) -> int:
    if options.verb == "doctor":
        from unified.service.doctor import doctor

        return doctor(options, out)
    with Queue.open(options.root, make=options.verb == "submit") as queue:
        return _action(options.verb)(queue, options, out)


def _action(verb: str) -> Callable[[Queue, argparse.Namespace, Output], int]:
    if verb == "submit":
        from unified.service.submit_command import submit

        return submit
    if verb == "top":
        from unified.service.top import top

        return top
    if verb in _ACTIONS:
        return _ACTIONS[verb]
    from unified.service.move_command import move

    return move


def _look_again(options: argparse.Namespace) -> str:
    return "" if options.verb == "top" else f": {command_line(options, 'ls')}"


def command_line(options: argparse.Namespace, *words: str) -> str:
    """Return a command to type that concerns the same queue."""
    import shlex

    where = ("--root", str(options.root_option)) if options.root_option is not None else ()
    return shlex.join(("unified", *words, *where))


def who_asks() -> str:
    """Return the name of the person at this terminal, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user in this container
        return f"uid {os.getuid()}"


def reasons_of(queue: Queue, rows: list[JobRow]) -> dict[str, str]:
    """Return why each job stands where it stands, looking once whether a supervisor runs."""
    is_served, now = queue.is_served, time.time()
    return {row.id: reason(row, is_served=is_served, now=now) for row in rows}


def _ls(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    states = tuple(map(JobState, options.state))
    page = queue.list(states=states, user=options.user, cursor=options.cursor, limit=options.limit, newest_first=True)
    rows = list(page.jobs)
    if not states and options.cursor is None and page.cursor is not None:
        shown = {row.id for row in rows}  # those that train are always shown, however many came after them
        rows += [row for row in queue.store.jobs(states=tuple(RESIDENT), user=options.user) if row.id not in shown]
    rows.sort(key=lambda row: (row.submit_time, row.id))
    reasons = reasons_of(queue, rows)
    if out.as_json:
        jobs = [job_document(row, reasons[row.id]) for row in rows]
        out.document({"jobs": jobs, "cursor": page.cursor, "is_served": queue.is_served})
    elif out.is_quiet:
        _print_ids(rows, out)
    elif rows:
        from unified.service.queue_tables import jobs_table

        out.table(jobs_table(rows, reasons, time.time(), out.width))
    if not rows:
        out.message("no such jobs" if states or options.user else "no jobs yet")
    if page.cursor is not None:
        out.message("there are older jobs; --limit, --state and --user show others")
    return EXIT_DONE


def _print_ids(rows: list[JobRow], out: Output) -> None:
    for row in rows:
        out.line(row.id)


def _show(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    row = queue.get(options.id)
    if out.is_quiet:
        out.line(row.id)
        return EXIT_DONE
    transitions, checkpoints = queue.store.transitions(row.id), queue.store.checkpoints(row.id)
    why, extra = queue.reason(row), extra_facts(queue, row)
    if out.as_json:
        from unified.service.http_models import job_details, transition_model

        content = job_details(row, why, checkpoints, transitions).model_dump(mode="json", by_alias=True)
        content["transitions"] = [transition_model(each).model_dump(mode="json") for each in transitions]
        out.document(content | extra)
        return EXIT_DONE
    from unified.service.queue_tables import job_report

    out.table(job_report(row, why, transitions=transitions, checkpoints=checkpoints, extra=extra))
    return EXIT_DONE


def extra_facts(queue: Queue, row: JobRow) -> dict[str, Any]:
    """Return what there is to know about a job beside its row: neighbours, interval of checkpoints, files of the result."""
    residents = queue.store.jobs(states=tuple(RESIDENT)) if row.slot is not None else []
    neighbours = [job.id for job in residents if job.slot == row.slot and job.id != row.id]
    folder = queue.artifact_folder(row.id)
    hashes = _hashes(folder)
    files = [
        {"name": name, "bytes": path.stat().st_size, "sha256": hashes.get(name)}
        for path in queue.artifacts(row.id)
        for name in [path.relative_to(folder).as_posix()]
    ]
    return {"neighbours": neighbours, "checkpoint": _checkpoint_text(queue, row), "files": files}


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hashes that the result's own seal gives."""
    try:
        sealed = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError):
        return {}
    hashes = sealed.get("sha256") if isinstance(sealed, dict) else None
    return hashes if isinstance(hashes, dict) else {}


def _checkpoint_text(queue: Queue, row: JobRow) -> str:
    asked = row.spec.get("checkpoint") or {}
    every_steps, every_seconds = asked.get("every_steps"), asked.get("every_seconds") or queue.config.checkpoint_seconds
    every = f"every {seconds_text(every_seconds)}"
    return f"{every} or {every_steps} steps" if every_steps else every


def _explain(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    row = queue.get(options.id)
    lines = queue.explain(row.id)
    if out.as_json:
        out.document({"id": row.id, "state": str(row.state), "reason": queue.reason(row), "lines": lines})
    else:
        for line in [row.id] if out.is_quiet else lines:
            out.line(line)
    return EXIT_DONE


def _logs(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    row = queue.get(options.id)
    if out.is_quiet:
        out.line(row.id)
        return EXIT_DONE
    path = queue.log(row.id)
    lines, offset = _read_lines(path, 0)
    if not lines and not options.follow:
        out.message(f"nothing was logged yet; the job is {row.state}: {queue.reason(row)}")
    lines = lines[-options.lines :] if options.lines else lines
    if out.as_json and not options.follow:
        out.document({"id": row.id, "lines": list(map(_log_document, lines))})
        return EXIT_DONE
    _print_log(row.id, lines, out)
    if options.follow:
        for more in _follow(queue, row.id, path, offset):
            _print_log(row.id, more, out)
    return EXIT_DONE


def _print_log(job: str, lines: list[str], out: Output) -> None:
    for line in lines:
        if out.as_json:
            out.document({"id": job, **_log_document(line)})
        else:
            out.line(line)


def _follow(queue: Queue, job: str, path: Path, offset: int) -> Iterator[list[str]]:
    """Yield what is logged behind ``offset`` until the job has ended and nothing more comes."""
    has_ended = False
    while True:
        lines, offset = _read_lines(path, offset)
        if lines:
            yield lines
        elif has_ended:
            return
        else:
            has_ended = queue.store.get(job).state in ENDED
            time.sleep(_POLL_SECONDS)


def _read_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """Return the whole lines behind ``offset``, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    end = content.rfind(b"\n") + 1
    return content[:end].decode("utf-8", "replace").split("\n")[:-1], offset + end


def _log_document(line: str) -> dict[str, Any]:
    """Take a log's line apart; those of a traceback have no time."""
    time_, separator, text = line.partition("  ")
    has_time = bool(separator) and time_[:1].isdigit() and time_.endswith("Z")
    return {"time": time_, "text": text} if has_time else {"time": None, "text": line}


def _wait(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    if not queue.is_served:
        out.message("no supervisor is running: nothing trains until one does")
    states: list[JobState] = []
    try:
        for row in queue.wait(options.ids, timeout=options.timeout):
            states.append(row.state)
            print_end(queue, row, out)
    except TimeoutError as error:
        out.message(f"after {seconds_text(options.timeout)}, {error}; they go on")
        if out.as_json:
            out.document({"error": {"code": "timeout", "message": str(error), "job": None}})
        return EXIT_TIMEOUT
    return exit_code(states)


def print_end(queue: Queue, row: JobRow, out: Output) -> None:
    """Tell that a job has ended."""
    if out.as_json:
        out.document(job_document(row, queue.reason(row)))
    elif out.is_quiet:
        out.line(row.id)
    elif row.state is JobState.FINISHED:
        measured = metrics_text(shown_metrics(row.metrics))
        out.line(f"{row.id}  {row.state}  {queue.root.path / (row.result_path or '')}{'  ' if measured else ''}{measured}")
    else:
        out.line(f"{row.id}  {row.state}  {row.reason}")


_ACTIONS: dict[str, Callable[[Queue, argparse.Namespace, Output], int]] = {
    "ls": _ls,
    "show": _show,
    "explain": _explain,
    "logs": _logs,
    "wait": _wait,
}
