"""``unified serve-models`` in a process of its own, over a small real store, and its clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving.drafts import Draft
from serving.profiling import ProfileOptions, profile
from tests.integration.command_line import PATIENCE_SECONDS, environment
from tests.unit.serving_models import draft, filled_store, images, labelled

INFER = "/v2/models/panels/infer"
QUICK = ProfileOptions(batches=(1, 4), max_seconds=0.02)


def make_store(path: Path, *drafts: Draft, profiled: bool = True) -> Path:
    """Write a store, by default of four variants: of both tasks a wide and a narrow one, and one of each task alone."""
    both = (draft("both"), draft("narrow", width=2, seed=1))
    alone = (draft("shoes", ("shoe",), seed=2), draft("sizes", ("size",), seed=3))
    store, _ = filled_store(path, *(drafts or both + alone))
    store.keep_validation("panels", labelled())
    if profiled:
        profile(store, "panels", options=QUICK)
    return path


def infer_request(rows: int = 1, **fields: Any) -> dict[str, Any]:
    """Return a request for all tasks."""
    data = images(rows).flatten().tolist()
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [rows, 1, 6, 6], "data": data}]} | fields


@dataclass
class ModelServer:
    """A server's process."""

    process: subprocess.Popen[str]
    address: str = ""
    lines: list[str] = field(default_factory=list)

    def read_until(self, word: str) -> str:
        """Return the first line of its stderr with a word in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if word in line:
                return line
        raise AssertionError(f"it ended with {self.process.wait()}: {self.lines}")

    def end(self) -> int:
        """Wait until it has ended, and return the exit code."""
        assert self.process.stderr is not None
        self.lines += self.process.stderr.readlines()
        return self.process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def started(store: Path, *options: object, until: str = "ready:") -> Iterator[ModelServer]:
    """Serve a store until the context ends; begins when the server has said ``until``."""
    command = [sys.executable, "-m", "unified", "serve-models", str(store), "--http", "127.0.0.1:0", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    server = ModelServer(process)
    try:
        server.address = server.read_until("listening on").split()[-1]
        if until != "listening on":
            server.read_until(until)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


class Load:
    """Clients that ask one after the other, on connections that they keep, until they are refused or told to stop."""

    def __init__(self, address: str, *, clients: int, rows: int = 1) -> None:
        self._place = urlsplit(address).netloc
        self._body = json.dumps(infer_request(rows)).encode()
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.seen: Counter[int | str] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def wait_for(self, count: int) -> None:
        """Wait until so many requests were answered."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.seen[200] < count:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)

    def _ask(self) -> None:
        with contextlib.closing(http.client.HTTPConnection(self._place, timeout=PATIENCE_SECONDS)) as connection:
            while not self._is_over.is_set():
                try:
                    connection.connect() if connection.sock is None else None
                except OSError:
                    self._count("not connected")  # nothing was sent, so nothing is lost
                    return
                try:
                    connection.request("POST", INFER, self._body)
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException):
                    self._count("lost")
                    return
                self._count(answer.status)
                if answer.status != 200:
                    return

    def _count(self, what: int | str) -> None:
        with self._lock:
            self.seen[what] += 1
