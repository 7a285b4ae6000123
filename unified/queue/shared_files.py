"""Files that jobs name outside their own folder: kept once in ``files/`` by content, and linked into every job that names them.

What a job trains on is thereby fixed when it is accepted, whatever becomes of the file it came from.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unified.dataset_index import DatasetIndex, file_stamp
from unified.errors import InvalidSubmission, Problem
from unified.queue.config import ServiceConfig
from unified.queue.files import copy_file, hash_file, sync_file, sync_folder, temporary_name
from unified.queue.job_folder import Fields, link_problems, list_folder, named_sources, parse_fields, renamed
from unified.queue.limits import DISK_TROUBLE
from unified.queue.root import Root

FOLDER = "shared"  #: of a job folder; holds what was brought along

_STABLE_SECONDS = 2.0  #: a file changed more recently could change again within one tick of the file system's clock
_ATTEMPTS = 5  #: retention may remove a file of files/ just when it is about to be linked
_CANNOT_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EACCES}

#: From a field's name and the path in it to the file or folder meant, None if it is one of the job folder's own.
Resolve = Callable[[str, str], Path | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """Something brought into a job folder: its name there, and the SHA-256 of its files by name."""

    name: str
    hashes: Mapping[str, str]


def submitter_sources(folder: Path) -> Resolve:
    """Return how paths are meant in the folder of somebody who submits it: any that they can read."""
    home = folder.resolve()

    def resolve(_: str, given: str) -> Path | None:
        path = os.path.normpath(given)
        meant = (folder / given).resolve()
        is_own = _stays_inside(path) and meant == home / path
        return None if is_own and not _holds_links(meant) else meant

    return resolve


def dropped_sources(root: Root, config: ServiceConfig) -> Resolve:
    """Return how paths are meant in a folder that was dropped or sent: its own files, the operator's data, nothing else."""
    allowed = [root.data.resolve(), *(path.resolve() for path in config.data_roots)]

    def resolve(field: str, given: str) -> Path | None:
        path = os.path.normpath(given)
        if _stays_inside(path):
            return None
        meant = (root.incoming / path).resolve()
        if any(meant.is_relative_to(folder) for folder in allowed) and path.startswith(("/", "../data/")):
            return meant
        raise InvalidSubmission([_outside(field, given)])

    return resolve


def bring_in(root: Root, folder: Path, fields: Fields, job: str, resolve: Resolve) -> tuple[Fields, dict[str, str]]:
    """Link what a job names outside its folder into ``folder``; not yet durable.

    Args:
        root: The queue's folder.
        folder: The job folder that is being made ready; its ``job.json`` is left as it is.
        fields: The content of that.
        job: Whose it is, for messages.
        resolve: What the paths in it mean.

    Returns:
        The content that ``job.json`` now must have, and the SHA-256 of the files brought along.

    Raises:
        InvalidSubmission: With every path that leads nowhere, or where it may not.
    """
    problems: list[Problem] = []
    names: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for field, given in named_sources(parse_fields(fields, job)).items():
        try:
            source = resolve(field, given)
            if source is not None:
                brought = _bring(root, source, folder, job, field)
                names[field] = brought.name
                hashes |= brought.hashes
        except InvalidSubmission as error:
            problems += error.problems
    if problems:
        raise InvalidSubmission(_blamed_on(job, problem) for problem in problems)
    return renamed(fields, names), hashes


def outside_sources(fields: Fields, job: str, resolve: Resolve) -> dict[str, Path]:
    """Return what a job names outside its folder, by the path in ``job.json``.

    Raises:
        InvalidSubmission: If a path leads where it may not.
    """
    found = {given: resolve(field, given) for field, given in named_sources(parse_fields(fields, job)).items()}
    return {given: source for given, source in found.items() if source is not None}


def _bring(root: Root, source: Path, folder: Path, job: str, field: str) -> Brought:
    try:
        if source.is_dir():
            return _bring_folder(root, source, folder, job)
        digest = _keep(root, source)
        name = f"{FOLDER}/{_short(source.stem)}-{digest[:10]}{_short(source.suffix, 20)}"
        digest = _link(root, source, digest, folder / name)
        return Brought(name=name, hashes={name: digest})
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise  # nothing that the submitter could mend
        raise InvalidSubmission([_unreadable(job, field, source, error)]) from error


