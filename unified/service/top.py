"""``unified top``: slots, the jobs on them, memory and the queue, again and again until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from unified.accounting import Spread
from unified.columns import fitting, natural
from unified.job_state import RESIDENT, JobState
from unified.quantities import MISSING, bytes_text, plural, seconds_text, spread_text, times_text, value_text
from unified.queue.records import JobRow
from unified.queue.verbs import Queue
from unified.service.queue_command import reasons_of
from unified.service.queue_output import EXIT_DONE, Output, job_document
from unified.service.queue_tables import cell, plain_table
from unified.terminal import make_console

_WAITING = (JobState.QUEUED, JobState.RETRY_WAIT, JobState.PAUSED)
_SHOWN_WAITING = 15
_SLOT_TITLES = ("SLOT", "DEVICE", "STATE", "MEM", "JOB", "USER", "STEP/TOTAL", "ETA", "LOSS", "JOB MEM")
_SLOT_LEFT_OUT_FIRST = ("JOB MEM", "MEM", "DEVICE", "LOSS", "USER", "ETA", "STATE")
_COUNTED_FINISHED = 200  #: the latest submitted
_OLD_SECONDS = 10.0  #: a supervisor that said nothing for longer is worth a word


def top(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    """Show what goes on, and return the exit code; until Ctrl-C where there is a terminal."""
    if out.as_json:
        out.document(snapshot(queue))
    elif out.is_quiet:
        for row in queue.store.jobs(states=tuple(RESIDENT)):
            out.line(row.id)
    elif options.once or not sys.stdout.isatty():
        out.table(view(snapshot(queue), out.width))
    else:
        console = make_console()
        with Live(view(snapshot(queue), console.width), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(options.interval)
                live.update(view(snapshot(queue), console.width), refresh=True)
    return EXIT_DONE


def snapshot(queue: Queue) -> dict[str, Any]:
    """Return what goes on now as one JSON document."""
    status, now = queue.status(), time.time()
    residents = queue.store.jobs(states=tuple(RESIDENT))
    counts = queue.store.counts()
    waiting = list(queue.list(states=_WAITING, limit=_SHOWN_WAITING).jobs)
    reasons = reasons_of(queue, residents + waiting)
    members: dict[int | None, list[dict[str, Any]]] = {}
    for row in residents:
        members.setdefault(row.slot, []).append(job_document(row, reasons[row.id]))
    said = status or {}
    slots = [_slot(slot, members.pop(slot.get("index"), [])) for slot in said.get("slots") or []]
    return {
        "time": datetime.fromtimestamp(round(now, 3), UTC).isoformat().replace("+00:00", "Z"),
        "root": str(queue.root.path),
        "is_served": status is not None or queue.is_served,
        "supervisor": _supervisor(said, now),
        "slots": slots,
        "members_elsewhere": [job for jobs in members.values() for job in jobs],
        "memory_bytes": said.get("memory_bytes"),
        "memory_total_bytes": said.get("memory_total_bytes"),
        "utilisation": said.get("utilisation"),
        "disk_free_bytes": said.get("disk_free_bytes"),
        "counts": {str(state): counts.get(state, 0) for state in JobState},
        "waiting": [job_document(row, reasons[row.id]) for row in waiting],
        "finished": _finished(queue.list(states=(JobState.FINISHED,), limit=_COUNTED_FINISHED, newest_first=True).jobs),
    }


def _finished(rows: Sequence[JobRow]) -> dict[str, Any]:
    """Return what finished jobs came to, or nulls if there are none."""
    completions = Spread.of(row.completion_seconds for row in rows if row.completion_seconds is not None)
    slowdowns = Spread.of(row.slowdown for row in rows if row.slowdown is not None)
    return {
        "count": len(rows),
        "completion_seconds": None if completions is None else asdict(completions),
        "slowdown": None if slowdowns is None else asdict(slowdowns),
    }


def _slot(slot: Mapping[str, Any], members: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a slot with its members, as the store has them: what the supervisor said of them may be a second old."""
    ids = [job["id"] for job in members]
    running = slot.get("running")
    return {**slot, "running": running if running in ids else None, "residents": ids, "members": members}


def _supervisor(said: Mapping[str, Any], now: float) -> dict[str, Any] | None:
    if not said:
        return None
    known = {name: said.get(name) for name in ("pid", "scheduler", "device", "version", "is_draining")}
    started, spoke = said.get("started"), said.get("time")
    return known | {
        "running_seconds": None if started is None else now - started,
        "silent_seconds": None if spoke is None else max(0.0, now - spoke),
    }


