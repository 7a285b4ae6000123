"""What comes in over HTTP: bodies of bounded size, and files by their content, which may come in pieces.

A file of one user is not shared with another: who merely knows its hash neither learns that it is here nor may train on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from anyio import to_thread
from fastapi import Request

from unified.quantities import bytes_text
from unified.queue.files import hash_file, sync_file, sync_folder
from unified.queue.limits import check_disk
from unified.queue.verbs import Queue
from unified.service.http_models import Upload
from unified.service.http_problems import HttpError

_BUFFER_BYTES = 1 << 20
_CHECK_BYTES = 64 << 20  #: how often the disk is looked at while a file comes
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Which bytes of a file a request brings: from ``start`` to before ``stop``; of ``total``, None if that is not said."""

    start: int
    stop: int | None
    total: int | None


class Uploads:
    """The files that one user has handed in."""

    def __init__(self, queue: Queue, user: str | None) -> None:
        self._queue = queue
        self._user = user or ""
        self._prefix = hashlib.sha256(self._user.encode()).hexdigest()[:16]

    def path(self, sha256: str) -> Path:
        """Return where a complete file is, or would be."""
        return self._queue.root.uploads / f"{self._prefix}-{sha256}"

    def look(self, sha256: str) -> Upload:
        """Say how much of a file is here."""
        path = self.path(sha256)
        try:
            os.utime(path)  # what is asked for is in use: retention goes by age
            return self._said(sha256, path.stat().st_size, is_complete=True)
        except FileNotFoundError:
            part = _part(path)
            return self._said(sha256, part.stat().st_size if part.exists() else 0, is_complete=False)

    def _said(self, sha256: str, offset: int, *, is_complete: bool) -> Upload:
        limit = self._queue.config.max_archive_bytes or None
        return Upload(sha256=sha256, offset=offset, is_complete=is_complete, limit=limit)

    def num_bytes(self) -> int:
        """Return the size of all files of this user."""
        return sum(path.stat().st_size for path in self._queue.root.uploads.glob(f"{self._prefix}-*"))

    def _limit(self, total: int | None) -> int:
        """Return up to which byte a file of ``total`` bytes may come.

        Raises:
            HttpError: If it may not come at all.
        """
        limit, mine = archive_limit(self._queue), self._queue.config.max_bytes_per_user
        if total is not None and total > limit:
            _refuse_size(limit)
        check_disk(self._queue.root, self._queue.config, total or 0)
        if mine:
            used = self._queue.store.bytes_by_user().get(self._user, 0) + self.num_bytes()
            if used + (total or 0) > mine:
                detail = f"you have {bytes_text(used)} here and may have {bytes_text(mine)}; wait until some are removed"
                raise HttpError(413, "refused", "Over a limit", detail)
            limit = min(limit, mine - used)
        return limit

    async def take(self, sha256: str, piece: Piece, request: Request) -> Upload:
        """Take in a file, or a piece of one; what has come stays if the connection breaks.

        Raises:
            HttpError: If it is too large, does not begin where the last piece ended, or is another file.
        """
        found = await to_thread.run_sync(self.look, sha256)
        if found.is_complete:
            return found
        limit = await to_thread.run_sync(self._limit, piece.total)
        path = self.path(sha256)
        with _locked(_part(path)) as file:
            _go_to_start(file, piece)
            room = limit if piece.stop is None else min(limit, piece.stop)
            offset = await receive(request, file, start=piece.start, limit=room, queue=self._queue)
            if piece.total is None or offset == piece.total:
                await to_thread.run_sync(_complete, file, path, sha256)
                return self._said(sha256, offset, is_complete=True)
            return self._said(sha256, offset, is_complete=False)


def piece_of(request: Request) -> Piece:
    """Return which bytes of a file this request says that it brings.

    Raises:
        HttpError: If it says so in a way that makes no sense.
    """
    length = request.headers.get("content-length")
    total = int(length) if length is not None and length.isdecimal() else None
    given = request.headers.get("content-range")
    if given is None:
        return Piece(start=0, stop=total, total=total)
    match = _RANGE.fullmatch(given.strip())
    start, last, whole = map(int, match.groups()) if match else (0, 0, 0)
    if match is None or not start <= last < whole or (total is not None and total != last + 1 - start):
        detail = f"expected Content-Range 'bytes FIRST-LAST/TOTAL' that fits Content-Length, got {given[:100]!r}"
        raise HttpError(400, "content-range", "No such range", detail)
    return Piece(start=start, stop=last + 1, total=whole)


async def receive(request: Request, file: BinaryIO, *, start: int, limit: int, queue: Queue) -> int:
    """Write the body of a request to ``file`` and return where it ended.

    Args:
        request: What comes.
        file: Where it goes, at its place ``start``.
        start: The place of its first byte.
        limit: Where it must end at the latest.
        queue: Whose disk it is.

    Raises:
        HttpError: As soon as it is too large or fills the disk.
    """
    offset, buffer, checked = start, bytearray(), start - _CHECK_BYTES
    try:
        async for chunk in request.stream():
            offset += len(chunk)
            if offset > limit:
                _refuse_size(limit)
            buffer += chunk
            if len(buffer) >= _BUFFER_BYTES:
                await to_thread.run_sync(file.write, bytes(buffer))
                buffer.clear()
            if offset - checked >= _CHECK_BYTES:
                check_disk(queue.root, queue.config, len(buffer))
                checked = offset
    finally:  # a connection that breaks leaves what has come, to go on from there
        file.write(buffer)
        file.flush()
    return offset


async def receive_bytes(request: Request, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        HttpError: As soon as it is larger than ``limit``.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            _refuse_size(limit)
    return bytes(body)


def archive_limit(queue: Queue) -> int:
    """Return how large a body may be."""
    return queue.config.max_archive_bytes or 1 << 62


def _refuse_size(limit: int) -> NoReturn:
    detail = f"expected at most {limit} bytes ({bytes_text(limit)}); the operator's max_archive_bytes says so"
    raise HttpError(413, "too-large", "Too large", detail, {"Connection": "close"})


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open a file that comes in pieces, for one request at a time."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = part.exists() and part.stat().st_ino == os.fstat(descriptor).st_ino
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        if not is_current:
            detail = "another request brings this very file; wait for it"
            raise HttpError(409, "upload-busy", "Busy", detail, {"Retry-After": "1"})
        yield file


def _go_to_start(file: BinaryIO, piece: Piece) -> None:
    size = os.fstat(file.fileno()).st_size
    if piece.start == 0:
        file.truncate(0)
    elif piece.start != size:
        detail = f"{size} bytes have come; go on with Content-Range 'bytes {size}-…'"
        raise HttpError(409, "upload-offset", "Not the next piece", detail, {"Upload-Offset": str(size)})
    file.seek(piece.start)


def _complete(file: BinaryIO, path: Path, sha256: str) -> None:
    part = _part(path)
    sync_file(part)
    came = hash_file(part)
    if came != sha256:
        part.unlink()
        detail = f"expected a file with the SHA-256 {sha256}, got {came}; it was removed, send it again"
        raise HttpError(422, "upload-hash", "Another file", detail)
    part.rename(path)
    sync_folder(path.parent)
    assert not file.closed, "the lock is held until the file has its name"
