"""The tables of the queue's verbs: the list of jobs, and all there is about one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unified.columns import fitting, natural, total
from unified.job_state import JobState
from unified.progress import shown_metrics
from unified.quantities import MISSING, bytes_text, metrics_text, plural, seconds_text, times_text, value_text
from unified.queue.records import UNDER, CheckpointRow, JobRow, Transition
from unified.service.http_models import job_model
from unified.service.queue_output import safe

STATE_STYLES = {
    JobState.RUNNING: "cyan",
    JobState.LOADING: "cyan",
    JobState.FINISHED: "green",
    JobState.FAILED: "bold red",
    JobState.DEAD: "bold red",
    JobState.CANCELLED: "yellow",
    JobState.PAUSED: "yellow",
    JobState.RETRY_WAIT: "magenta",
}

_TITLES = (
    "ID", "NAME", "USER", "PRIO", "STATE", "REASON", "SLOT", "STEP/TOTAL", "ETA", "LOSS", "MEM",
    "COMPLETE", "SLOWDOWN", "WAIT", "RUN",
)  # fmt: skip
_LEFT = frozenset({"ID", "NAME", "USER", "STATE", "REASON"})
_WIDEST = {"ID": 40, "NAME": 30, "USER": 20, "REASON": 60}  #: columns of text; 'show' has all of it
_LEAST_REASON = 34
_LEFT_OUT_FIRST = ("NAME", "MEM", "RUN", "WAIT", "SLOWDOWN", "ETA", "COMPLETE", "PRIO", "SLOT", "USER", "LOSS")


def jobs_table(rows: Sequence[JobRow], reasons: Mapping[str, str], now: float, width: int) -> RenderableType:
    """Return the list of jobs, one per line, without the columns for which there is no room.

    Args:
        rows: The jobs.
        reasons: Id to why it stands where it stands.
        now: The wall clock.
        width: Columns of the screen.
    """
    table = plain_table()
    lines = [_cells(row, reasons[row.id], now) for row in rows]
    widths = _widths(lines, width)
    for title, most in widths.items():
        justify = "left" if title in _LEFT else "right"
        overflow = "ellipsis" if title == "REASON" else "fold"
        table.add_column(title, justify=justify, overflow=overflow, no_wrap=title == "REASON", width=most)
    for line in lines:
        table.add_row(*(line[title] for title in widths))
    return table


def _widths(lines: Sequence[Mapping[str, Text]], width: int) -> dict[str, int]:
    """Return the columns to show, each with its width; the reason takes what the others leave."""
    widths = {title: min(wanted, _WIDEST.get(title, wanted)) for title, wanted in natural(_TITLES, lines).items()}
    reason = widths["REASON"]
    widths["REASON"] = min(reason, _LEAST_REASON)
    widths = {title: widths[title] for title in fitting(widths, width, _LEFT_OUT_FIRST)}
    widths["REASON"] = max(1, min(reason, widths["REASON"] + width - total(widths)))
    return widths


def _cells(row: JobRow, reason: str, now: float) -> dict[str, Text]:
    shown = job_model(row, reason, now=now)
    total = MISSING if row.steps_total is None else str(row.steps_total)
    texts = [
        row.id,
        row.name,
        row.user or MISSING,
        str(row.priority),
        str(row.state),
        _short(reason) or MISSING,
        MISSING if row.slot is None else str(row.slot),
        f"{row.steps_done}/{total}",
        seconds_text(shown.eta_seconds),
        value_text(row.loss),
        bytes_text(row.memory_bytes),
        seconds_text(row.completion_seconds),
        times_text(row.slowdown),
        seconds_text(shown.waiting_seconds),
        seconds_text(row.training_seconds) if row.training_seconds else MISSING,
    ]
    cells = {title: cell(text) for title, text in zip(_TITLES, texts, strict=True)}
    cells["STATE"].stylize(STATE_STYLES.get(row.state, ""))
    return cells


def _short(reason: str) -> str:
    """Return a reason without the scheduler's name, which is the same for all."""
    packer, under, scheduler = reason.partition(UNDER)
    return f"{packer}; {scheduler.partition(': ')[2] or scheduler}" if under else reason


