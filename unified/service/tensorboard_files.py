"""TensorBoard event files of queued jobs, one run per job, by the ``tensorboard`` package without torch and tensorflow.

Every process writes files of its own: a reader stops at a record that a killed writer left unfinished, and goes on with the
next file. A job that goes on from a checkpoint says so in its run, and readers drop what they had read beyond that step.

Reference: https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from unified.queue.errors import QueueError
from unified.queue.root import Root

_log = logging.getLogger(__name__)

_SPEED = ("lr", "step_seconds", "samples_per_second", "memory_bytes")
_PREFIX = "events.out.tfevents."


class MissingTensorboardError(QueueError):
    """TensorBoard files are asked for and the ``tensorboard`` package is not there to write them."""

    code = "missing-tensorboard"


class TensorboardFiles:
    """Turns rows of metrics into scalars: ``loss/train``, ``accuracy/test``, …, ``speed/step_seconds``.

    Rows are collected and written by :meth:`flush`; what cannot be written then is lost to TensorBoard, and only to it. To be
    used by one thread.

    Args:
        root: Whose jobs; their runs are ``tensorboard/ID`` in it.
        wall: Clock of rows without a time, in seconds since 1970.

    Raises:
        MissingTensorboardError: If the package is not installed.
    """

    def __init__(self, root: Root, *, wall: Callable[[], float] = time.time) -> None:
        self._event_pb2, self._summary_pb2, self._record_writer = _tensorboard()
        self._root = root
        self._wall = wall
        self._pending: dict[str, list[Any]] = {}
        self._paths: dict[str, Path] = {}

    def metric(self, job: str, row: Mapping[str, Any]) -> None:
        """Add the numbers of a row of ``metrics.jsonl`` to the job's run."""
        values = [self._summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(row)]
        self._add(job, int(row["step"]), row.get("time"), summary=self._summary_pb2.Summary(value=values))

    def truncate(self, job: str, step: int) -> None:
        """Say that the job goes on from ``step``: readers forget what they have read of later ones."""
        self._pending.pop(job, None)
        if run_folder(self._root, job).is_dir():
            start = self._event_pb2.SessionLog(status=self._event_pb2.SessionLog.START)
            self._add(job, step + 1, None, session_log=start)

    def flush(self) -> None:
        """Write what was collected; never fails."""
        pending, self._pending = self._pending, {}
        for job, events in pending.items():
            try:
                self._write(job, events)
            except OSError as error:
                _log.warning("%s cannot be written: %s", run_folder(self._root, job), error)
                self._paths.pop(job, None)  # its last record may be torn: go on in another file

    def close(self, job: str) -> None:
        """Flush; the job has left its slot."""
        self.flush()
        self._paths.pop(job, None)

    def drop(self, job: str) -> None:
        """Forget what was not flushed yet: the job has passed to another holder."""
        self._pending.pop(job, None)
        self._paths.pop(job, None)

    def _add(self, job: str, step: int, at: float | None, **content: Any) -> None:
        event = self._event_pb2.Event(wall_time=self._wall() if at is None else at, step=step, **content)
        self._pending.setdefault(job, []).append(event)

    def _write(self, job: str, events: list[Any]) -> None:
        path = self._paths.get(job)
        is_new = path is None
        if path is None:
            path = self._paths[job] = _new_path(run_folder(self._root, job), self._wall())
        with path.open("ab") as file:
            if is_new:
                events = [self._event_pb2.Event(wall_time=self._wall(), file_version="brain.Event:2"), *events]
            self._write_records(file, events)

    def _write_records(self, file: BinaryIO, events: list[Any]) -> None:
        writer = self._record_writer.RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def run_folder(root: Root, job: str) -> Path:
    """Return where a job's run is, if it has one. Needs no package."""
    return root.path / "tensorboard" / job


def _tensorboard() -> tuple[ModuleType, ModuleType, ModuleType]:
    # Here, not above: the package is optional, and whoever does without need not wait for it.
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer import record_writer
    except ImportError as error:
        raise MissingTensorboardError(
            f"'tensorboard = true' needs the tensorboard package, which cannot be imported ({error}); "
            "install it with 'pip install tensorboard', or set it to false"
        ) from error
    return event_pb2, summary_pb2, record_writer


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield tags and values; what belongs in one diagram has the same beginning."""
    end = f"/{row['split']}" if row.get("split") else ""
    named = {f"loss{end}": row.get("loss"), "epoch": row.get("epoch")}
    named |= {f"{name}{end}": value for name, value in (row.get("metrics") or {}).items()}
    named |= {f"speed/{name}": row.get(name) for name in _SPEED}
    for tag, value in named.items():
        if isinstance(value, int | float):
            yield tag, float(value)


def _new_path(folder: Path, now: float) -> Path:
    """Return a name that sorts behind those of all files there: readers go by the names' order and never back."""
    folder.mkdir(parents=True, exist_ok=True)
    stamps = [path.name.removeprefix(_PREFIX).partition(".")[0] for path in folder.glob(f"{_PREFIX}*")]
    latest = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
    return folder / f"{_PREFIX}{max(int(now), latest + 1):010d}.{platform.node() or 'host'}.{os.getpid()}"
