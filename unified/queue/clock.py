"""The clocks that the store reads: one to show, one to count by, and which boot of which host the second belongs to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where the store gets the time from.

    Attributes:
        wall: Seconds since 1970, UTC. People see it; it may jump, so no lease rests on it.
        monotonic: Seconds that only ever go forward, at the same pace for all processes of a host until it is booted anew.
        boot_id: Which boot of which host ``monotonic`` belongs to.
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    boot_id: Callable[[], str]

    @classmethod
    def system(cls) -> Self:
        """Return the clocks of this host."""
        return cls(wall=time.time, monotonic=time.monotonic, boot_id=_boot_id)


@cache
def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        # Without a boot id nobody can tell which boot a lease is of; then a lease holds within one process alone.
        return f"process-{uuid.uuid4()}"
