"""Submit a zip of a job folder, or a ``job.json`` alone: unpacked where nobody looks, then like any folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified.errors import InvalidSubmission
from unified.queue.config import ServiceConfig
from unified.queue.files import open_plain, temporary_name
from unified.queue.ingesting import Spool, held, prepare, publish
from unified.queue.limits import disk_trouble_refused
from unified.queue.records import Submitted
from unified.queue.root import Root
from unified.queue.shared_files import dropped_sources
from unified.queue.store import JobStore
from unified.queue.submitting import chosen, commit_own, unreadable
from unified.queue.unpacking import unpack
from unified.strict_json import MAX_BYTES


def submit_archive(
    root: Root,
    store: JobStore,
    path: Path,
    *,
    by: str,
    user: str | None = None,
    changes: Mapping[str, Any] | None = None,
    config: ServiceConfig | None = None,
) -> Submitted:
    """Submit a zip of a job folder; the zip is left as it is.

    What it names outside its folder must be the operator's: ``../data/x`` in the root, or below one of ``data_roots``.

    Args:
        root: The queue's folder.
        store: Its store.
        path: The zip.
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
    job = path.stem
    try:
        with disk_trouble_refused(root), unpacked(spool, path, job) as folder:
            new = prepare(spool, folder, job, dropped_sources(root, spool.config), changes=chosen(user, changes))
            return commit_own(spool, publish(spool, folder, new), new, by=by)
    except (FileNotFoundError, PermissionError) as error:
        raise InvalidSubmission([unreadable(job, error)]) from error


@contextmanager
def unpacked(spool: Spool, path: Path, job: str) -> Iterator[Path]:
    """Unpack a zip where nobody looks; other ingesters stay away from it inside the block, and what is then left of it goes."""
    folder = spool.root.incoming / temporary_name()
    unpack(spool.root, spool.config, path, folder, job=job)
    with _held_till_end(folder):
        yield folder


@contextmanager
def lone_unpacked(spool: Spool, path: Path, _job: str) -> Iterator[Path]:
    """Likewise make a folder of a ``job.json`` that was dropped alone, and so names the operator's data only."""
    with open_plain(path) as file:
        content = file.read(MAX_BYTES + 1)
    folder = spool.root.incoming / temporary_name()
    folder.mkdir()
    (folder / "job.json").write_bytes(content)
    with _held_till_end(folder):
        yield folder


@contextmanager
def _held_till_end(folder: Path) -> Iterator[None]:
    with held(folder):
        yield
        shutil.rmtree(folder, ignore_errors=True)
