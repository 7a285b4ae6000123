"""What a call takes beyond what was predicted of it: the way between threads, and whatever keeps the event loop busy."""

from __future__ import annotations

import statistics
from collections import deque

SAMPLES = 63  #: at most, of which the median is taken
FRESH_SECONDS = 2.0  #: older samples do not count
_SAME = 0.1  #: a median within this share of the one in use changes nothing


class Overhead:
    """The running median of what the last calls took beyond their predicted wait and inference.

    Profiles know nothing of it. It is a fraction of a millisecond on an idle machine, and so most of what a very small network
    takes, and several milliseconds where many requests are read and written at the same time: without it calls are promised
    faster than they can be. Old samples are forgotten, so that a slow spell cannot keep refusing the requests that would show
    that it is over. What is in use changes in steps, since selection remembers what it found for equal costs.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._used = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Take note of one call that ended at a reading of the clock."""
        self._samples.append((now, seconds))

    def seconds(self, now: float) -> float:
        """Return what to add for each call, >= 0."""
        while self._samples and self._samples[0][0] < now - FRESH_SECONDS:
            self._samples.popleft()
        median = max(0.0, statistics.median(seconds for _, seconds in self._samples)) if self._samples else 0.0
        if not abs(median - self._used) <= _SAME * self._used:
            self._used = median
        return self._used
