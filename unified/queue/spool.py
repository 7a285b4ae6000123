"""The spool: what is dropped into ``incoming/`` becomes jobs, or ends in ``rejected/`` with the reasons.

========================= ==================================== =====================================================
entry                     taken                                rejected, if something is wrong with it
========================= ==================================== =====================================================
``NAME.job/``             at once: it was renamed here, whole  unchanged for ``settle_seconds``
another folder            unchanged for ``settle_seconds``     unchanged for ``patience_seconds``
``NAME.zip``              likewise                             likewise
``NAME.json``             likewise                             likewise
another file              never                                likewise
``.NAME``, ``NAME.part``  never; such are under construction   never
========================= ==================================== =====================================================

So what is copied here slowly is left alone until it is whole. Several processes may scan one spool.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.job_state import JobState
from unified.queue.archive import lone_unpacked, unpacked
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, FencedError, RefusedError
from unified.queue.files import locked, sync_tree
from unified.queue.ingesting import READY, Spool, commit, discard, move_to_job, prepare, publish
from unified.queue.job_folder import Fields, read_fields
from unified.queue.limits import DiskFullError
from unified.queue.records import JobRow, NewJob, Submitted
from unified.queue.rejecting import reject
from unified.queue.root import Root
from unified.queue.shared_files import dropped_sources
from unified.queue.store import JobStore
from unified.queue.sweeping import copied, submit_sweep, sweep_in

__all__ = ["Ingested", "finish_interrupted", "reject", "scan"]

logger = logging.getLogger(__name__)

BY = "spool"  #: who submitted what nobody vouches for

_UNFINISHED = (".part", ".partial", ".filepart", ".tmp", ".crdownload", "~")  #: how copying programs call what is not whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What a scan did with one entry.

    Attributes:
        entry: Its name in ``incoming/``.
        outcome: ``"accepted"``; ``"duplicate"``: the job was there already; ``"rejected"``; or ``"delayed"``: it stays where
            it is and is tried again, as when the disk is full.
        job: The job, if it was accepted or there already.
        problems: Why it was rejected.
        folder: Where to, if it was.
        text: The same in one line, for the log.
    """

    entry: str
    outcome: str
    job: JobRow | None = None
    problems: tuple[Problem, ...] = ()
    folder: Path | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """An entry of ``incoming/`` as it is looked at: ``quiet`` is for how long nothing in it has changed."""

    path: Path
    status: os.stat_result
    quiet: float

    @property
    def job(self) -> str:
        """What to call it until its name is known."""
        stem = self.path.name.removesuffix(READY)
        return ascii(stem)[1:-1][:100]

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_ready(self) -> bool:
        return self.is_folder and self.path.name.endswith(READY)


def scan(root: Root, store: JobStore, config: ServiceConfig, *, now: float, limit: int = 500) -> list[Ingested]:
    """Take in what lies in ``incoming/``, and reject what is malformed; never raises because of an entry.

    Args:
        root: The queue's folder.
        store: Its store.
        config: Its settings.
        now: The wall clock, by which files say when they were changed.
        limit: How many entries are dealt with at most; the others are left for the next time.

    Returns:
        What was done, in the order of the entries' names; nothing of those that wait.
    """
    spool = Spool(root=root, store=store, config=config)
    done: list[Ingested] = []
    num_taken = 0
    for entry in _entries(root):
        if num_taken >= limit:
            break
        if not entry.name.endswith(_UNFINISHED):
            seen = [*_take_alone(spool, entry, now)]
            num_taken += sum(one.outcome != "delayed" for one in seen)
            done += seen
    return done


def finish_interrupted(root: Root, store: JobStore, config: ServiceConfig | None = None) -> None:
    """Give jobs the files that a crash left in ``incoming/``; queued ones without any fail. To be called before scans."""
    spool = Spool(root=root, store=store, config=config or ServiceConfig.read(root.config))
    bare = {row.id for row in store.jobs(states=(JobState.QUEUED,)) if not root.spec(row.id).exists()}
    if not bare:
        return
    for entry in _entries(root):
        if entry.is_dir() and not entry.is_symlink():
            with contextlib.suppress(InvalidSubmission, RefusedError, OSError):
                new = prepare(spool, entry, entry.name, dropped_sources(root, spool.config))
                if new.id in bare and store.get(new.id).content_sha256 == new.content_sha256:
                    move_to_job(root, entry, new.id)
    for job in sorted(bare):
        if not root.spec(job).exists():
            _fail_without_files(store, job)


