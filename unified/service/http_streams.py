"""Files that grow, over HTTP: as they are, and followed as server-sent events until their job has ended."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from unified.job_state import ENDED, JobState
from unified.service.http_problems import HttpError

MAX_PIECE_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 20  #: a longer one is passed on in parts
POLL_SECONDS = 0.25
LOOK_SECONDS = 1.0  #: how often the store is asked whether the job has ended
LINGER_SECONDS = 1.0  #: last lines may be written shortly after the job's end
KEEP_ALIVE_SECONDS = 15.0
MAX_STREAM_SECONDS = 3600.0  #: then the client comes again with ``Last-Event-ID``, and its token is looked at again
MAX_STREAMS = 200
MAX_STREAMS_PER_USER = 40  #: so that one cannot have them all


class Tail:
    """Reads the whole lines that a file gets, from a place on.

    Args:
        path: The file; it need not be there yet.
        mark: :attr:`mark` of an earlier reader, to go on behind it; empty: from the beginning.
    """

    def __init__(self, path: Path, mark: str = "") -> None:
        inode, _, offset = mark.partition("-")
        is_sound = inode.isdecimal() and offset.isdecimal() and int(inode) > 0
        self._path = path
        self._inode = int(inode) if is_sound else None
        self._offset = int(offset) if is_sound else 0

    @property
    def mark(self) -> str:
        """The file and the place in it up to which lines were read."""
        return f"{self._inode or 0}-{self._offset}"

    def read(self) -> tuple[list[str], bool]:
        """Return the next lines, and whether the file was written anew, so that they are its first ones again."""
        try:
            with self._path.open("rb") as file:
                was_reset = self._notice_reset(os.fstat(file.fileno()))
                file.seek(self._offset)
                content = file.read(MAX_PIECE_BYTES)
                if b"\n" not in content and len(content) == MAX_PIECE_BYTES:
                    content += file.read(MAX_LINE_BYTES - MAX_PIECE_BYTES)
        except FileNotFoundError:
            return [], False
        end = content.rfind(b"\n")
        is_endless = end < 0 and len(content) >= MAX_LINE_BYTES
        whole = content if is_endless else content[: end + 1]
        self._offset += len(whole)
        lines = whole.decode("utf-8", "replace").split("\n")
        return (lines if is_endless else lines[:-1]), was_reset

    def _notice_reset(self, status: os.stat_result) -> bool:
        was_reset = self._inode not in {None, status.st_ino} or status.st_size < self._offset
        self._inode = status.st_ino
        if was_reset:
            self._offset = 0
        return was_reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """What to follow, and until when.

    Attributes:
        path: The file.
        mark: The id of the last event that the client saw; empty: from the beginning.
        wanted: From a line to what is sent of it, or None to leave it out.
        state: Where the job stands; None if it is gone.
        is_stopping: Whether the service is about to end.
    """

    path: Path
    mark: str
    wanted: Callable[[str], str | None]
    state: Callable[[], JobState | None]
    is_stopping: Callable[[], bool]


class Streams:
    """How many answers are being streamed, and to whom. Used by the event loop alone."""

    def __init__(self) -> None:
        self._open: Counter[str | None] = Counter()

    @contextmanager
    def place(self, user: str | None) -> Iterator[None]:
        """Hold a place for one answer to ``user``; None: to somebody without a token.

        Raises:
            HttpError: If there is none left.
        """
        headers = {"Retry-After": "10"}
        if user is not None and self._open[user] >= MAX_STREAMS_PER_USER:
            detail = f"you follow {self._open[user]} files, which is as many as you may; close some, or ask without follow"
            raise HttpError(429, "your-streams", "Too many streams of yours", detail, headers)
        if self._open.total() >= MAX_STREAMS:
            detail = f"{MAX_STREAMS} streams are open, which is as many as there may be; ask again later, or without follow"
            raise HttpError(503, "streams", "Too many streams", detail, headers)
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            self._open += Counter()  # forgets those who have none


class EventsResponse(StreamingResponse):
    """Server-sent events, which hold a place of their reader while they are sent.

    Args:
        streams: Where the place is.
        user: Whose.
        following: What to send.
    """

    def __init__(self, streams: Streams, user: str | None, following: Following) -> None:
        super().__init__(stream(following), media_type="text/event-stream")
        self._place = streams.place(user)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, or raise before anything is sent."""
        with self._place:
            await super().__call__(scope, receive, send)


async def stream(following: Following) -> AsyncIterator[str]:
    """Yield server-sent events: one per line, ``reset`` if the file was written anew, ``end`` after the last one."""
    tail = Tail(following.path, following.mark)
    began = spoken = time.monotonic()
    looked, ended = 0.0, None
    state: JobState | None = None
    while time.monotonic() - began < MAX_STREAM_SECONDS and not following.is_stopping():
        if ended is None and time.monotonic() - looked >= LOOK_SECONDS:
            state, looked = await to_thread.run_sync(following.state), time.monotonic()
            ended = looked if state is None or state in ENDED else None
        lines, was_reset = await to_thread.run_sync(tail.read)
        if was_reset:
            yield event("{}", name="reset")
        if lines:
            text = "".join(_line_events(lines, following.wanted))
            yield text + f"id: {tail.mark}\n\n"
            spoken = time.monotonic()
            continue
        if ended is not None and time.monotonic() - ended >= LINGER_SECONDS:
            yield event(json.dumps({"state": state}), name="end")
            return
        if time.monotonic() - spoken >= KEEP_ALIVE_SECONDS:
            yield ": still here\n\n"
            spoken = time.monotonic()
        await anyio.sleep(POLL_SECONDS)


def event(data: str, *, name: str | None = None) -> str:
    r"""Return one server-sent event.

    >>> event("a line")
    'data: a line\n\n'
    """
    head = f"event: {name}\n" if name else ""
    # A carriage return would end the line for an event stream, and so forge fields of it.
    return head + "".join(f"data: {line}\n" for line in data.replace("\r", "").split("\n")) + "\n"


def _line_events(lines: list[str], wanted: Callable[[str], str | None]) -> Iterator[str]:
    for line in lines:
        sent = wanted(line)
        if sent is not None:
            yield event(sent)


def last_lines(path: Path, num_lines: int, max_bytes: int = 1 << 22) -> bytes:
    """Return the last whole lines of a file, at most ``max_bytes`` of them; nothing if it is not there."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - max_bytes))
            content = file.read(max_bytes)
    except FileNotFoundError:
        return b""
    if size > max_bytes:
        content = content[content.find(b"\n") + 1 :]
    lines = content.split(b"\n")[:-1]  # not splitlines, which also splits at carriage returns
    return b"".join(line + b"\n" for line in lines[-num_lines:]) if num_lines else b""


def file_pieces(path: Path) -> Iterator[bytes]:
    """Yield a file as it is now, piece by piece; what is appended meanwhile is left out."""
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            while left and (piece := file.read(min(left, MAX_PIECE_BYTES))):
                left -= len(piece)
                yield piece
    except FileNotFoundError:
        return
