"""Do dangerous things in child processes, one after another, and learn from each how it went, even if it ended its process."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

HEADROOM_BYTES = 2 << 30


def in_children(count: int, act: Callable[[int], str], *, seconds: int = 20) -> Iterator[str]:
    """Yield how each act went: what ``act(index)`` returned, or the signal or exit code that ended its process.

    A child may take 2 GiB more than its parent has, and each act ``seconds`` of processor time: then SIGPROF ends its process.
    """
    start = 0
    while start < count:
        outcomes, end = _one_child(range(start, count), act, seconds)
        yield from outcomes
        start += len(outcomes)
        if start < count:
            yield end
            start += 1


def _one_child(indices: range, act: Callable[[int], str], seconds: int) -> tuple[list[str], str]:
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "outcomes"
        notes.touch()
        child = os.fork()
        if child == 0:
            try:
                _act(indices, act, notes, seconds)
            finally:
                os._exit(70)  # never go on as a second parent
        _, status = os.waitpid(child, 0)
        outcomes = notes.read_text().splitlines()
    ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    return outcomes, ended


def _act(indices: range, act: Callable[[int], str], notes: Path, seconds: int) -> None:
    warnings.simplefilter("ignore")
    for standard in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), standard)  # PyTorch and MKL complain from C++, often
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with notes.open("a", buffering=1) as file:
        for index in indices:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # of its own time: another process's load must not end it
            file.write(act(index).replace("\n", " ") + "\n")
    os._exit(0)
