"""How quick a queue with thousands of jobs in it is: to submit to, to list, and how many submissions a second it takes.

``python -m benchmarks.queue_latency ROOT FOLDER NAME FIRST COUNT`` is one of several submitting processes: once a line comes
in, it submits ``FOLDER`` ``COUNT`` times, as ``NAME-FIRST`` and so on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import ROOT
from benchmarks.service_process import Service, free_port, serving, wait_until
from benchmarks.storm_submitter import zip_of
from unified.job_state import RESIDENT
from unified.queue.verbs import Queue

PAGE = 100
NUM_FSYNCS = 200
FILLERS = 4
HTTP_READY_SECONDS = 60.0
BUSY_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPlan:
    """How often to measure what.

    Attributes:
        queued: Jobs in the store before anything is measured.
        submits: Submissions in this process, each timed.
        http_submits: The same over HTTP.
        lists: Listings of the first page.
        commands: Runs of ``unified ls``, each a process.
        sustained: Submissions in a row, by one process and again by four together.
    """

    queued: int
    submits: int
    http_submits: int
    lists: int
    commands: int
    sustained: int


@dataclass(slots=True, kw_only=True)
class Latencies:
    """What was measured, in seconds, by name; ``rates`` are submissions a second by number of processes."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    fill_seconds: float = 0.0
    queued: int = 0
    job_bytes: int = 0


SUBMIT, LIST, COMMAND, FSYNC = "submit", "ls", "unified ls", "fsync of 4 KiB"
HTTP_SUBMIT, HTTP_LIST = "submit over HTTP", "ls over HTTP"
BUSY_SUBMIT, BUSY_LIST, START = "submit, every core training", "ls, every core training", "start of a supervisor"


def measure_latencies(plan: LatencyPlan, job: Path, work: Path) -> Latencies:
    """Fill a queue with ``job`` under many ids, measure while nobody serves it, and then while somebody does."""
    work.mkdir(parents=True)
    found, root = Latencies(), work / "root"
    found.job_bytes = sum(path.stat().st_size for path in job.iterdir())
    with Queue.open(root, make=True) as queue:
        found.fill_seconds = plan.queued / _submit_with(FILLERS, root, job, "fill", plan.queued)
        found.queued = sum(queue.store.counts().values())
        found.seconds[FSYNC] = _fsyncs(work / "fsync")
        found.seconds[LIST] = _lists(queue, plan.lists)
        command = [sys.executable, "-m", "unified", "ls", "--root", str(root), "--limit", str(PAGE)]
        found.seconds[COMMAND] = _timed(plan.commands, lambda _: _run(command))
        found.seconds[SUBMIT] = _submits(queue, job, "timed", plan.submits)
        _over_http(plan, root, job, work / "http.log", found)
        for processes in (1, 4):
            found.rates[processes] = _submit_with(processes, root, job, f"rate-{processes}", plan.sustained)
    _while_busy(plan, root, job, work / "serve.log", found)
    return found


def _while_busy(plan: LatencyPlan, root: Path, job: Path, log: Path, found: Latencies) -> None:
    """Measure again while a supervisor checks and trains what is queued on every core."""
    service = Service(root=root, log=log)
    began = time.perf_counter()
    with serving(service) as queue:
        found.seconds[START] = [time.perf_counter() - began]
        wait_until(lambda: any(state in RESIDENT for state in queue.store.counts()), BUSY_SECONDS, "nothing was trained")
        found.seconds[BUSY_LIST] = _lists(queue, plan.lists)
        found.seconds[BUSY_SUBMIT] = _submits(queue, job, "busy", plan.submits)


def _lists(queue: Queue, count: int) -> list[float]:
    return _timed(count, lambda _: queue.list(limit=PAGE, newest_first=True))


def _submits(queue: Queue, job: Path, name: str, count: int) -> list[float]:
    return _timed(count, lambda number: queue.submit(job, by="bench", changes={"id": f"{name}-{number}"}))


def _timed(count: int, act: Callable[[int], object]) -> list[float]:
    """Return the seconds of each of ``count`` calls; the first, which warms up, is left out."""
    seconds = []
    for number in range(count + 1):
        began = time.perf_counter()
        act(number)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _run(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _fsyncs(path: Path) -> list[float]:
    """Return what the disk takes to bring a small write to safety: no durable submission can be quicker."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)

    def write(_: int) -> None:
        os.pwrite(descriptor, os.urandom(4096), 0)
        os.fsync(descriptor)

    try:
        return _timed(NUM_FSYNCS, write)
    finally:
        os.close(descriptor)


def _over_http(plan: LatencyPlan, root: Path, job: Path, log: Path, found: Latencies) -> None:
    """Measure the same through an HTTP process of its own, over one connection that stays open."""
    port = free_port()
    command = [sys.executable, "-m", "unified.service.http_process", str(root), "127.0.0.1", str(port)]
    zips = [zip_of(job, {"id": f"http-{number}"}) for number in range(plan.http_submits + 1)]

    def ask(method: str, url: str, **content: Any) -> None:
        client.request(method, url, **content).raise_for_status()

    with log.open("wb") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_until(lambda: _answers(client), HTTP_READY_SECONDS, "the HTTP process did not answer")
            found.seconds[HTTP_LIST] = _timed(plan.lists, lambda _: ask("GET", f"/v1/jobs?limit={PAGE}&newest=1"))
            posts = [_post(content, number) for number, content in enumerate(zips)]
            found.seconds[HTTP_SUBMIT] = _timed(plan.http_submits, lambda number: ask("POST", "/v1/jobs", **posts[number]))
        finally:
            process.terminate()
            process.wait(timeout=30)


def _post(content: bytes, number: int) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": "application/zip", "Idempotency-Key": f"http-{number}"}}


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _submit_with(processes: int, root: Path, job: Path, name: str, count: int) -> float:
    """Submit ``count`` jobs by several processes at once; return how many a second, start-up left out."""
    share = -(-count // processes)
    command = [sys.executable, "-m", "benchmarks.queue_latency", str(root), str(job), name]
    started = [
        subprocess.Popen(
            [*command, str(number * share), str(share)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(processes)
    ]
    for process in started:
        assert process.stdout is not None, "it is a pipe"
        process.stdout.readline()  # it is ready
    began = time.perf_counter()
    for process in started:
        assert process.stdin is not None, "it is a pipe"
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        assert process.stdout is not None, "it is a pipe"
        process.stdout.readline()  # it is done
    seconds = time.perf_counter() - began
    for process in started:
        process.communicate()
        if process.returncode:
            raise RuntimeError(f"a submitting process ended with exit code {process.returncode}")
    return processes * share / seconds


def main(root: str, folder: Path, name: str, first: int, count: int) -> None:
    """Submit a folder many times."""
    with Queue.open(root) as queue:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for number in range(first, first + count):
            queue.submit(folder, by="bench", changes={"id": f"{name}-{number}"})
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
