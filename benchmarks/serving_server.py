"""``unified serve-models`` as a process of the benchmark, and what happens to requests while it drains and changes variants."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT
from benchmarks.service_process import ServiceError, free_port, wait_until

READY_SECONDS, STOP_SECONDS = 120.0, 60.0
PATH = "/v2/models/panels/infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is ready.

    Attributes:
        port: Where it listens on 127.0.0.1.
        process: It.
        log: Its output.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_SECONDS)

    def load(self, requests: Path, *, concurrency: int, seconds: float, until_refused: bool = False) -> LoadRun:
        """Begin to load it from another process."""
        command = [sys.executable, "-m", "benchmarks.serving_load", "127.0.0.1", str(self.port), PATH, str(requests)]
        command += [str(concurrency), str(seconds), *(["--until-refused"] if until_refused else [])]
        return LoadRun(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))


@dataclass(frozen=True, slots=True)
class LoadRun:
    """A load that is under way."""

    process: subprocess.Popen[bytes]

    def result(self) -> dict[str, Any]:
        """Wait for its end and return what the clients saw."""
        output, _ = self.process.communicate(timeout=300)
        if self.process.returncode != 0:
            raise ServiceError(f"the load ended with {self.process.returncode}")
        return json.loads(output)


@contextlib.contextmanager
def serving(store: Path, log: Path, *options: str) -> Iterator[Server]:
    """Serve a folder of variants for the block."""
    port = free_port()
    command = [sys.executable, "-m", "unified", "serve-models", str(store), "--http", f"127.0.0.1:{port}", *options]
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    server = Server(port=port, process=process, log=log)
    try:
        wait_until(lambda: _is_ready(server), READY_SECONDS, "the server did not become ready")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def write_requests(
    file: Path, inputs: torch.Tensor, parameters: Sequence[Mapping[str, Any]], *, binary: bool, name: str
) -> Path:
    """Write requests for a load: one sample each, the parameters in turn.

    Args:
        file: To write.
        inputs: ``(N, ...)``, N requests.
        parameters: Of the requests.
        binary: Send tensors in binary, by Triton's extension, else as JSON.
        name: Of the input.
    """
    lines = []
    for number, sample in enumerate(inputs):
        entry: dict[str, Any] = {"name": name, "shape": [1, *sample.shape], "datatype": "FP32"}
        raw = sample.contiguous().numpy().tobytes() if binary else b""
        if binary:
            entry["parameters"] = {"binary_data_size": len(raw)}
        else:
            entry["data"] = [round(value, 3) for value in sample.flatten().tolist()]
        content = json.dumps({"inputs": [entry], "parameters": dict(parameters[number % len(parameters)])}).encode()
        body = base64.b64encode(content + raw).decode()
        lines.append(json.dumps({"json_bytes": len(content) if binary else None, "body": body}))
    file.write_text("\n".join(lines))
    return file


def lost_in_drain(store: Path, requests: Path, log: Path) -> dict[str, Any]:
    """Load a server with eight clients, send it SIGTERM, and count what was lost."""
    with serving(store, log) as server:
        run = server.load(requests, concurrency=8, seconds=30, until_refused=True)
        time.sleep(3)
        code = server.stop()
        seen = run.result()
    return {"exit_code": code, **_counts(seen)}


def lost_in_swap(store: Path, requests: Path, log: Path, swap: Any) -> dict[str, Any]:
    """Load a server with eight clients while ``swap()`` changes the variants of its store, and count what was lost."""
    with serving(store, log) as server:
        run = server.load(requests, concurrency=8, seconds=12)
        time.sleep(2)
        before = {entry["id"] for entry in server.get("/v2/models/panels/variants")["variants"]}
        swap()
        seen = run.result()
        after = {entry["id"] for entry in server.get("/v2/models/panels/variants")["variants"]}
    return {**_counts(seen), "variants_gone": len(before - after), "variants_new": len(after - before)}


def _counts(seen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: seen[name] for name in ("statuses", "late", "lost", "closed")}


def _is_ready(server: Server) -> bool:
    if server.process.poll() is not None:
        raise ServiceError(f"the server ended with {server.process.returncode}:\n{server.log.read_text()[-2000:]}")
    try:
        return bool(server.get("/v2/health/ready"))
    except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
        return False
