"""Whether the kernel killed for want of memory: its counters, so that its SIGKILL can be told from an operator's.

Reference: https://docs.kernel.org/admin-guide/cgroup-v2.html, ``memory.events``.
"""

from __future__ import annotations

from pathlib import Path


class OomWatch:
    """Tells whether the kernel has killed for want of memory since it was last asked."""

    def __init__(self) -> None:
        self._seen = num_oom_kills()

    def has_struck(self) -> bool:
        """Whether it has since this was last called, or made."""
        before, self._seen = self._seen, num_oom_kills()
        return self._seen > before


def num_oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory, on this host and in this process's cgroup.

    A kill in the cgroup may count in both places: compare two readings, do not take one for a number of kills. What cannot
    be read counts 0, so on another system than Linux the result is 0.
    """
    return _counter(Path("/proc/vmstat")) + _counter(_memory_events(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


def _memory_events(membership: Path, hierarchy: Path) -> Path:
    """Return the file of the cgroup that ``membership`` names in its line ``0::/path``, the one of version 2."""
    for line in _lines(membership):
        if line.startswith("0::"):
            return hierarchy / line.removeprefix("0::").strip("/") / "memory.events"
    return hierarchy / "memory.events"


def _counter(path: Path) -> int:
    """Return the value of the line ``oom_kill N``."""
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdecimal():
            return int(value)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
