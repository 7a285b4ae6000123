"""Submit a sweep: each of its members becomes a job of its own, while their model and data are hashed and kept once.

All members are made ready before the first is taken in. Killed in between, some are jobs and the others are not; handing the
same sweep in again finds the former and takes in the latter, as every member is known by its content or its token.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unified.errors import InvalidSubmission
from unified.queue.archive import unpacked
from unified.queue.config import ServiceConfig
from unified.queue.files import copy_file, temporary_name
from unified.queue.ingesting import Spool, exists, held, prepare, publish, surprises_told
from unified.queue.job_folder import Fields, check_contents, list_folder, parse_fields, read_fields
from unified.queue.limits import check_disk, check_limits, disk_trouble_refused
from unified.queue.records import NewJob, Submitted
from unified.queue.root import Root
from unified.queue.shared_files import Resolve, bring_in, dropped_sources, submitter_sources
from unified.queue.store import JobStore
from unified.queue.submitting import chosen, commit_own, submit_folder, unreadable
from unified.sweeps import member_fields


def submit_all(
    root: Root,
    store: JobStore,
    path: Path,
    *,
    by: str,
    user: str | None = None,
    changes: Mapping[str, Any] | None = None,
    config: ServiceConfig | None = None,
) -> list[Submitted]:
    """Submit the job, or all members of the sweep, in a job folder or a zip of one; it is left as it is.

    Args:
        root: The queue's folder.
        store: Its store.
        path: The folder or the zip.
        by: Who submits it, for the books.
        user: Whose it shall be, whatever ``job.json`` says; None: as that says.
        changes: Other values of fields of ``job.json``; None counts as not given.
        config: The limits; by default those of the root's ``config.toml``.

    Raises:
        InvalidSubmission: With everything that is wrong with it; then nothing is taken in.
        ConflictError: If a client token is another job's; the members before it are taken in.
        RefusedError: If there is no room for all of them; likewise if others took that room meanwhile.
    """
    spool = Spool(root=root, store=store, config=config or ServiceConfig.read(root.config))
    job, changed = path.resolve().stem if path.is_file() else path.resolve().name, chosen(user, changes)
    try:
        with disk_trouble_refused(root):
            if path.is_file():
                with unpacked(spool, path, job) as folder:
                    return _submit_private(spool, folder, job, by=by, changes=changed)
            fields = sweep_in(path, job, changed)
            if fields is not None:
                return submit_sweep(spool, path, fields, submitter_sources(path), job=job, by=by)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise InvalidSubmission([unreadable(job, error)]) from error
    return [submit_folder(root, store, path, by=by, user=user, changes=changes, config=spool.config)]


def sweep_in(folder: Path, job: str, changes: Mapping[str, Any] | None = None) -> Fields | None:
    """Return the content of a ``job.json`` that has a sweep, None if it has none or cannot be read: that is told elsewhere."""
    try:
        fields = {**read_fields(folder, job), **(changes or {})}
    except (InvalidSubmission, OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError):
        return None
    return fields if fields.get("sweep") is not None else None


def submit_sweep(spool: Spool, folder: Path, fields: Fields, resolve: Resolve, *, job: str, by: str) -> list[Submitted]:
    """Submit every member of a sweep, in order; each is durable when it is taken in.

    Args:
        spool: The queue.
        folder: The sweep's job folder, which is left as it is.
        fields: The content of its ``job.json``.
        resolve: What the paths in it mean.
        job: What to call it in messages until its name is known.
        by: Who submits it.

    Raises:
        InvalidSubmission: See :func:`submit_all`, also for what else is raised.
    """
    workshop = spool.root.incoming / temporary_name()
    workshop.mkdir()
    with held(workshop):
        with surprises_told(workshop, job):
            ready = _make_ready(spool, workshop, folder, fields, resolve, job)
        _check_room(spool, [new for _, new in ready])
        submitted = [_take_in(spool, member, new, by=by) for member, new in ready]
        shutil.rmtree(workshop, ignore_errors=True)
        return submitted


@contextlib.contextmanager
def copied(spool: Spool, folder: Path, job: str) -> Iterator[Path]:
    """Copy a folder that others may still write to, checked as one that was dropped, to where nobody looks.

    Raises:
        InvalidSubmission: If it holds anything but plain files and folders.
        RefusedError: If it is too large.
    """
    copy = spool.root.incoming / temporary_name()
    copy.mkdir()
    with held(copy):
        with surprises_told(folder, job):
            contents = list_folder(folder, job, spool.config.max_archive_files)
            check_contents(contents, job, spool.config)
            check_disk(spool.root, spool.config, contents.num_bytes)
            for name in contents.folders:
                (copy / name).mkdir(parents=True, exist_ok=True)
            for name in contents.files:
                copy_file(folder / name, copy / name)
        yield copy
        shutil.rmtree(copy, ignore_errors=True)


def _submit_private(spool: Spool, folder: Path, job: str, *, by: str, changes: Mapping[str, Any]) -> list[Submitted]:
    """Submit a folder that this process made of what somebody sent."""
    resolve = dropped_sources(spool.root, spool.config)
    fields = sweep_in(folder, job, changes)
    if fields is not None:
        return submit_sweep(spool, folder, fields, resolve, job=job, by=by)
    new = prepare(spool, folder, job, resolve, changes=changes)
    return [commit_own(spool, publish(spool, folder, new), new, by=by)]


def _make_ready(
    spool: Spool, workshop: Path, folder: Path, fields: Fields, resolve: Resolve, job: str
) -> list[tuple[Path, NewJob]]:
    """Make a job folder for each member; all of them link to the same files, which are read once."""
    name = parse_fields(fields, job).name
    base = workshop / "base"
    base.mkdir()
    fields, hashes = bring_in(spool.root, base, fields, name, _all_of(folder, resolve))
    ready = []
    for index, member in enumerate(member_fields(fields)):
        target = workshop / f"{index:03}"
        for file in hashes:
            _link(base / file, target / file)
        (target / "job.json").write_text(json.dumps(member, indent=2), encoding="utf-8")
        ready.append((target, prepare(spool, target, name, _own, hashes=hashes)))
    return ready


def _all_of(folder: Path, resolve: Resolve) -> Resolve:
    """Return how paths are meant if the folder's own files are brought along too: so they are kept once for all members."""

    def meant(field: str, given: str) -> Path:
        return resolve(field, given) or folder / os.path.normpath(given)

    return meant


def _own(_field: str, _given: str) -> None:
    """Take every path for one of the folder's own: what a member names was brought in before."""


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # too many links, or a file system without any
        copy_file(source, target)


def _check_room(spool: Spool, news: list[NewJob]) -> None:
    """Refuse a sweep of which only some members would be taken in."""
    missing = [new for new in news if not exists(spool.store, new.id)]
    if missing:
        largest = max(new.num_bytes for new in missing)
        check_limits(spool.root, spool.store, spool.config, missing[0].user, largest, num_jobs=len(missing))


def _take_in(spool: Spool, member: Path, new: NewJob, *, by: str) -> Submitted:
    with held(member):
        return commit_own(spool, publish(spool, member, new), new, by=by)
