"""Job folders that come as a zip: looked through before anything is written, and unpacked where nobody looks."""

from __future__ import annotations

import errno
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from unified.errors import InvalidSubmission, Problem
from unified.quantities import bytes_text
from unified.queue.config import ServiceConfig
from unified.queue.errors import RefusedError
from unified.queue.files import open_plain
from unified.queue.job_folder import MAX_LEVELS, name_problem
from unified.queue.limits import check_disk, check_job_bytes
from unified.queue.root import Root

MAX_RATIO = 200  #: of unpacked to packed size; tensors and text stay far below it
FREE_BYTES = 64 * 2**20  #: below this nobody is harmed by any ratio

_MAX_PROBLEMS = 20
_CHUNK = 1 << 20
_BYTES_PER_NAME = 512  #: of the list of files at the end of an archive; more is no honest list
_PACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_LITTER = ("__MACOSX/", ".DS_Store")
_ENCRYPTED = 0x1

#: What the reader raises for an archive that is no sound one; a seek to nowhere (EINVAL) besides.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A file to unpack: its record in the archive, and its name in the job folder."""

    info: zipfile.ZipInfo
    name: str


def unpack(root: Root, config: ServiceConfig, archive: Path, folder: Path, *, job: str) -> None:
    """Unpack a zip of a job folder, or of a folder that holds just one, into ``folder``, which is made; not yet durable.

    Args:
        root: The queue's folder, for what is free on its disk.
        config: The limits.
        archive: The zip.
        folder: Where to; on an error nothing is left there.
        job: Whose it is, for messages.

    Raises:
        InvalidSubmission: If it is no such archive, or holds anything but plain files inside the folder.
        RefusedError: If it is too large, packed or unpacked, or the disk is too full.
        FileNotFoundError: If there is no such file (any more).
    """
    with open_plain(archive) as file:
        _check_size(config, file, job)
        try:
            with zipfile.ZipFile(file) as opened:
                members = _checked(opened.infolist(), config, job)
                check_disk(root, config, sum(member.info.file_size for member in members))
                _write(opened, members, folder)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, _DAMAGED) or (isinstance(error, OSError) and error.errno == errno.EINVAL):
                given = f"{type(error).__name__}: {str(error)[:200]!a}"
                raise InvalidSubmission([_problem(job, "a whole zip archive", given, "pack it again")]) from error
            raise


def _check_size(config: ServiceConfig, file: BinaryIO, job: str) -> None:
    """Refuse an archive that is too large itself, or whose mere list of files would fill the memory."""
    size = file.seek(0, 2)
    if config.max_archive_bytes and size > config.max_archive_bytes:
        limit = f"at most {bytes_text(config.max_archive_bytes)} are accepted (max_archive_bytes)"
        raise RefusedError(f"an archive of {bytes_text(size)}: {limit}")
    listed = _list_bytes(file, size)
    if listed is None:
        given = "a file without an archive's end" if size else "an empty file"
        raise InvalidSubmission([_problem(job, "a zip archive", given, "wait until it is copied, or pack it again")])
    if config.max_archive_files and listed > max(config.max_archive_files * _BYTES_PER_NAME, 1 << 16):
        raise _too_many_files(config)


