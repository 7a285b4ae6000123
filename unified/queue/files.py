"""Writing that survives a crash of the machine: what these functions return from is on the disk, whole.

A file becomes visible under its name by a rename, and a rename is durable once the folder is synchronised.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

#: Names that begin so are under construction: nothing reads them, and retention removes what a crash left of them.
TEMPORARY = ".tmp-"

_CHUNK = 1 << 20


def temporary_name() -> str:
    """Return a new name for something under construction."""
    return f"{TEMPORARY}{secrets.token_hex(8)}"


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything below it to the disk; links and devices are left alone."""
    for path, _, names in os.walk(folder, topdown=False):
        here = Path(path)
        for name in names:
            if stat.S_ISREG((here / name).lstat().st_mode):
                sync_file(here / name)
        sync_folder(here)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by one with ``content``: after a crash the old one is there or the new one, whole.

    Raises:
        OSError: If it cannot be written; the old one is untouched.
    """
    temporary = path.with_name(temporary_name())
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        rename_durably(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file or folder on one file system and bring the renaming to the disk.

    Raises:
        FileNotFoundError: If ``source`` is gone, e.g. because another process renamed it first.
        OSError: If it cannot be renamed, e.g. ``target`` is a folder with something in it.
    """
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove_tree(path: Path, scratch: Path) -> None:
    """Remove a file or folder at once: it is renamed into ``scratch`` first, so nobody sees half of it.

    What cannot be removed stays there under a temporary name, for retention.

    Raises:
        FileNotFoundError: If there is no such thing.
    """
    doomed = scratch / temporary_name()
    path.rename(doomed)
    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink()


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading that may be anything: never waits for a pipe, follows no link, reads no device.

    Raises:
        OSError: If it is not a plain file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a plain file", str(path))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a plain file's content, in hexadecimal digits."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(source: Path, target: Path) -> str:
    """Copy a plain file to a new one, not yet durable, and return the SHA-256 of what was written.

    Raises:
        FileExistsError: If ``target`` exists.
        OSError: If ``source`` is not a plain file, or one of them cannot be read or written.
    """
    digest = hashlib.sha256()
    with open_plain(source) as old, target.open("xb") as new:
        while chunk := old.read(_CHUNK):
            digest.update(chunk)
            new.write(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder or plain file against other processes that ask for it; death gives it back.

    Args:
        path: What to lock; it may be renamed meanwhile.
        waits: Whether to wait for the lock. If not, what is yielded says whether it was free.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # Said, not left to the close: a process forked meanwhile has the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Return what this user can still write on the file system of ``path``."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below ``folder``, 0 if there is none; files that vanish meanwhile do not count."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(path, name).lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_size


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
