"""Look at a job folder that anybody may have made: what is in it, what ``job.json`` says, and everything wrong with it.

Nothing in it is run, unpickled or followed. The deep look (model, data, a trial step) is an inspector's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.errors import InvalidSubmission, Problem
from unified.job import JobSpec
from unified.queue.config import ServiceConfig
from unified.queue.errors import RefusedError
from unified.queue.files import TEMPORARY, open_plain
from unified.queue.limits import check_job_bytes
from unified.queue.records import Grant, NewJob
from unified.strict_json import MAX_BYTES, parse_json

MAX_LEVELS = 32  #: of folders in folders
MAX_NAME_BYTES = 255  #: what file systems take
MAX_PROBLEMS = 50  #: of the files of one folder

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is in a folder.

    Attributes:
        files: Size of each plain file, by its name relative to the folder.
        folders: Names of the folders below it.
        links: Names of the symbolic links below it.
        problems: What should not be there, links aside.
    """

    files: Mapping[str, int]
    folders: frozenset[str]
    links: frozenset[str]
    problems: tuple[Problem, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def list_folder(folder: Path, job: str, max_files: int) -> Contents:
    """Return what is in a folder, without following links; files under construction are left out.

    Raises:
        RefusedError: If there are more than ``max_files`` (0: no limit).
        FileNotFoundError: If the folder is gone.
    """
    files: dict[str, int] = {}
    folders: set[str] = set()
    links: set[str] = set()
    problems: list[Problem] = []
    for name, status in _walk(folder, "", job, problems):
        if stat.S_ISREG(status.st_mode):
            files[name] = status.st_size
        elif stat.S_ISDIR(status.st_mode):
            folders.add(name)
        elif stat.S_ISLNK(status.st_mode):
            links.add(name)
        else:
            problems.append(_problem("E-KIND", job, name, "a plain file", _kind(status), "remove it"))
        if max_files and len(files) + len(folders) + len(links) > max_files:
            raise RefusedError(f"job {job!r}: at most {max_files} files are accepted (max_archive_files); leave some out")
    return Contents(
        files=files,
        folders=frozenset(folders),
        links=frozenset(links),
        problems=tuple(problems[:MAX_PROBLEMS]),
    )


def link_problems(job: str, links: Iterable[str]) -> list[Problem]:
    """Return a problem for each symbolic link."""
    remedy = "put the file itself there, or name it in job.json and use 'unified submit', which brings it along"
    return [
        _problem("E-LINK", job, name, "a plain file or folder", "a symbolic link", remedy)
        for name in sorted(links)[:MAX_PROBLEMS]
    ]


def read_fields(folder: Path, job: str) -> Fields:
    """Return the content of ``job.json``, an object of whatever is in it.

    Raises:
        InvalidSubmission: If there is none or it is not strict JSON.
        FileNotFoundError: If the folder itself is gone.
    """
    try:
        content = _read_small(folder / "job.json")
    except OSError as error:
        if not os.path.lexists(folder):
            raise FileNotFoundError(str(folder)) from error
        raise InvalidSubmission([_no_job_file(folder, job, error)]) from error
    fields = parse_json(content, job=job, name="job.json")
    if not isinstance(fields, dict):
        raise InvalidSubmission([_problem("E-JSON", job, "job.json", "an object", "something else", "see docs/job.md")])
    return fields


def parse_fields(fields: Mapping[str, Any], job: str) -> JobSpec:
    """Return the job that ``job.json`` describes; PyTorch is not asked.

    Raises:
        InvalidSubmission: With everything that is wrong with it.
    """
    return JobSpec.parse(fields, job=job, asks_torch=False)


def named_sources(spec: JobSpec) -> dict[str, str]:
    """Return the files and folders that a job names, by the field that names them."""
    named = {
        "model": spec.model,
        "data.train": spec.data.train,
        "data.test": spec.data.test,
        "data.tokenizer": spec.data.tokenizer,
    }
    return {field: str(source) for field, source in named.items() if source is not None}


def renamed(fields: Fields, names: Mapping[str, str]) -> Fields:
    """Return a copy of ``job.json`` in which the fields of :func:`named_sources` name other files."""
    result = dict(fields)
    data = dict(fields["data"])
    for field, name in names.items():
        if field == "model":
            result["model"] = name
        else:
            data[field.removeprefix("data.")] = name
    return result | {"data": data}


def content_hash(fields: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 of a whole job folder: of what ``job.json`` says, and of the content of the other files.

    Args:
        fields: The content of ``job.json``; how it is laid out does not count.
        hashes: SHA-256 of the other files, by name.
    """
    others = sorted((name, digest) for name, digest in hashes.items() if name != "job.json")
    text = json.dumps([fields, others], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def new_job(fields: Fields, spec: JobSpec, hashes: Mapping[str, str], num_bytes: int, *, grant: Grant | None = None) -> NewJob:
    """Return what becomes the row of a checked job folder; see :func:`content_hash` for ``hashes``."""
    content = content_hash(fields, hashes)
    return NewJob(
        id=spec.id or (f"{spec.name}-{content[:10]}" if grant is None else grant.job),
        name=spec.name,
        user=spec.user or "",
        spec=fields,
        content_sha256=content,
        client_token=spec.client_token,
        priority=spec.priority,
        weight=spec.weight,
        deadline_seconds=spec.deadline_seconds,
        max_retries=spec.max_retries,
        num_bytes=num_bytes,
        grant=grant,
    )


def check_contents(contents: Contents, job: str, config: ServiceConfig) -> None:
    """Check what may be in a submitted folder.

    Raises:
        InvalidSubmission: If there are links, devices or names that not every system takes.
        RefusedError: If it is too large.
    """
    problems = [*contents.problems, *link_problems(job, contents.links)]
    if problems:
        raise InvalidSubmission(problems)
    check_job_bytes(config, contents.num_bytes)


def name_problem(name: str, job: str) -> Problem | None:
    """Return what is wrong with a file's name, which may be any bytes at all."""
    shown = name.encode("utf-8", "backslashreplace").decode()[:200]
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        return _problem("E-NAME", job, shown, f"a name of at most {MAX_NAME_BYTES} bytes", "a longer one", "shorten it")
    if not name.isprintable():
        given = repr(os.fsencode(name))[1:][:200]
        return _problem("E-NAME", job, ascii(shown), "a printable name in UTF-8", given, "rename it")
    return None


def _walk(folder: Path, prefix: str, job: str, problems: list[Problem]) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{prefix}{entry.name}"
        if entry.name.startswith(TEMPORARY):
            continue
        problem = name_problem(entry.name, job)
        if problem is not None:
            problems.append(problem)
            continue
        yield name, entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_below(Path(entry.path), name, job, problems)


def _walk_below(folder: Path, name: str, job: str, problems: list[Problem]) -> Iterator[tuple[str, os.stat_result]]:
    if name.count("/") + 1 >= MAX_LEVELS:
        expected = f"at most {MAX_LEVELS} levels of folders"
        problems.append(_problem("E-FOLDER", job, name[:200], expected, "more", "flatten it"))
        return
    try:
        yield from _walk(folder, f"{name}/", job, problems)
    except PermissionError as error:
        given = error.strerror or "permission denied"
        problems.append(_problem("E-FILE", job, name, "a readable folder", given, "check its permissions"))


def _read_small(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read(MAX_BYTES + 1)


def _no_job_file(folder: Path, job: str, error: OSError) -> Problem:
    expected, given = "a folder with job.json in it", error.strerror or type(error).__name__
    remedy = "docs/job.md describes a job folder"
    if error.errno == errno.ELOOP:
        given, remedy = "a symbolic link", "put the file itself there"
    if isinstance(error, FileNotFoundError):
        given = "a folder without job.json"
        with contextlib.suppress(OSError):
            if next(folder.glob("*/job.json"), None) is not None:
                given, remedy = (
                    "a folder of job folders",
                    "drop each of them by itself; shared data go to data/ in the root",
                )
    return _problem("E-FOLDER", job, "job.json", expected, given, remedy)


def _kind(status: os.stat_result) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(status.st_mode), "something else")


def _problem(code: str, job: str, field: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code=code, job=job, field=field, expected=expected, given=given, remedy=remedy)