def view(content: Mapping[str, Any], width: int) -> RenderableType:
    """Return what :func:`snapshot` says, for people, in ``width`` columns of a screen."""
    parts: list[RenderableType] = [_headline(content)]
    if content["slots"]:
        parts += [Text(), _slots_table(content["slots"], width)]
    if content["members_elsewhere"]:
        jobs = ", ".join(job["id"] for job in content["members_elsewhere"])
        parts += [Text(), cell(f"on slots of a supervisor that is gone: {jobs}")]
    if content["finished"]["completion_seconds"]:
        parts += [Text(), Text(_finished_text(content["finished"]))]
    if content["waiting"]:
        parts += [Text(), _waiting_table(content["waiting"])]
        more = sum(content["counts"][state] for state in _WAITING) - len(content["waiting"])
        if more > 0:
            parts.append(Text(f"and {more} more"))
    return Group(*parts)


def _finished_text(finished: Mapping[str, Any]) -> str:
    completion, slowdown = finished["completion_seconds"], finished["slowdown"]
    spread = spread_text(completion["mean"], completion["p95"])
    text = f"latest {plural(finished['count'], 'finished job')}: completion since submission {spread}"
    return text if slowdown is None else f"{text}; slowdown {spread_text(slowdown['mean'], slowdown['p95'], times_text)}"


def _headline(content: Mapping[str, Any]) -> RenderableType:
    counts = [f"{number} {state}" for state, number in content["counts"].items() if number]
    jobs = f"jobs: {', '.join(counts) or 'none'}"
    says = content["supervisor"]
    if says is None:
        what = "a supervisor is starting" if content["is_served"] else "no supervisor is running"
        return Group(cell(f"{content['root']}: {what}"), cell(jobs))
    parts = [
        f"{content['root']}: process {says['pid']} for {seconds_text(says['running_seconds'])}",
        f"{says['scheduler']} on {says['device']}",
        f"memory {bytes_text(content['memory_bytes'])} of {bytes_text(content['memory_total_bytes'])}",
        f"disk {bytes_text(content['disk_free_bytes'])} free",
    ]
    if content["utilisation"] is not None:
        parts.append(f"{content['utilisation']:.0f} % busy")
    if says["is_draining"]:
        parts.append("being stopped")
    lines: list[RenderableType] = [cell("; ".join(parts)), cell(jobs)]
    if (says["silent_seconds"] or 0.0) > _OLD_SECONDS:
        lines.append(Text(f"the supervisor has said nothing for {seconds_text(says['silent_seconds'])}", style="bold red"))
    return Group(*lines)


def _slots_table(slots: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    lines = [dict(zip(_SLOT_TITLES, map(cell, texts), strict=True)) for texts in _slot_lines(slots)]
    titles = fitting(natural(_SLOT_TITLES, lines), width, _SLOT_LEFT_OUT_FIRST)
    table = plain_table()
    for title in titles:
        table.add_column(title, overflow="fold")
    for line in lines:
        table.add_row(*(line[title] for title in titles))
    return table


def _slot_lines(slots: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for slot in slots:
        about = [str(slot.get("index")), str(slot.get("device")), str(slot.get("state")), bytes_text(slot.get("memory_bytes"))]
        rows = [_member(job, is_training=job["id"] == slot.get("running")) for job in slot["members"]] or [[MISSING] * 6]
        for number, texts in enumerate(rows):
            yield [*(about if number == 0 else [""] * 4), *texts]


def _member(job: Mapping[str, Any], *, is_training: bool) -> list[str]:
    total = MISSING if job["steps_total"] is None else job["steps_total"]
    return [
        f"{'> ' if is_training else '  '}{job['id']}",
        job["user"] or MISSING,
        f"{job['steps_done']}/{total}",
        seconds_text(job["eta_seconds"]),
        value_text(job["loss"]),
        bytes_text(job["memory_bytes"]),
    ]


def _waiting_table(jobs: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = plain_table()
    for title in ("WAITING", "USER", "PRIO", "STATE", "MEM", "WAIT", "REASON"):
        table.add_column(title, overflow="fold")
    for job in jobs:
        texts = [job["id"], job["user"] or MISSING, str(job["priority"]), job["state"], bytes_text(job["memory_bytes"])]
        table.add_row(*map(cell, [*texts, seconds_text(job["waiting_seconds"]), job["reason"] or MISSING]))
    return table
