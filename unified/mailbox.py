"""Requests from other threads to the one that drives workers, and a descriptor that wakes it. Free of torch."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Requests are run by the driving thread, in order, between two looks at its workers' pipes."""

    def __init__(self) -> None:
        self._requests: deque[Callable[[], None]] = deque()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._is_closed = False

    def __bool__(self) -> bool:
        return bool(self._requests)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when somebody asks for something."""
        return self._read

    def ask(self, request: Callable[[], None]) -> None:
        """Have ``request`` run soon by the driving thread; to be called by any."""
        self._requests.append(request)
        self.wake()

    def wake(self) -> None:
        """Make the driving thread look; safe in a signal handler."""
        with contextlib.suppress(OSError):  # it is full of wake-ups already, or closed
            os.write(self._write, b"!")

    def quiet(self) -> None:
        """Take in the wake-ups."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def run(self) -> None:
        """Run what was asked for until now and in between."""
        while self._requests:
            self._requests.popleft()()

    def close(self) -> None:
        """Close the descriptors; who asks afterwards is not heard."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._read)
            os.close(self._write)
