"""``unified serve`` as a process of the benchmark: started, killed, started again, and ended in order."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import ROOT
from unified.queue.root import Root
from unified.queue.verbs import Queue

READY_SECONDS = 120.0
STOP_SECONDS = 90.0
POLL_SECONDS = 0.02


class ServiceError(RuntimeError):
    """The service did not do what the benchmark is built on; the message ends with the end of its output."""


@dataclass(slots=True, kw_only=True)
class Service:
    """A supervisor of the queue in ``root``.

    Attributes:
        root: The queue's folder; made by the first start.
        log: Where its output goes, one file for all its lives.
        options: Of ``unified serve``, beside ``--root``.
        settings: For ``--set``.
        port: Of its HTTP process; None: without.
    """

    root: Path
    log: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    port: int | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """Its command line."""
        parts = [sys.executable, "-m", "unified", "serve", "--root", str(self.root), "--device", "cpu", "--threads", "1"]
        for name, value in self.options.items():
            parts += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        for name, value in self.settings.items():
            parts += ["--set", f"{name}={value}"]
        return parts if self.port is None else [*parts, "--http", f"127.0.0.1:{self.port}"]

    def start(self) -> None:
        """Start it; the answer does not wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            ServiceError: If it does not.
        """
        assert self.process is not None, "it was started"
        process = self.process

        def is_ready() -> bool:
            if process.poll() is not None:
                raise ServiceError(f"the service ended with {process.returncode}; its output ends:\n{self.tail()}")
            status = Root(path=self.root).read_status()
            return status is not None and status["pid"] == process.pid

        wait_until(is_ready, READY_SECONDS, "the service did not come up")

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        assert self.process is not None, "it was started"
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise ServiceError(f"the service did not end on SIGTERM; its output ends:\n{self.tail()}") from None

    def http_pid(self) -> int | None:
        """Return the process that answers HTTP, if it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            assert self.process is not None, "it was started"
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "unified.service.http_process" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                        return child.pid
        return None

    def tail(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


@contextlib.contextmanager
def serving(service: Service) -> Iterator[Queue]:
    """Run a service for the block and give its queue; it is killed if the block fails."""
    service.start()
    try:
        service.wait_ready()
        with Queue.open(service.root) as queue:
            yield queue
        service.stop()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def wait_until(is_so: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait until something is so.

    Raises:
        ServiceError: If it is not after ``seconds``; ``otherwise`` says what that means.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise ServiceError(f"{otherwise} within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_alive(pid: int) -> bool:
    """Whether a process lives; one that nobody has collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
