"""Text files that grow by whole lines: what a kill or a full disk leaves of them always ends with one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from unified.queue.files import sync_file, write_durably

_log = logging.getLogger(__name__)

MAX_PENDING_BYTES = 1 << 20  #: per file, while it cannot be written; then the oldest lines go


class LineFiles:
    """Appends lines to files, collected in memory between two calls of :meth:`flush`. May be used by several threads.

    No file is kept open. A line that was begun and not completed, by a writer that was killed, is cut off before the next one.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, list[bytes]] = {}
        self._checked: set[Path] = set()  # files whose last line is known to be whole
        self._pending_lock, self._file_lock = Lock(), Lock()
        self._is_failing = False

    def append(self, path: Path, line: str) -> None:
        """Add ``line``, without its end, to what will be written to ``path``. Writes nothing and never fails."""
        with self._pending_lock:
            self._pending.setdefault(path, []).append(line.encode(errors="backslashreplace") + b"\n")

    def flush(self) -> None:
        """Write what was collected. What cannot be is kept for the next time, but for lines of folders that are gone."""
        with self._file_lock:  # taken first, or two threads could write in the wrong order
            with self._pending_lock:
                pending, self._pending = self._pending, {}
            failed = {path: lines for path, lines in pending.items() if not self._was_written(path, b"".join(lines))}
            with self._pending_lock:
                for path, lines in failed.items():
                    self._pending[path] = _newest(lines + self._pending.get(path, []))
            self._is_failing = bool(failed)

    def forget(self, path: Path) -> None:
        """Drop what was collected for ``path``."""
        with self._pending_lock:
            self._pending.pop(path, None)
        self._checked.discard(path)

    def sync(self, path: Path) -> None:
        """Bring what was flushed to the disk, and think no more of that file."""
        self._checked.discard(path)
        try:
            sync_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s may lose its last lines if the machine fails now: %s", path, error)

    def keep(self, path: Path, is_wanted: Callable[[bytes], bool]) -> None:
        """Flush, then remove the lines that are not wanted.

        Raises:
            OSError: If that cannot be written; the file is as it was.
        """
        self.flush()
        with self._file_lock:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return
            kept = b"".join(line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and is_wanted(line))
            if kept == content:
                return
            if content.startswith(kept):  # the usual case; who follows the file sees it shrink and goes on
                os.truncate(path, len(kept))
            else:
                write_durably(path, kept)

    def _was_written(self, path: Path, content: bytes) -> bool:
        try:
            self._write(path, content)
        except (FileNotFoundError, NotADirectoryError):
            _log.debug("%s is gone, and with it %d bytes of lines", path, len(content))
        except OSError as error:
            if not self._is_failing:
                _log.warning("%s cannot be written, its lines wait in memory: %s", path, error)
            return False
        return True

    def _write(self, path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if path not in self._checked:
                _cut_torn_line(descriptor)
                self._checked.add(path)
            size = os.fstat(descriptor).st_size
            try:
                num_written = 0
                while num_written < len(content):
                    num_written += os.write(descriptor, content[num_written:])
            except OSError:
                os.ftruncate(descriptor, size)  # all or nothing, so that the next time does not begin in the middle
                raise
        finally:
            os.close(descriptor)


def _newest(lines: list[bytes]) -> list[bytes]:
    """Return the last of ``lines``, as many as may wait."""
    room = MAX_PENDING_BYTES
    for position in range(len(lines) - 1, -1, -1):
        room -= len(lines[position])
        if room < 0:
            return lines[position + 1 :]
    return lines


def _cut_torn_line(descriptor: int, block_bytes: int = 4096) -> None:
    """Shorten a file to its last end of a line."""
    size = end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - block_bytes)
        position = os.pread(descriptor, end - start, start).rfind(b"\n")
        if position >= 0:
            end = start + position + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
