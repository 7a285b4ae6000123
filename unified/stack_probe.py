"""Does it pay to step as one? Measured in real training steps, alternately in both ways, so that no work is thrown away."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

NUM_WARM = 2  #: steps each way that are not timed
BLOCK = 5  #: steps one way before the other way's
MIN_SECONDS = 0.3  #: of steps each way; more blocks are made while steps are shorter
MAX_STEPS = 50  #: timed steps each way, however short they are


@dataclass(slots=True)
class Probe:
    """Says which way the next step goes, and takes its time, until it is known which way is faster.

    Attributes:
        side_by_side: Seconds of steps in which each member stepped alone, over all members.
        stacked: Seconds of steps as one.
        is_verified: A step as one was compared with plain steps.

    Example:
        >>> probe = Probe()
        >>> while not probe.is_over:
        ...     probe.note(0.05 if probe.steps_as_one else 0.1)
        >>> round(probe.speedup, 3), len(probe.stacked)
        (2.0, 10)
    """

    side_by_side: list[float] = field(default_factory=list)
    stacked: list[float] = field(default_factory=list)
    is_verified: bool = False
    _num_noted: int = 0

    @property
    def steps_as_one(self) -> bool:
        """Whether the next step is to be made as one."""
        if self._num_noted < 2 * NUM_WARM:
            return self._num_noted >= NUM_WARM
        return (self._num_noted - 2 * NUM_WARM) // BLOCK % 2 == 1

    @property
    def is_over(self) -> bool:
        """Whether enough was measured: at the end of a block as one, so that both ways had as many steps."""
        if len(self.stacked) < BLOCK or len(self.side_by_side) != len(self.stacked):
            return False
        return len(self.stacked) >= MAX_STEPS or min(sum(self.side_by_side), sum(self.stacked)) >= MIN_SECONDS

    @property
    def speedup(self) -> float:
        """How many times faster a step as one is than steps side by side; medians, as a busy host delays some."""
        return median(self.side_by_side) / max(median(self.stacked), 1e-9)

    def note(self, seconds: float) -> None:
        """Take note of a step of all members, made the way that was asked for."""
        if self._num_noted >= 2 * NUM_WARM:
            (self.stacked if self.steps_as_one else self.side_by_side).append(seconds)
        self._num_noted += 1
