"""The supervisor's handle of its HTTP process, which is started again when it dies. Free of torch."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unified.errors import UnifiedError

MIN_SECONDS = 5.0  #: between two starts; twice as long after each that comes to nothing
MAX_SECONDS = 300.0
STEADY_SECONDS = 60.0  #: a process that lived so long came to something
STOP_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class HttpChild:
    """Where to listen, and the process that does.

    Attributes:
        host: Address.
        port: Port.
        token_file: Who may come in; None on this host only.
        root: The queue's folder.
        clock: Tells the time between two starts.
    """

    host: str
    port: int
    token_file: Path | None
    root: Path
    clock: Callable[[], float] = time.monotonic
    _process: subprocess.Popen[bytes] | None = None
    _started: float = -math.inf
    _wait: float = 0.0

    @property
    def pid(self) -> int | None:
        """The process, if it was started and not seen to have ended."""
        return None if self._process is None else self._process.pid

    def ensure(self) -> None:
        """Start the process if there is none; to be called now and then."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            lived = self.clock() - self._started
            self._wait = wait_after(self._wait, lived)
            left = max(self._wait - lived, 0.0)
            logger.warning("the HTTP process ended with %s; a new one starts in %.0f s", self._process.returncode, left)
            self._process = None
        if self.clock() - self._started >= self._wait:
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "unified.service.http_process", str(self.root), self.host, str(self.port)]
        if self.token_file is not None:
            command += ["--token-file", str(self.token_file)]
        # A group of its own: Ctrl-C reaches the supervisor alone, which ends this one last.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._started = self.clock()

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def wait_after(wait: float, lived: float) -> float:
    """Return how long after its start a process that lived so many seconds is followed by another.

    >>> wait_after(0.0, 1.0), wait_after(5.0, 1.0), wait_after(300.0, 1.0), wait_after(300.0, 3600.0)
    (5.0, 10.0, 300.0, 5.0)
    """
    return MIN_SECONDS if lived >= STEADY_SECONDS else min(max(2 * wait, MIN_SECONDS), MAX_SECONDS)


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``.

    Raises:
        UnifiedError: If it is none.

    Example:
        >>> parse_address("127.0.0.1:8080"), parse_address("[::1]:80")
        (('127.0.0.1', 8080), ('::1', 80))
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 <= int(port) < 65536:
        raise UnifiedError(f"--http: expected HOST:PORT, got {address!r}; e.g. 127.0.0.1:8080")
    return host.strip("[]"), int(port)
