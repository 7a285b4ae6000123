"""What happens to a job, written into its folder: ``log.txt``, ``metrics.jsonl``, and what is left of one that was given up."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from unified.queue.files import write_durably
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.service.line_files import LineFiles

LOG_TAIL_LINES = 1000  #: of a dead letter
LOG_TAIL_BYTES = 4 << 20  #: and at most so much
_VERSIONS = ("unifiednn", "torch", "numpy", "safetensors", "accelerate", "datasets", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeathDetails:
    """What was known when a job was given up.

    Attributes:
        traceback: Of the exception, if there was one.
        exit: How its worker ended, e.g. ``"killed by SIGSEGV"``.
        slot: Where it was.
        neighbours: Ids of the jobs beside it.
        checkpoint: Its last checkpoint, relative to the root.
    """

    traceback: str = ""
    exit: str = ""
    slot: int | None = None
    neighbours: tuple[str, ...] = ()
    checkpoint: str | None = None


class JobFiles:
    """The files that tell a job's story. Only the process that may change the job's state writes them.

    Lines are collected and written by :meth:`flush`, in order; a kill loses what was not flushed and nothing else.

    Args:
        root: Whose jobs.
        wall: Clock of the stamps, in seconds since 1970.
    """

    def __init__(self, root: Root, *, wall: Callable[[], float] = time.time) -> None:
        self._root = root
        self._wall = wall
        self._lines = LineFiles()

    def log(self, job: str, text: str) -> None:
        """Add a line ``2026-11-21T06:30:00Z  text`` to the job's log; further lines of ``text`` are indented below it."""
        stamp = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for position, line in enumerate(text.splitlines() or [""]):
            start = stamp if not position else " " * len(stamp)
            self._lines.append(self._root.log(job), f"{start}  {_printable(line)}".rstrip())

    def metric(self, job: str, row: Mapping[str, Any]) -> None:
        """Add a row to the job's metrics; it gets the present ``time`` if it has none, and null for what is not finite."""
        stamped = row if "time" in row else {"time": self._wall()} | dict(row)
        self._lines.append(self._root.metrics(job), json.dumps(_strict(stamped), default=str))

    def truncate(self, job: str, step: int) -> None:
        """Drop metrics beyond ``step``, so that a job that goes on from there tells no step twice. Its log is kept.

        Raises:
            OSError: If the file cannot be rewritten; it is as it was.
        """
        self._lines.keep(self._root.metrics(job), lambda line: _step(line) <= step)

    def flush(self) -> None:
        """Write what was collected; never fails: what finds no room waits in memory, up to a limit."""
        self._lines.flush()

    def drop(self, job: str) -> None:
        """Forget what was not flushed yet: the job has passed to another holder, who tells its story now."""
        self._lines.forget(self._root.log(job))
        self._lines.forget(self._root.metrics(job))

    def close(self, job: str) -> None:
        """Flush, and bring the job's files to the disk: it has left its slot."""
        self._lines.flush()
        self._lines.sync(self._root.log(job))
        self._lines.sync(self._root.metrics(job))

    def write_dead_letter(self, job: JobRow, reason: str, details: DeathDetails) -> Path:
        """Write what is left of a job that was given up into ``dead/ID`` and return that folder.

        ``reason.json`` comes last: where it is, the rest is whole. One of an earlier death is replaced.

        Raises:
            OSError: If it cannot be written. It may be tried again.
        """
        self._lines.flush()
        folder = self._root.dead(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "job.json", _document(job.spec))
        write_durably(folder / "log.txt", _tail(self._root.log(job.id)))
        write_durably(folder / "traceback.txt", details.traceback.encode(errors="backslashreplace"))
        write_durably(folder / "reason.json", _document(self._letter(job, reason, details)))
        return folder

    def _letter(self, job: JobRow, reason: str, details: DeathDetails) -> dict[str, Any]:
        names = ("id", "name", "user", "content_sha256", "epoch", "steps_done", "steps_total", "last_fault")
        counts = ("num_job_failures", "num_infra_failures", "num_blames")
        told: dict[str, Any] = {"schema": 1, "reason": reason, "time": self._wall()}
        told |= {name: getattr(job, name) for name in names + counts}
        told |= {name: value for name, value in asdict(details).items() if name != "traceback"}
        return told | {"host": platform.node(), "system": platform.platform(), "versions": _versions()}


def _printable(line: str) -> str:
    """Return ``line`` without what could steer a terminal: names and messages in it are other people's."""
    return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in line)


def _strict(value: Any) -> Any:
    """Return ``value`` as strict JSON knows it: a NaN is no number there."""
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: bytes) -> float:
    """Return the step of a row of metrics; infinite for what is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _document(content: Mapping[str, Any]) -> bytes:
    return json.dumps(_strict(content), indent=2, default=str).encode() + b"\n"


def _tail(path: Path) -> bytes:
    """Return the last lines of a log, nothing if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            lines = file.readlines()
    except FileNotFoundError:
        return b""
    return b"".join(lines[-LOG_TAIL_LINES:])


def _versions() -> dict[str, str]:
    """Return the versions of what is installed, without importing it."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