def job_report(
    row: JobRow,
    reason: str,
    *,
    transitions: Sequence[Transition],
    checkpoints: Sequence[CheckpointRow],
    extra: Mapping[str, Any],
) -> RenderableType:
    """Return all there is about one job.

    Args:
        row: The job.
        reason: Why it stands where it stands.
        transitions: What happened to it.
        checkpoints: What it would go on from.
        extra: What :func:`unified.service.queue_command.extra_facts` found.
    """
    parts: list[RenderableType] = [facts_table(_facts(row, reason, extra))]
    parts += [Text(), Text("what happened", style="bold"), _transitions_table(transitions)]
    if checkpoints:
        parts += [Text(), Text("checkpoints", style="bold"), _checkpoints_table(checkpoints)]
    if extra["files"]:
        parts += [Text(), Text("result", style="bold"), _files_table(extra["files"])]
    parts += [Text(), Text("job.json", style="bold"), cell(_json(row.spec))]
    return Group(*parts)


def _facts(row: JobRow, reason: str, extra: Mapping[str, Any]) -> dict[str, str]:
    shown = job_model(row, reason)
    facts = {
        "id": row.id,
        "name": row.name,
        "user": row.user or MISSING,
        "state": f"{row.state} – {reason}" if reason else str(row.state),
        "priority": f"{row.priority} (weight {row.weight:g})",
        "submitted": time_text(row.submit_time),
        "started": time_text(row.started_time),
        "finished": time_text(row.finished_time),
        "complete": "not yet" if row.completion_seconds is None else _completion_text(row),
        "waited": seconds_text(shown.waiting_seconds),
        "trained": seconds_text(row.training_seconds),
        "steps": f"{row.steps_done} of {MISSING if row.steps_total is None else row.steps_total}",
        "remaining": seconds_text(shown.eta_seconds),
        "metrics": metrics_text(shown_metrics(row.metrics)) or MISSING,
        "memory": bytes_text(row.memory_bytes),
        "slot": MISSING if row.slot is None else str(row.slot),
        "threads": str(row.num_threads or MISSING),
        "neighbours": ", ".join(extra["neighbours"]) or "none",
        "attempts": f"{plural(row.epoch, 'time')} on a slot; failed {row.num_job_failures} of {row.max_retries + 1} times for "
        f"reasons of its own, {plural(row.num_infra_failures, 'time')} for its worker or host since its last progress",
        "checkpoint": extra["checkpoint"],
        "content": row.content_sha256,
        "result": row.result_path or MISSING,
    }
    if row.not_before is not None and row.state is JobState.RETRY_WAIT:
        facts["tried again"] = time_text(row.not_before)
    return facts


def _completion_text(row: JobRow) -> str:
    after = f"{seconds_text(row.completion_seconds)} after submission"
    return after if row.slowdown is None else f"{after}, slowdown {times_text(row.slowdown)}"


def _transitions_table(transitions: Sequence[Transition]) -> Table:
    table = plain_table()
    for title in ("TIME", "FROM", "TO", "ATTEMPT", "BY", "REASON"):
        table.add_column(title, overflow="fold", no_wrap=title == "TIME")
    for move in transitions:
        texts = (time_text(move.time), str(move.old or MISSING), str(move.new), str(move.epoch), move.by, move.reason)
        table.add_row(*map(cell, texts))
    return table


def _checkpoints_table(checkpoints: Sequence[CheckpointRow]) -> Table:
    table = plain_table()
    for title in ("TIME", "ATTEMPT", "STEP", "SIZE", "FILE", "SHA-256"):
        table.add_column(title, overflow="fold", no_wrap=title == "TIME")
    for saved in checkpoints:
        size = bytes_text(saved.num_bytes)
        texts = (time_text(saved.time), str(saved.epoch), str(saved.step), size, saved.path, saved.sha256[:16])
        table.add_row(*map(cell, texts))
    return table


def _files_table(files: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table()
    for title in ("FILE", "SIZE", "SHA-256"):
        table.add_column(title, overflow="fold")
    for file in files:
        table.add_row(cell(file["name"]), cell(bytes_text(file["bytes"])), cell(file["sha256"] or MISSING))
    return table


def plain_table() -> Table:
    """Return a table without lines."""
    return Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))


def facts_table(facts: Mapping[str, str]) -> Table:
    """Return names and what they are."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, cell(value))
    return table


def cell(text: str) -> Text:
    """Return a text as it is: it is no markup, and a terminal obeys nothing in it."""
    return Text(safe(text))


def time_text(seconds: float | None) -> str:
    """Show a point in time.

    >>> time_text(0.5), time_text(None)
    ('1970-01-01T00:00:00Z', '–')
    """
    if seconds is None:
        return MISSING
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(spec: Mapping[str, Any]) -> str:
    import json

    return json.dumps(spec, indent=2, ensure_ascii=False)
