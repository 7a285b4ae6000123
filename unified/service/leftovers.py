"""Files that workers left in jobs' folders after they had lost those jobs, or that a newer checkpoint has replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unified.job_state import ENDED, RESIDENT, JobState
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore

_CHECKPOINT = re.compile(r"(\d+)-(\d+)(\..*)?")
_RESULT = re.compile(r"result-(\d+)")

Key = tuple[int, int]  #: epoch and step


def lost_files(root: Root, store: JobStore, since: float) -> Iterator[Path]:
    """Yield what may be removed. Jobs that ended before ``since`` and whose folders rest since then were looked at before.

    Folders are listed before rows are read: a file that is there without its row may then belong to a checkpoint that is being
    written only if its epoch and step are ahead of the row's.
    """
    checkpoints = {folder.name: _listed(root.checkpoints(folder.name), _CHECKPOINT) for folder in _folders(root)}
    results = {folder.name: _listed(folder, _RESULT) for folder in _folders(root)}
    for job in store.jobs():
        if not checkpoints.get(job.id) and not results.get(job.id):
            continue
        if job.state in ENDED and not _has_changed(root, job, since):
            continue
        rows = {(row.epoch, row.step) for row in store.checkpoints(job.id)}
        yield from (path for path, key in checkpoints[job.id] if is_lost_checkpoint(key, job, rows))
        yield from (path for path, key in results[job.id] if is_lost_result(key[0], job))


def is_lost_checkpoint(key: Key, job: JobRow, rows: set[Key]) -> bool:
    """Return whether a checkpoint's file can be of no use: it is not current and can never become so.

    Args:
        key: Its epoch and step.
        job: The job as it stands.
        rows: The job's current checkpoints.
    """
    if key in rows:
        return False
    if rows and key < max(rows):
        return True
    if job.state in RESIDENT:
        return key[0] < job.epoch
    return key[0] <= job.epoch


def is_lost_result(epoch: int, job: JobRow) -> bool:
    """Return whether a result that a worker wrote can never be published, or never has to be."""
    if job.state in RESIDENT or job.state is JobState.FINISHED:
        return epoch < job.epoch
    return epoch <= job.epoch


def _folders(root: Root) -> list[Path]:
    try:
        return sorted(path for path in (root.path / "jobs").iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _listed(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, Key]]:
    """Return what is in ``folder`` and fits, with its epoch and step (0 where the pattern has none)."""
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = ((path, pattern.fullmatch(path.name)) for path in paths)
    return [(path, (int(match[1]), int(match[2]) if pattern.groups > 1 else 0)) for path, match in found if match]


def _has_changed(root: Root, job: JobRow, since: float) -> bool:
    if job.finished_time is None or job.finished_time >= since:
        return True
    folders = (root.job(job.id), root.checkpoints(job.id))
    return any(folder.exists() and folder.stat().st_mtime >= since for folder in folders)