def _entries(root: Root) -> list[Path]:
    """Return what lies in ``incoming/`` and is not under construction, by name."""
    return sorted(path for path in root.incoming.iterdir() if not path.name.startswith("."))


def _fail_without_files(store: JobStore, job: str) -> None:
    row = store.get(job)
    with contextlib.suppress(FencedError, ConflictError):  # somebody else moved it: it is not ours to fail
        reason = "spec-missing: what was submitted is gone from incoming/; submit it again"
        store.move(job, JobState.FAILED, old=JobState.QUEUED, epoch=row.epoch, reason=reason, by=BY)


def _take_alone(spool: Spool, path: Path, now: float) -> Iterator[Ingested]:
    """Deal with one entry; whatever comes of it, the others get their turn."""
    try:
        with _locked_entry(path) as status:
            if status is not None:
                yield from _take(spool, _Entry(path=path, status=status, quiet=abs(now - _last_change(path))))
    except FileNotFoundError as error:
        if os.path.lexists(path):  # or else another ingester took it
            yield _delayed(path, error)
    except Exception as error:  # noqa: BLE001 - one entry must never keep the others from being taken
        yield _delayed(path, error)


@contextlib.contextmanager
def _locked_entry(path: Path) -> Iterator[os.stat_result | None]:
    """Keep other ingesters off an entry and yield its status; None if one of them is at it."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        yield status  # not even opened
        return
    try:
        lock = contextlib.ExitStack()
        is_free = lock.enter_context(locked(path, waits=False))
    except PermissionError:
        yield status  # it will be told that it cannot be read
        return
    with lock:
        yield status if is_free else None


def _take(spool: Spool, entry: _Entry) -> Iterator[Ingested]:
    config = spool.config
    if entry.quiet < (0.0 if entry.is_ready else config.settle_seconds):
        return
    try:
        taken = _ingest(spool, entry)
    except InvalidSubmission as error:
        if entry.quiet >= _patience(config, entry, error.problems):
            yield _reject(spool, entry, error.problems)
    except DiskFullError as error:
        yield _delayed(entry.path, error)
    except RefusedError as error:
        problem = _problem(
            entry.job, "E-LIMIT", "a job within the queue's limits", str(error), "correct that, then drop it again"
        )
        yield _reject(spool, entry, (problem,))
    except ConflictError as error:
        remedy = "give it another id or client_token, or none"
        yield _reject(spool, entry, (_problem(entry.job, "E-CONFLICT", "a job of its own", str(error), remedy),))
    else:
        yield from (_ingested(entry, submitted) for submitted in taken)


def _patience(config: ServiceConfig, entry: _Entry, problems: tuple[Problem, ...]) -> float:
    """Return for how long a malformed entry must have been unchanged: it might be one that is still being copied."""
    is_whole = entry.is_ready or (entry.suffix == ".zip" and all(problem.code != "E-ZIP" for problem in problems))
    return config.settle_seconds if is_whole else config.patience_seconds


def _ingest(spool: Spool, entry: _Entry) -> list[Submitted]:
    """Take in the job in an entry, or every member of its sweep."""
    if entry.is_folder:
        _make_movable(entry)
        if sweep_in(entry.path, entry.job) is not None:
            return _ingest_sweep(spool, entry)
        new = prepare(spool, entry.path, entry.job, dropped_sources(spool.root, spool.config))
        sync_tree(entry.path)
        return [commit(spool, entry.path, new, by=BY)]
    if stat.S_ISREG(entry.status.st_mode) and entry.suffix in (".zip", ".json"):
        made = unpacked if entry.suffix == ".zip" else lone_unpacked
        return _ingest_packed(spool, entry, made(spool, entry.path, entry.job))
    raise InvalidSubmission([_kind_problem(entry)])


def _make_movable(entry: _Entry) -> None:
    """Make sure before anything is committed that a folder can be moved: it must be writable itself."""
    if not os.access(entry.path, os.W_OK):
        try:
            entry.path.chmod(stat.S_IMODE(entry.status.st_mode) | stat.S_IRWXU)
        except PermissionError as error:
            remedy = "let the queue's user write to it, e.g. with 'chmod -R'"
            raise InvalidSubmission(
                [_problem(entry.job, "E-FILE", "a folder that can be moved", str(error), remedy)]
            ) from error


def _ingest_sweep(spool: Spool, entry: _Entry) -> list[Submitted]:
    """Ingest a folder with a sweep, which goes when all members are jobs: after a crash it comes again, and finds those."""
    with copied(spool, entry.path, entry.job) as folder:
        submitted = _submit_sweep(spool, entry, folder, read_fields(folder, entry.job))
        discard(spool.root, entry.path)
        return submitted


def _ingest_packed(spool: Spool, entry: _Entry, made: AbstractContextManager[Path]) -> list[Submitted]:
    """Ingest what is made of a file, which goes when that is a job: after a crash in between it comes again, as a duplicate."""
    with made as folder:
        fields = sweep_in(folder, entry.job)
        if fields is not None:
            submitted = _submit_sweep(spool, entry, folder, fields)
        else:
            new = prepare(spool, folder, entry.job, dropped_sources(spool.root, spool.config))
            submitted = [_commit_published(spool, publish(spool, folder, new), new)]
        _discard_unchanged(spool.root, entry)
        return submitted


def _submit_sweep(spool: Spool, entry: _Entry, folder: Path, fields: Fields) -> list[Submitted]:
    resolve = dropped_sources(spool.root, spool.config)
    return submit_sweep(spool, folder, fields, resolve, job=entry.job, by=BY)


def _commit_published(spool: Spool, ready: Path, new: NewJob) -> Submitted:
    try:
        return commit(spool, ready, new, by=BY)
    except UnifiedError:
        discard(spool.root, ready)  # it is the file that is rejected
        raise


def _discard_unchanged(root: Root, entry: _Entry) -> None:
    """Remove a file that was taken in, unless somebody wrote another one over it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        now = entry.path.stat()
        if (now.st_ino, now.st_size, now.st_mtime_ns) == (entry.status.st_ino, entry.status.st_size, entry.status.st_mtime_ns):
            discard(root, entry.path)