def _list_bytes(file: BinaryIO, size: int) -> int | None:
    """Return the size of the archive's list of files as its end says, None if it has no end."""
    for length in (22, min(size, 22 + 0xFFFF)):  # without a comment first, as the reader does it
        if length > size:
            return None
        file.seek(size - length)
        tail = file.read(length)
        at = tail.rfind(b"PK\x05\x06") if length > 22 or (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")) else -1
        if at >= 0 and len(tail) - at >= 22:
            (listed,) = struct.unpack_from("<L", tail, at + 12)
            return max(listed, _list_bytes_64(file, size - length + at))
    return None


def _list_bytes_64(file: BinaryIO, end: int) -> int:
    """Return the size of the list as the record for large archives says, 0 if there is none."""
    if end < 76:
        return 0
    file.seek(end - 76)
    record = file.read(56)
    return struct.unpack_from("<Q", record, 40)[0] if record.startswith(b"PK\x06\x06") else 0


def _checked(infos: Sequence[zipfile.ZipInfo], config: ServiceConfig, job: str) -> list[_Member]:
    """Return the files to unpack, once nothing is wrong with any entry."""
    if config.max_archive_files and len(infos) > config.max_archive_files:
        raise _too_many_files(config)
    infos = [info for info in infos if not info.filename.startswith(_LITTER[0]) and not info.filename.endswith(_LITTER[1])]
    problems = [problem for info in infos for problem in _entry_problems(info, job)]
    problems += _overlap_problems(infos, job)
    members = [_Member(info=info, name=info.filename) for info in infos if not info.is_dir()]
    problems += _clash_problems([member.name for member in members], job)
    if problems:
        raise InvalidSubmission(problems[:_MAX_PROBLEMS])
    check_job_bytes(config, sum(info.file_size for info in infos))
    _check_ratio(infos, job)
    return _unwrapped(members)


def _entry_problems(info: zipfile.ZipInfo, job: str) -> Iterator[Problem]:
    name = info.filename
    shown = ascii(name[:200])
    parts = name.removesuffix("/").split("/")
    if "\0" in info.orig_filename or "\\" in info.orig_filename or ":" in parts[0] or not {"", ".", ".."}.isdisjoint(parts):
        remedy = "pack the job folder by itself, e.g. with 'cd FOLDER; zip -r ../job.zip .'"
        yield _problem(job, "names that stay inside the folder", shown, remedy, field=shown, code="E-PATH")
        return
    if len(parts) > MAX_LEVELS or len(name) > 1000:
        yield _problem(job, f"at most {MAX_LEVELS} levels of folders", shown, "flatten it", field=shown)
    yield from filter(None, (name_problem(part, job) for part in parts))
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        given = "a symbolic link" if kind == stat.S_IFLNK else "a pipe, socket or device"
        yield _problem(job, "plain files and folders", given, "pack the file itself", field=shown, code="E-LINK")
    if info.flag_bits & _ENCRYPTED:
        yield _problem(job, "files without a password", "an encrypted one", "pack it without a password", field=shown)
    if info.compress_type not in _PACKED:
        yield _problem(job, "files stored or deflated", f"method {info.compress_type}", "use plain zip", field=shown)


def _overlap_problems(infos: Sequence[zipfile.ZipInfo], job: str) -> Iterator[Problem]:
    """Yield a problem if two entries share bytes, with which a small archive unpacks to a huge one."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    for info, following in pairwise(ordered):
        if info.header_offset + 30 + info.compress_size > following.header_offset:
            shown = ascii(following.filename[:200])
            yield _problem(job, "each file in a place of its own", "files that overlap", "pack it again", field=shown)
            return


def _clash_problems(names: Sequence[str], job: str) -> Iterator[Problem]:
    """Yield the names that come twice, and the files that other files are said to be in."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield _problem(job, "each name once", "it more than once", "pack it again", field=ascii(name[:200]))
        seen.add(name)
    folders = {parent.as_posix() for name in seen for parent in PurePosixPath(name).parents}
    for name in sorted(seen & folders):
        yield _problem(job, "a file or a folder", "both under one name", "pack it again", field=ascii(name[:200]))


def _check_ratio(infos: Sequence[zipfile.ZipInfo], job: str) -> None:
    unpacked, packed = (sum(sizes) for sizes in ([i.file_size for i in infos], [i.compress_size for i in infos]))
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * max(packed, 1):
        given = f"{bytes_text(unpacked)} in {bytes_text(packed)}"
        remedy = "pack it without compression ('zip -0')"
        raise InvalidSubmission([_problem(job, f"at most {MAX_RATIO} times as much as is packed", given, remedy)])


def _unwrapped(members: list[_Member]) -> list[_Member]:
    """Leave out the folders around a job folder, if the archive has any: ``jobs/lenet/job.json``."""
    names = [member.name for member in members]
    while names and all("/" in name for name in names) and len({name.partition("/")[0] for name in names}) == 1:
        names = [name.partition("/")[2] for name in names]
    return [_Member(info=member.info, name=name) for member, name in zip(members, names, strict=True)]


def _write(archive: zipfile.ZipFile, members: Sequence[_Member], folder: Path) -> None:
    folder.mkdir()
    for member in members:
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # No more comes out than the archive's list says: the reader stops there, and the checksum tells if it is less.
        with archive.open(member.info) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file, _CHUNK)


def _too_many_files(config: ServiceConfig) -> RefusedError:
    return RefusedError(f"an archive of more than {config.max_archive_files} files (max_archive_files); leave some out")


def _problem(job: str, expected: str, given: str, remedy: str, *, field: str = "archive", code: str = "E-ZIP") -> Problem:
    return Problem(code=code, job=job, field=field, expected=expected, given=given, remedy=remedy)