def _bring_folder(root: Root, source: Path, folder: Path, job: str) -> Brought:
    """Bring in a folder file by file; links to files are followed, as in the caches of model hubs."""
    contents = list_folder(source, job, 0)
    astray = {name for name in contents.links if not (source / name).is_file()}
    if contents.problems or astray:
        raise InvalidSubmission([*contents.problems, *link_problems(job, astray)])
    files = {name: (source / name).resolve() for name in sorted({*contents.files, *contents.links})}
    kept = {name: _keep(root, path) for name, path in files.items()}
    digest = hashlib.sha256(json.dumps(sorted(kept.items())).encode()).hexdigest()
    name = f"{FOLDER}/{_short(source.name)}-{digest[:10]}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    hashes = {f"{name}/{file}": _link(root, files[file], kept[file], folder / name / file) for file in files}
    return Brought(name=name, hashes=hashes)


def _keep(root: Root, source: Path) -> str:
    """Make sure that ``files/`` holds what is in ``source``, and return its SHA-256."""
    digest = _known_hash(root, source)
    return digest if (root.files / digest).exists() else _copy_in(root, source)


def _copy_in(root: Root, source: Path) -> str:
    """Copy a file into ``files/`` under the SHA-256 of what was copied, which is returned."""
    temporary = root.files / temporary_name()
    try:
        digest = copy_file(source, temporary)
        temporary.chmod(0o444)
        sync_file(temporary)
        temporary.rename(root.files / digest)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(root.files)
    return digest


def _link(root: Root, source: Path, digest: str, target: Path) -> str:
    """Link the file of ``files/`` that is called ``digest`` to ``target``; return the SHA-256 of what is there now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        try:
            os.link(root.files / digest, target)
        except FileExistsError:
            # Of an earlier attempt, or of a folder that was submitted before: its name says its content, but names can lie.
            if hash_file(target) == digest:
                return digest
            target.unlink()
        except FileNotFoundError:
            digest = _copy_in(root, source)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return _copy_instead(root.files / digest, target)
        else:
            return digest
    raise OSError(errno.EBUSY, "cannot be linked, other processes remove it all the time", str(root.files / digest))


def _copy_instead(kept: Path, target: Path) -> str:
    temporary = target.with_name(temporary_name())
    digest = copy_file(kept, temporary)
    temporary.rename(target)
    return digest


def _known_hash(root: Root, path: Path) -> str:
    """Return the SHA-256 of a file, which is not read again as long as it is unchanged."""
    index = DatasetIndex(root.cache / "known")
    known = index.recall("bytes", path)
    if known is not None:
        return str(known["sha256"])
    stamp = file_stamp(path)
    digest = hash_file(path)
    if abs(time.time() - path.stat().st_ctime) > _STABLE_SECONDS and file_stamp(path) == stamp:
        with contextlib.suppress(OSError):  # the next one reads it again, that is all
            index.remember("bytes", path, {"sha256": digest}, stamp)
    return digest


def _stays_inside(path: str) -> bool:
    """Return whether a normalized path does not lead out of where it starts."""
    return path != ".." and not path.startswith(("/", "../"))


def _holds_links(path: Path) -> bool:
    return path.is_dir() and any(
        Path(here, name).is_symlink() for here, folders, files in os.walk(path) for name in [*folders, *files]
    )


def _short(text: str, length: int = 80) -> str:
    """Return a part of a file's name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:length]


def _outside(field: str, given: str) -> Problem:
    return Problem(
        code="E-PATH",
        job="?",
        field=field,
        expected="a path inside the job's folder, or '../data/…' for what the operator put into data/ in the root",
        given=repr(given),
        remedy="put the file into the job's folder, or use 'unified submit', which brings it along",
    )


def _unreadable(job: str, field: str, source: Path, error: OSError) -> Problem:
    return Problem(
        code="E-FILE",
        job=job,
        field=field,
        expected="a file or folder that can be read",
        given=f"{error.strerror or type(error).__name__}: {error.filename or source}",
        remedy="correct the path; relative ones start at the job's folder, and in a zip or a dropped job ../data is ROOT/data",
    )


def _blamed_on(job: str, problem: Problem) -> Problem:
    return Problem(
        code=problem.code,
        job=job,
        field=problem.field,
        expected=problem.expected,
        given=problem.given,
        remedy=problem.remedy,
    )
