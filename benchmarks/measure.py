"""Runs commands side by side and measures them from outside: wall time, exit, and memory of all their processes.

Memory is the proportional set size (PSS): a page that several processes map counts once in the sum, so libraries that N
processes share are not held against them. Linux only. Nothing is measured from inside, so every mode is treated alike.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_SECONDS = 0.2
MAX_SAMPLER_SHARE = 0.04  # of one core: reading the PSS of a large process costs milliseconds of kernel time
TIMEOUT_SECONDS = 1800.0
THREAD_VARIABLES = frozenset({"OMP_NUM_THREADS", "MKL_NUM_THREADS"})  # left out: the modes set their threads

Command = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was seen while a run went on.

    Attributes:
        samples: Seconds since launch and the sum of the PSS over all processes then, this one left out; in bytes.
        is_stopped: It was stopped before its end.
    """

    samples: tuple[tuple[float, int], ...]
    is_stopped: bool

    @property
    def peak_bytes(self) -> int:
        """The highest sum."""
        return max(size for _, size in self.samples)

    def typical_bytes(self, start: float, end: float) -> float:
        """Return the median sum between two times; if none was read between them, the one nearest to their middle."""
        inside = [size for seconds, size in self.samples if start <= seconds <= end]
        nearest = min(self.samples, key=lambda sample: abs(sample[0] - (start + end) / 2))
        return median(inside or [nearest[1]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run as seen from outside.

    Attributes:
        launched_at: Wall-clock time (Unix seconds) just before the first command was started.
        exit_seconds: From then until the last process had ended.
        load_before: The machine's one-minute load average at the start: what else was going on.
        watched: Its memory, and whether it came to its end.
    """

    launched_at: float
    exit_seconds: float
    load_before: float
    watched: Watched


class RunFailedError(RuntimeError):
    """A command of the benchmark failed or took too long; the message ends with the end of its output."""


def run_measured(commands: Sequence[Command], logs: Path, *, patience_seconds: float | None = None) -> Measured:
    """Start all ``commands`` at once in the repository's root and wait for them.

    Args:
        commands: Each an argument list.
        logs: Folder for their output, one file each.
        patience_seconds: Stop the run after so long, without an error; None: wait for its end.

    Raises:
        RunFailedError: If one exits with another code than 0, or has not ended after half an hour.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    load_before = os.getloadavg()[0]
    paths = [logs / f"process-{index}.log" for index in range(len(commands))]
    files = [path.open("wb") for path in paths]
    launched_at, started = time.time(), time.perf_counter()
    processes = [
        psutil.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        for command, file in zip(commands, files, strict=True)
    ]
    try:
        watched = _watch(processes, started, patience_seconds or TIMEOUT_SECONDS)
    finally:
        for file in files:
            file.close()
    exit_seconds = time.perf_counter() - started
    if watched.is_stopped and patience_seconds is None:
        raise RunFailedError(f"not ended after {exit_seconds:.0f} s: {' '.join(commands[0])}")
    if not watched.is_stopped:
        for process, command, path in zip(processes, commands, paths, strict=True):
            _raise_if_failed(process.returncode, command, path)
    return Measured(launched_at=launched_at, exit_seconds=exit_seconds, load_before=load_before, watched=watched)


def _watch(processes: Sequence[psutil.Popen], started: float, patience_seconds: float) -> Watched:
    """Sample memory until all have ended; end them when patience does."""
    samples: list[tuple[float, int]] = []
    family: dict[int, psutil.Process] = {}
    while any(process.poll() is None for process in processes):
        seconds_left = started + patience_seconds - time.perf_counter()
        if seconds_left <= 0:
            _stop(processes, family)
            return Watched(samples=tuple(samples), is_stopped=True)
        before = time.process_time()
        samples.append((time.perf_counter() - started, _total_pss(processes, family)))
        cost = time.process_time() - before
        _wait(processes, min(max(SAMPLE_SECONDS, cost / MAX_SAMPLER_SHARE), seconds_left))
    return Watched(samples=tuple(samples), is_stopped=False)


def _wait(processes: Sequence[psutil.Popen], seconds: float) -> None:
    """Sleep for ``seconds``, or until all have ended: the end must not be seen late."""
    until = time.perf_counter() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(0.0, until - time.perf_counter()))
        except psutil.TimeoutExpired:
            return


def _total_pss(processes: Sequence[psutil.Popen], family: dict[int, psutil.Process]) -> int:
    """Sum the PSS of the processes and all their descendants, also of those whose parent has ended since."""
    for process in processes:
        try:
            family.update((child.pid, child) for child in [process, *process.children(recursive=True)])
        except psutil.NoSuchProcess:
            continue
    total = 0
    for pid, process in list(family.items()):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            del family[pid]
    return total


def _stop(processes: Sequence[psutil.Popen], family: dict[int, psutil.Process]) -> None:
    for process in family.values():
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        process.wait()


def _raise_if_failed(returncode: int, command: Command, log: Path) -> None:
    if returncode != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise RunFailedError(f"exit code {returncode} from {' '.join(command)}; its output ends:\n{tail}")
