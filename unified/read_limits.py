"""What a process that reads somebody's job may use: CPU time, memory, time on the clock. Free of torch."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from unified.device import host_memory

_STATUS = Path("/proc/self/status")
_GRACE_SECONDS = 5  #: between SIGXCPU, which tells the limit from other deaths, and SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """Limits of one reading.

    Attributes:
        wall_seconds: Time on the clock.
        cpu_seconds: CPU time of all threads.
        memory_bytes: Memory beyond what the process has when reading begins, files that are only mapped aside; None: nine
            tenths of what the host has left then.
    """

    wall_seconds: float = 1800.0
    cpu_seconds: float = 1800.0
    memory_bytes: int | None = None


DEFAULT_LIMITS = ReadLimits()


def apply_limits(limits: ReadLimits) -> None:
    """Let the system hold this process to ``limits`` from now on; ``wall_seconds`` is for its parent to watch.

    Too much CPU time ends the process with SIGXCPU; too much memory makes allocations fail, on Linux only.
    """
    _lower(resource.RLIMIT_CPU, max(1, round(limits.cpu_seconds)), above=_GRACE_SECONDS)
    _lower(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        more = limits.memory_bytes
        _lower(resource.RLIMIT_DATA, _data_bytes() + (host_memory().available_bytes * 9 // 10 if more is None else more))


def _lower(kind: int, value: int, above: int = 0) -> None:
    """Set a limit and, ``above`` higher, the hard one that nobody can raise again; neither above what there is."""
    soft, hard = resource.getrlimit(kind)
    infinity = resource.RLIM_INFINITY
    new_soft = value if soft == infinity else min(value, soft)
    new_hard = value + above if hard == infinity else min(value + above, hard)
    resource.setrlimit(kind, (min(new_soft, new_hard), new_hard))


def _data_bytes() -> int:
    """Return the size of the private writable memory of this process, as RLIMIT_DATA counts it."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0
