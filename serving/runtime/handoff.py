"""What a call takes beside its batch: from one thread to the other and back."""

from __future__ import annotations

import statistics
from collections import deque

_SAMPLES = 63  #: of which the median is taken


class Handoff:
    """The running median of what calls took beside their batch, of those that found the device idle.

    Profiles know nothing of it. It is a fraction of a millisecond, and so most of what a very small network takes: without it
    such networks are promised faster than they can be.
    """

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Take note of one."""
        self._samples.append(seconds)
        self.seconds = statistics.median(self._samples)