def _ingested(entry: _Entry, submitted: Submitted) -> Ingested:
    job = submitted.job
    outcome = "accepted" if submitted.is_new else "duplicate"
    said = f"accepted as job {job.id}" if submitted.is_new else f"submitted before as job {job.id}, which is {job.state}"
    return Ingested(entry=entry.path.name, outcome=outcome, job=job, text=f"{entry.job!r}: {said}")


def _reject(spool: Spool, entry: _Entry, problems: tuple[Problem, ...]) -> Ingested:
    folder = reject(spool.root, entry.path, problems)
    text = f"{entry.job!r} rejected, see {folder}: {problems[0]}"
    logger.warning("%s", text)
    return Ingested(entry=entry.path.name, outcome="rejected", problems=problems, folder=folder, text=text)


def _delayed(path: Path, error: Exception) -> Ingested:
    text = f"{path.name!a} cannot be taken now: {type(error).__name__}: {error}"
    return Ingested(entry=path.name, outcome="delayed", text=text)


def _last_change(path: Path) -> float:
    """Return when something in an entry was changed last, by ``ctime``: copying programs set ``mtime`` back."""
    newest = path.lstat().st_ctime
    for here, _, names in os.walk(path):
        for name in (".", *names):
            with contextlib.suppress(OSError):
                newest = max(newest, Path(here, name).lstat().st_ctime)
    return newest


def _kind_problem(entry: _Entry) -> Problem:
    expected, remedy = "a job folder, a .zip of one, or a .json", "drop the folder that holds job.json"
    if stat.S_ISLNK(entry.status.st_mode):
        return _problem(entry.job, "E-LINK", expected, "a symbolic link", remedy)
    given = "a file of another kind" if stat.S_ISREG(entry.status.st_mode) else "a pipe, socket or device"
    return _problem(entry.job, "E-KIND", expected, given, remedy)


def _problem(job: str, code: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code=code, job=job, field="entry", expected=expected, given=given, remedy=remedy)
