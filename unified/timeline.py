"""Who trained when on which slot, and memory over time: recorded in bounded memory, drawn at the end."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from unified.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobSubmitted,
    MemorySampled,
    RunStarted,
    TurnEnded,
    TurnStarted,
    WorkerLost,
)

NUM_COLUMNS = 2048
FIRST_WIDTH = 2.0**-10  #: seconds; the width of a column doubles whenever the run outgrows the columns
MAX_SAMPLES = 4096


@dataclass(slots=True, kw_only=True)
class Ending:
    """How and when a job ended: ``kind`` is the event's class."""

    at: float
    kind: type[Event]


@dataclass(slots=True, kw_only=True)
class Lane:
    """One job on one slot.

    Attributes:
        first_at: When its first turn there began.
        last_at: When its latest turn there ended.
        busy: Seconds of training in each column of time.
    """

    job: str
    slot: int
    first_at: float
    last_at: float
    busy: array[float] = field(default_factory=lambda: array("d", bytes(8 * NUM_COLUMNS)))


class Timeline:
    """A listener that keeps, for each job and slot, how much of each column of time was spent in turns.

    Any number of turns of any length takes the same memory: 16 KiB for each pair of job and slot. Neighbouring
    turns merge by falling into the same or adjacent columns, of which a long run fills more than half.

    Attributes:
        width: Seconds per column.
        end: Time of the latest event.
        submitted: Job to the time of its submission.
        endings: Job to its end, for those that have ended.
        lanes: (slot, job) to its lane.
        memory: (time, bytes) in order of time.
    """

    def __init__(self) -> None:
        self.width = FIRST_WIDTH
        self.end = 0.0
        self.slots: tuple[str, ...] = ()
        self.scheduler = ""
        self.submitted: dict[str, float] = {}
        self.endings: dict[str, Ending] = {}
        self.lanes: dict[tuple[int, str], Lane] = {}
        self.memory: list[tuple[float, int]] = []
        self._open: dict[str, tuple[int, float]] = {}

    def __call__(self, event: Event) -> None:
        """Take note of ``event``."""
        self.end = max(self.end, event.at)
        match event:
            case TurnStarted():
                self._open[event.job] = (event.slot, event.at)
            case TurnEnded():
                self._close(event.job, event.at)
            case MemorySampled():
                self._sample(event.at, event.bytes_in_use)
            case JobSubmitted():
                self.submitted[event.job] = event.at
            case JobFinished() | JobFailed() | JobCancelled():
                self._close(event.job, event.at)
                self.endings[event.job] = Ending(at=event.at, kind=type(event))
            case WorkerLost():
                for job in event.jobs:
                    self._close(job, event.at)
            case RunStarted():
                self.slots, self.scheduler = event.slots, event.scheduler

    def draw(self, path: Path) -> None:
        """Draw what was recorded into a PNG; turns still open end at the latest event."""
        from unified.timeline_plot import plot  # matplotlib, imported only by who draws

        for job in list(self._open):
            self._close(job, self.end)
        plot(self, path)

    def _close(self, job: str, at: float) -> None:
        """End the job's open turn, if it has one."""
        if job not in self._open:
            return
        slot, begin = self._open.pop(job)
        lane = self.lanes.get((slot, job))
        if lane is None:
            lane = self.lanes[slot, job] = Lane(job=job, slot=slot, first_at=begin, last_at=at)
        lane.last_at = at
        while at >= self.width * NUM_COLUMNS:
            self._widen()
        self._fill(lane.busy, begin, at)

    def _fill(self, busy: array[float], begin: float, end: float) -> None:
        first, last = int(begin / self.width), int(end / self.width)
        if first == last:
            busy[first] += end - begin
            return
        busy[first] += (first + 1) * self.width - begin
        for column in range(first + 1, last):
            busy[column] += self.width
        busy[last] += end - last * self.width

    def _widen(self) -> None:
        """Make columns twice as wide: each takes the time of two."""
        self.width *= 2
        rest = array("d", bytes(8 * (NUM_COLUMNS // 2)))
        for lane in self.lanes.values():
            pairs = zip(lane.busy[::2], lane.busy[1::2], strict=True)
            lane.busy = array("d", (left + right for left, right in pairs)) + rest

    def _sample(self, at: float, num_bytes: int) -> None:
        self.memory.append((at, num_bytes))
        if len(self.memory) > MAX_SAMPLES:
            pairs = zip(self.memory[::2], self.memory[1::2], strict=False)
            self.memory = [max(left, right, key=lambda sample: sample[1]) for left, right in pairs]


def draw_timeline(events: Iterable[Event], path: Path) -> None:
    """Draw who trained when on which slot, and memory over time, into a PNG.

    Args:
        events: The run's events in order of time.
        path: Where to; an existing file is replaced.
    """
    timeline = Timeline()
    for event in events:
        timeline(event)
    timeline.draw(path)
