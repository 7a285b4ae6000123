"""What a queue takes in, and no more: per job, per user, in total, and by what is free on the disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from unified.job_state import ENDED
from unified.quantities import bytes_text
from unified.queue.config import ServiceConfig
from unified.queue.errors import RefusedError
from unified.queue.files import free_bytes, locked
from unified.queue.root import Root
from unified.queue.store import JobStore

#: Errors of a disk rather than of what is written to it.
DISK_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


class DiskFullError(RefusedError):
    """There is too little room on the disk just now; the same submission may be taken later."""

    code = "disk-full"


def check_limits(root: Root, store: JobStore, config: ServiceConfig, user: str, num_bytes: int, *, num_jobs: int = 1) -> None:
    """Check that a new job of ``user``, or several alike, may be taken in.

    Args:
        root: The queue's folder.
        store: Knows what is there.
        config: The limits; 0 means none.
        user: Whose job it is.
        num_bytes: Size of its folder.
        num_jobs: How many such jobs.

    Raises:
        DiskFullError: If the disk is too full, which may pass.
        RefusedError: If it is too large, or there is too much already.
    """
    check_job_bytes(config, num_bytes)
    check_disk(root, config)
    whose = f"user {user!r}" if user else "jobs without a user"
    if config.max_jobs_per_user:
        waiting = sum(count for state, count in store.counts(user).items() if state not in ENDED)
        if waiting + num_jobs > config.max_jobs_per_user:
            limit = f"at most {config.max_jobs_per_user} that have not ended are accepted (max_jobs_per_user)"
            more = f" and this would be {num_jobs} more" if num_jobs > 1 else ""
            raise RefusedError(f"{whose}: {limit}, there are {waiting}{more}; wait for some to end, or cancel some")
    if config.max_bytes_per_user or config.max_total_bytes:
        taken = store.bytes_by_user()
        _check_bytes("max_bytes_per_user", whose, config.max_bytes_per_user, taken.get(user, 0), num_jobs * num_bytes)
        _check_bytes("max_total_bytes", "the queue", config.max_total_bytes, sum(taken.values()), num_jobs * num_bytes)


def check_job_bytes(config: ServiceConfig, num_bytes: int) -> None:
    """Raise :class:`RefusedError` if a job's folder is too large."""
    if config.max_job_bytes and num_bytes > config.max_job_bytes:
        limit = f"at most {bytes_text(config.max_job_bytes)} are accepted (max_job_bytes)"
        raise RefusedError(f"a job folder of {bytes_text(num_bytes)}: {limit}; leave out what training does not need")


def check_disk(root: Root, config: ServiceConfig, num_bytes: int = 0) -> None:
    """Raise :class:`DiskFullError` if too little would be free once ``num_bytes`` more are written."""
    free = free_bytes(root.path)
    if free - num_bytes < config.min_free_bytes:
        more = f" of which this needs {bytes_text(num_bytes)}," if num_bytes else ""
        kept = f"{bytes_text(config.min_free_bytes)} must stay free (min_free_bytes)"
        raise DiskFullError(f"the disk of {root.path} has {bytes_text(free)} left,{more} {kept}; make room, then try again")


@contextlib.contextmanager
def disk_trouble_refused(root: Root) -> Iterator[None]:
    """Turn a disk that is full, read-only or broken into :class:`DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        why = error.strerror or str(error)
        raise DiskFullError(f"{root.path} cannot be written: {why}; make room or repair the disk, then try again") from error


@contextlib.contextmanager
def one_at_a_time(root: Root, config: ServiceConfig) -> Iterator[None]:
    """Keep others from taking the same last place between a check and its commit; free where there are no limits."""
    if not (config.max_jobs_per_user or config.max_bytes_per_user or config.max_total_bytes):
        yield
        return
    with locked(root.path / "jobs"):
        yield


def _check_bytes(name: str, whose: str, limit: int, taken: int, more: int) -> None:
    if limit and taken + more > limit:
        there = f"{bytes_text(taken)} of {bytes_text(limit)} ({name}) are taken and this has {bytes_text(more)}"
        raise RefusedError(f"{whose}: {there}; old jobs are removed with time, or ask the operator for more")
