"""From a folder in ``incoming/`` to a job: made ready, committed, moved. Each step may be the last before a crash.

The row is committed while the files are still in ``incoming/``, and they are moved after it: whoever comes next finds the row
by the folder's content and moves the files. So several processes may work on one folder at once, and one wins.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.errors import InvalidSubmission, Problem
from unified.job import JobSpec
from unified.queue.config import ServiceConfig
from unified.queue.errors import UnknownJobError
from unified.queue.faults import reach
from unified.queue.files import hash_file, locked, remove_tree, rename_durably, sync_folder, sync_tree, write_durably
from unified.queue.job_folder import Fields, check_contents, list_folder, named_sources, new_job, parse_fields, read_fields
from unified.queue.limits import check_limits, one_at_a_time
from unified.queue.records import NewJob, Submitted
from unified.queue.root import Root
from unified.queue.shared_files import FOLDER, Resolve, bring_in
from unified.queue.store import JobStore
from unified.queue.vetting import Handed, grant_of
from unified.queue.wholeness import missing_problems, wholeness_problems

READY = ".job"  #: at the end of a folder's name in ``incoming/``: it is whole

_EXISTS = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """What everything that takes submissions in needs: the queue's folder, its store, its settings."""

    root: Root
    store: JobStore
    config: ServiceConfig


def prepare(
    spool: Spool,
    folder: Path,
    job: str,
    resolve: Resolve,
    *,
    changes: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
) -> NewJob:
    """Check a job folder, bring in what it names outside of itself, and return what becomes its row.

    Doing it again, or two processes doing it at once, comes to the same.

    Args:
        spool: The queue.
        folder: The job folder; ``job.json`` is rewritten if it names files outside or there are ``changes``.
        job: What to call it in messages until its name is known.
        resolve: What the paths in ``job.json`` mean.
        changes: Other values of fields of ``job.json``.
        hashes: SHA-256 of files that need not be read again, by name.

    Raises:
        InvalidSubmission: With everything that is wrong with it.
        RefusedError: If it is too large.
        FileNotFoundError: If another process took the folder.
    """
    with surprises_told(folder, job):
        return _prepare(spool, folder, job, resolve, changes or {}, dict(hashes or {}))


