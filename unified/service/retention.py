"""Retention and room on the disk: removes what is too old, abandoned or superseded, and never what an accepted job needs."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unified.job_state import ENDED
from unified.quantities import bytes_text
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, UnknownJobError
from unified.queue.files import TEMPORARY
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.service.leftovers import lost_files
from unified.service.tensorboard_files import run_folder

_log = logging.getLogger(__name__)

DAY = 86_400.0
ABANDONED_SECONDS = DAY  #: what is under construction and has not changed for so long is nobody's any more
MIN_FREE_FILES = 1000  #: a disk may be full of names as well as of bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskState:
    """Room on the disk of a root.

    Attributes:
        free_bytes: What can still be written.
        min_free_bytes: What must stay free.
        free_files: How many files can still be made; None where the file system has no limit.
    """

    free_bytes: int
    min_free_bytes: int
    free_files: int | None = None

    @property
    def is_low(self) -> bool:
        """There is too little: nothing is accepted, and jobs are paused rather than left to fail at a checkpoint."""
        return self.free_bytes < self.min_free_bytes or (self.free_files is not None and self.free_files < MIN_FREE_FILES)

    @property
    def has_room(self) -> bool:
        """There is enough again, and a quarter to spare, so that jobs do not pause and resume in turns."""
        return not self.is_low and self.free_bytes >= self.min_free_bytes * 1.25

    def __str__(self) -> str:
        if self.free_files is not None and self.free_files < MIN_FREE_FILES:
            return f"disk-full: room for {self.free_files} more files, {MIN_FREE_FILES} are needed; remove some"
        return f"disk-full: {bytes_text(self.free_bytes)} free, {bytes_text(self.min_free_bytes)} are needed (min_free_bytes)"


def disk_state(root: Root, config: ServiceConfig) -> DiskState:
    """Return how much room there is."""
    status = os.statvfs(root.path)
    return DiskState(
        free_bytes=status.f_bavail * status.f_frsize,
        min_free_bytes=config.min_free_bytes,
        free_files=status.f_favail if status.f_files else None,
    )


def sweep(root: Root, store: JobStore, config: ServiceConfig, now: float) -> list[str]:
    """Remove what nobody needs any more. What cannot be removed is logged and tried again the next time.

    Args:
        root: The queue's folder.
        store: Knows which jobs have ended, and which checkpoints are current.
        config: Ages; an age of 0 keeps.
        now: Wall clock, seconds since 1970.

    Returns:
        A line for each thing removed.
    """
    parts: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _interrupted_removals(root, store),
        lambda: _old_jobs(root, store, now - config.keep_results_days * DAY if config.keep_results_days else None),
        lambda: _old_entries(root, now - config.keep_rejected_days * DAY if config.keep_rejected_days else None),
        lambda: _abandoned(root, now - ABANDONED_SECONDS),
        lambda: _orphans(root, now - ABANDONED_SECONDS),
        lambda: _superseded(root, store, now),
    )
    removed: list[str] = []
    for part in parts:
        try:
            removed.extend(part())
        except OSError as error:
            _log.warning("retention of %s was interrupted and goes on the next time: %s", root.path, error)
    return removed


def _old_jobs(root: Root, store: JobStore, before: float | None) -> Iterator[str]:
    """Remove jobs that ended before a time, with all their files."""
    if before is None:
        return
    for job in store.jobs(states=ENDED):
        ended = job.finished_time if job.finished_time is not None else store.transitions(job.id)[-1].time
        if ended < before and _remove_job(root, store, job):
            yield f"job {job.id!r}, {job.state}: result, checkpoints, logs"


def _remove_job(root: Root, store: JobStore, job: JobRow) -> bool:
    """Move a job's folders out of sight, then forget it, then remove them.

    In this order, a new job of the same id never meets the old one's files, and after a crash or a requeue in between the
    folders can be put back.
    """
    trash = _trash(root) / f"{job.submit_time!r} {job.id}"
    trash.mkdir(parents=True, exist_ok=True)
    for name, folder in _job_folders(root, job.id).items():
        if folder.exists() and not (trash / name).exists():
            folder.rename(trash / name)
    return _settle_removal(root, store, trash)


def _interrupted_removals(root: Root, store: JobStore) -> Iterator[str]:
    for trash in _entries(_trash(root)):
        if _settle_removal(root, store, trash):
            yield f"rest of job {trash.name.partition(' ')[2]!r}"


def _settle_removal(root: Root, store: JobStore, trash: Path) -> bool:
    """Forget the job whose folders are in ``trash`` and remove them; if it was requeued meanwhile, put them back."""
    submit_time, _, job = trash.name.partition(" ")
    try:
        if repr(store.get(job).submit_time) == submit_time:  # else it is another one, of the same id
            store.forget(job)
    except UnknownJobError:
        pass  # it was forgotten before a crash
    except ConflictError:
        for name, folder in _job_folders(root, job).items():
            if (trash / name).exists() and not folder.exists():
                (trash / name).rename(folder)
        _remove(trash)
        return False
    return _remove(trash)


def _job_folders(root: Root, job: str) -> dict[str, Path]:
    return {"job": root.job(job), "result": root.result(job), "dead": root.dead(job), "tensorboard": run_folder(root, job)}


def _trash(root: Root) -> Path:
    return root.path / ".removed"


def _old_entries(root: Root, before: float | None) -> Iterator[str]:
    """Remove rejected entries and uploads that nobody touched since a time."""
    if before is None:
        return
    for entry in [*_entries(root.rejected), *_entries(root.uploads)]:
        if _changed(entry) < before and _remove(entry):
            yield f"{root.relative(entry)}: too old"


def _abandoned(root: Root, before: float) -> Iterator[str]:
    """Remove what a crash left under construction."""
    folders = [root.path, root.incoming, root.path / "jobs", root.result("x").parent, root.dead("x").parent]
    folders += [root.rejected, root.uploads, root.files, root.cache]
    folders += [*_entries(root.path / "jobs"), *_entries(root.dead("x").parent)]
    folders += [root.checkpoints(job.name) for job in _entries(root.path / "jobs")]
    for folder in folders:
        for entry in _entries(folder):
            if entry.name.startswith(TEMPORARY) and _changed_within(entry) < before and _remove(entry):
                yield f"{root.relative(entry)}: abandoned"


def _orphans(root: Root, before: float) -> Iterator[str]:
    """Remove shared files to which no job has a link any more; that of a submission under way is recent."""
    for path in _entries(root.files):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _changed(path) < before and _remove(path):
            yield f"{root.relative(path)}: no job's any more"


def _superseded(root: Root, store: JobStore, now: float) -> Iterator[str]:
    """Remove checkpoints and results of workers that had lost their job."""
    for path in lost_files(root, store, now - 2 * DAY):
        if _remove(path):
            yield f"{root.relative(path)}: of a lost epoch"


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, nothing if there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _changed(path: Path) -> float:
    """Return when a file or folder was last written, renamed or linked; now and for ever if it is gone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return float("inf")
    return max(status.st_mtime, status.st_ctime)


def _changed_within(path: Path) -> float:
    """Return when a file, or anything in a folder, last changed."""
    latest = _changed(path)
    for folder, _, names in os.walk(path):
        latest = max([latest, _changed(Path(folder)), *(_changed(Path(folder, name)) for name in names)])
    return latest


def _remove(path: Path) -> bool:
    """Remove a file, a link, or a folder with all that is in it; return whether it is gone."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            _remove_folder(path)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error)
        return False
    return True


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return  # another process does the same
    except PermissionError:
        _open_folders(path)  # as they came, without leave to write in them
        shutil.rmtree(path)


def _open_folders(path: Path) -> None:
    path.chmod(0o700)
    for folder, names, _ in os.walk(path):
        for name in names:
            if not Path(folder, name).is_symlink():
                Path(folder, name).chmod(0o700)
