"""Intra-op threads of a process, each on a core of its own.

Left to themselves, the two OpenMP threads of a process were seen on one core for seconds, spinning at each other's barriers: a
small conv net's step took 304 ms with two threads, 56 ms with one, and 33 ms with two threads on a core each (2-core virtual
machine, torch 2.13). The number of threads decides rounding; where they run does not.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

_TASKS = Path("/proc/self/task")


def use_threads(num_threads: int, first_core: int | None = None) -> None:
    """Use ``num_threads`` intra-op threads in the calling thread from now on.

    Args:
        num_threads: How many.
        first_core: With more than one thread, the calling thread goes to this core (its rank among the process's usable
            ones) and each helper thread to one of the next; None, or where the system cannot: wherever the system likes.
    """
    torch.set_num_threads(num_threads)
    if not hasattr(os, "sched_setaffinity") or not _TASKS.is_dir():
        return
    cores = _usable_cores()
    if num_threads == 1 or first_core is None or first_core + num_threads > len(cores):
        os.sched_setaffinity(0, cores)
        return
    own = threading.get_native_id()
    for core, thread in zip(cores[first_core:], [own, *_team(num_threads)], strict=False):
        os.sched_setaffinity(thread, {core})


def _usable_cores() -> list[int]:
    """Return the cores this process may use, as they were before any thread was given one of its own."""
    if not _ALL_CORES:
        _ALL_CORES.extend(sorted(os.sched_getaffinity(0)))
    return _ALL_CORES


#: Remembered from the first call on: afterwards the calling thread's own set may be a single core.
_ALL_CORES: list[int] = []


def _team(num_threads: int) -> list[int]:
    """Let OpenMP make its threads and return them: those that appear with a parallel operation, or were made by one before."""
    before = _threads()
    torch.ones(num_threads << 16).add_(1)
    there = _threads()  # a team that became smaller has lost some
    _TEAM[:] = [thread for thread in _TEAM if thread in there] + [thread for thread in there if thread not in before]
    return _TEAM[: num_threads - 1]


#: OpenMP's helper threads of this process, in the order of their making.
_TEAM: list[int] = []


def _threads() -> list[int]:
    return sorted(int(task.name) for task in _TASKS.iterdir())