@contextmanager
def surprises_told(folder: Path, job: str) -> Iterator[None]:
    """Turn what nobody foresaw while a folder is read into a problem of its job.

    Raises:
        InvalidSubmission: With that problem.
        FileNotFoundError: If another process took the folder.
    """
    try:
        yield
    except PermissionError as error:
        raise InvalidSubmission([_unreadable(job, error)]) from error
    except OSError as error:
        if not os.path.lexists(folder):
            raise FileNotFoundError(str(folder)) from error
        raise
    except (ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
        # None is known, but what comes in may be anything, and its owner must be told rather than left waiting.
        raise InvalidSubmission([_unusable(job, error)]) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder that this process makes, so that no other ingester starts on it; on an error remove what is left."""
    try:
        with locked(folder):
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(spool: Spool, folder: Path, new: NewJob) -> Path:
    """Make a folder that this process wrote durable and visible in ``incoming/``; return what it is called there."""
    reach("submit.payload-written")
    sync_tree(folder)
    reach("submit.payload-synced")
    entry = spool.root.incoming / f"{new.id}.{secrets.token_hex(4)}{READY}"
    rename_durably(folder, entry)
    reach("submit.renamed")
    return entry


def commit(spool: Spool, entry: Path, new: NewJob, *, by: str) -> Submitted:
    """Make a durable, prepared folder a job: first the row, then the move to ``jobs/ID/spec``.

    Raises:
        ConflictError: If the id or the client's token is another job's.
        InvalidSubmission: If its signature has expired or was used before.
        RefusedError: If a limit is reached, or the disk is full.
        FileNotFoundError: If another process took the folder, and there is no such job.
    """
    reach("ingest.validated")
    with one_at_a_time(spool.root, spool.config):
        if not exists(spool.store, new.id):
            check_limits(spool.root, spool.store, spool.config, new.user, new.num_bytes)
        reach("ingest.before-commit")
        submitted = spool.store.submit(new, by=by)
    reach("ingest.committed")
    move_to_job(spool.root, entry, submitted.job.id)
    reach("ingest.moved")
    return submitted


def move_to_job(root: Root, entry: Path, job: str) -> bool:
    """Move a folder whose row is committed to ``jobs/ID/spec``; it is removed if the job has its files already.

    Returns:
        Whether this call moved it.
    """
    spec = root.spec(job)
    if not spec.parent.is_dir():
        spec.parent.mkdir(exist_ok=True)
        sync_folder(spec.parent.parent)
    try:
        # Renaming a folder onto one with something in it fails, so the first one stays whatever happens.
        rename_durably(entry, spec)
    except FileNotFoundError:
        return False  # another ingester did it
    except OSError as error:
        if error.errno not in _EXISTS:
            raise
        discard(root, entry)
        return False
    return True


def discard(root: Root, entry: Path) -> None:
    """Remove an entry of ``incoming/`` that is not needed, if it is still there."""
    try:
        remove_tree(entry, root.incoming)
    except FileNotFoundError:
        return


def _prepare(
    spool: Spool, folder: Path, job: str, resolve: Resolve, changes: Mapping[str, Any], hashes: dict[str, str]
) -> NewJob:
    given = read_fields(folder, job)
    contents = list_folder(folder, job, spool.config.max_archive_files)
    fields: Fields = {**given, **changes}
    spec = parse_fields(fields, job)
    _check_is_one(spec)
    check_contents(contents, spec.name, spool.config)
    fields, brought = bring_in(spool.root, folder, fields, spec.name, resolve)
    hashes |= brought
    if brought or fields != given:
        if brought:
            sync_tree(folder / FOLDER)
        write_durably(folder / "job.json", json.dumps(fields, indent=2).encode())
        contents = list_folder(folder, job, spool.config.max_archive_files)
        spec = parse_fields(fields, job)
    sources = {field: os.path.normpath(source) for field, source in named_sources(spec).items()}
    problems = [
        *missing_problems(spec.name, sources, contents.files, contents.folders),
        *wholeness_problems(spec.name, folder, contents.files),
    ]
    if problems:
        raise InvalidSubmission(problems)
    for name in contents.files:
        if name != "job.json" and name not in hashes:
            hashes[name] = hash_file(folder / name)
    hashes = {name: hashes[name] for name in contents.files if name != "job.json"}
    grant = grant_of(Handed(folder=folder, fields=fields, spec=spec, hashes=hashes), spool.config)
    return new_job(fields, spec, hashes, contents.num_bytes, grant=grant)


def exists(store: JobStore, job: str) -> bool:
    """Return whether there is a job of this id."""
    try:
        store.get(job)
    except UnknownJobError:
        return False
    return True


def _check_is_one(spec: JobSpec) -> None:
    """Refuse a sweep where one job is asked for.

    Raises:
        InvalidSubmission: If it is one.
    """
    if spec.sweep is not None:
        problem = Problem(
            code="E-SWEEP",
            job=spec.name,
            field="sweep",
            expected="one job, as the answer is one job",
            given=f"a sweep of {len(spec.members())}",
            remedy="hand it in with 'unified submit', unified.Client or in incoming/, which take in all its members",
        )
        raise InvalidSubmission([problem])


def _unusable(job: str, error: Exception) -> Problem:
    return Problem(
        code="E-READ",
        job=job,
        field="folder",
        expected="a job folder",
        given=f"{type(error).__name__}: {error}"[:300],
        remedy="make it anew",
    )


def _unreadable(job: str, error: PermissionError) -> Problem:
    return Problem(
        code="E-FILE",
        job=job,
        field=str(error.filename or "folder"),
        expected="files that can be read, in folders that can be written",
        given=error.strerror or "permission denied",
        remedy="change the permissions so that the queue's user can take the folder",
    )
