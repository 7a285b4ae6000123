"""Submit a job folder: copied into ``incoming/``, made durable, made visible, and ingested, all in the caller's process.

Killed at any point, either nothing of it is visible, or a whole folder is in ``incoming/`` and becomes a job without us.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.queue.config import ServiceConfig
from unified.queue.files import copy_file, temporary_name
from unified.queue.ingesting import Spool, commit, discard, held, prepare, publish
from unified.queue.job_folder import Contents, check_contents, list_folder, read_fields
from unified.queue.limits import check_disk, disk_trouble_refused
from unified.queue.records import NewJob, Submitted
from unified.queue.root import Root
from unified.queue.shared_files import outside_sources, submitter_sources
from unified.queue.store import JobStore


def submit_folder(
    root: Root,
    store: JobStore,
    folder: Path,
    *,
    by: str,
    user: str | None = None,
    changes: Mapping[str, Any] | None = None,
    config: ServiceConfig | None = None,
) -> Submitted:
    """Submit a job folder; it is left as it is.

    Files and folders that it names outside of itself (``../data/train.pt``, absolute paths, through symbolic links) are brought
    along. Many jobs that name the same one take its space once.

    Args:
        root: The queue's folder.
        store: Its store.
        folder: The job folder.
        by: Who submits it, for the books.
        user: Whose job it shall be, whatever ``job.json`` says; None: as that says.
        changes: Other values of fields of ``job.json``; None counts as not given.
        config: The limits; by default those of the root's ``config.toml``.

    Raises:
        InvalidSubmission: With everything that is wrong with it.
        ConflictError: If its id or client token is another job's.
        RefusedError: If it is too large, a limit is reached, or the disk is full.
    """
    spool = Spool(root=root, store=store, config=config or ServiceConfig.read(root.config))
    job, changes = folder.resolve().name, chosen(user, changes)
    resolve = submitter_sources(folder)
    try:
        with disk_trouble_refused(root):
            outside = outside_sources({**read_fields(folder, job), **changes}, job, resolve)
            contents = _own_contents(spool, folder, job, outside)
            copy = root.incoming / temporary_name()
            copy.mkdir()
            with held(copy):
                hashes = {name: _copy(folder / name, copy / name) for name in contents.files}
                new = prepare(spool, copy, job, resolve, changes=changes, hashes=hashes)
                return commit_own(spool, publish(spool, copy, new), new, by=by)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise InvalidSubmission([unreadable(job, error)]) from error


def commit_own(spool: Spool, entry: Path, new: NewJob, *, by: str) -> Submitted:
    """Ingest an entry that this process published; if it is refused, nothing is left of it.

    Raises:
        ConflictError: See :func:`unified.queue.ingesting.commit`, also for what else is raised.
    """
    try:
        return commit(spool, entry, new, by=by)
    except UnifiedError:
        discard(spool.root, entry)
        raise


def chosen(user: str | None, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of ``job.json`` that a submitter sets anew."""
    fields = {field: value for field, value in (changes or {}).items() if value is not None}
    return fields if user is None else fields | {"user": user}


def _own_contents(spool: Spool, folder: Path, job: str, outside: Mapping[str, Path]) -> Contents:
    """Return the files of a folder to copy: not those that are brought along because they are links."""
    found = list_folder(folder, job, spool.config.max_archive_files)
    replaced = [Path(os.path.normpath(given)) for given in outside]
    files = {name: size for name, size in found.files.items() if not _is_below(name, replaced)}
    links = {name for name in found.links if not _is_below(name, replaced) and not _leads_to(name, replaced)}
    contents = replace(found, files=files, links=frozenset(links))
    check_contents(contents, job, spool.config)
    check_disk(spool.root, spool.config, contents.num_bytes)
    return contents


def _is_below(name: str, paths: list[Path]) -> bool:
    return any(Path(name) == path or path in Path(name).parents for path in paths)


def _leads_to(name: str, paths: list[Path]) -> bool:
    return any(Path(name) in path.parents for path in paths)


def _copy(source: Path, target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    return copy_file(source, target)


def unreadable(job: str, error: OSError) -> Problem:
    """Return the problem of a job whose own files, or the queue's folder, cannot be used."""
    return Problem(
        code="E-FILE",
        job=job,
        field=str(error.filename or "folder"),
        expected="a job folder whose files can be read, and an incoming/ folder that can be written",
        given=error.strerror or type(error).__name__,
        remedy="check the path and its permissions",
    )
