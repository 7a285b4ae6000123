"""How much jobs that run at the same time on one device slow each other down, learnt from their step times. Free of torch.

The slots of a GPU share its cores and memory, those of a CPU host its memory's bandwidth. What two units gain by running
at the same time is the sum over both of *seconds of a step alone / seconds of a step together*: 2 if neither notices the other,
1 if one after the other would be as fast. It is kept by pairs of *kinds*, as what is measured of one job holds for all like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST_GAIN = 1.1  #: pairs below do not run at the same time
LEAST_STEPS = 10  #: an interval is a measurement if it has so many
LEAST_MEASURED = 3  #: a pair is judged by so many measurements of each of the two
WEIGHT = 0.3  #: of a new measurement in the moving average
FORGET_SECONDS = 1800.0  #: after so long without a measurement a pair is tried again
MAX_KINDS = 256
MAX_PAIRS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A unit that has a turn: who, of which kind, on which device, and how many steps it has done."""

    id: str
    kind: str
    device: str
    step: int


@dataclass(slots=True)
class _Average:
    seconds: float
    count: int = 1
    time: float = 0.0

    def add(self, seconds: float, now: float) -> None:
        self.seconds += WEIGHT * (seconds - self.seconds)
        self.count += 1
        self.time = now


@dataclass(frozen=True, slots=True)
class _Interval:
    """A time in which a unit's company on its device stayed as it was, from a step of its on."""

    company: tuple[str, ...]
    began: float | None
    step: int


@dataclass(slots=True)
class Interference:
    """The memory of who disturbs whom."""

    _alone: dict[str, _Average] = field(default_factory=dict)
    _beside: dict[tuple[str, str], _Average] = field(default_factory=dict)
    _intervals: dict[str, _Interval] = field(default_factory=dict)
    _gains: dict[frozenset[str], float] | None = None  # until something new is measured: each decision asks several times

    def watch(self, now: float, runners: Sequence[Runner]) -> None:
        """Look at who runs: to be called after every report. Steps between two looks in unchanged company are measured."""
        intervals = {}
        for runner in runners:
            others = [other for other in runners if other.device == runner.device and other.id != runner.id]
            company = tuple(sorted(other.id for other in others))
            last = self._intervals.get(runner.id)
            if last is None or last.company != company or runner.step < last.step:
                # from the next report on: nobody knows how long ago this one's steps were done
                intervals[runner.id] = _Interval(company, None, runner.step)
            elif runner.step == last.step or (last.began is not None and runner.step - last.step < LEAST_STEPS):
                intervals[runner.id] = last
            else:
                if last.began is not None and len(others) < 2:
                    self.note(
                        now, runner.kind, others[0].kind if others else None, (now - last.began) / (runner.step - last.step)
                    )
                intervals[runner.id] = _Interval(company, now, runner.step)
        self._intervals = intervals

    def note(self, now: float, kind: str, beside: str | None, step_seconds: float) -> None:
        """Take in a measured step time of a kind, alone on its device or beside one other kind."""
        self._gains = None
        if beside is None:
            _note(self._alone, kind, step_seconds, now, MAX_KINDS)
        else:
            _note(self._beside, (kind, beside), step_seconds, now, MAX_PAIRS)

    def gain(self, one: str, other: str) -> float | None:
        """Return how many times as fast two kinds are together as one after the other; None until measured often enough."""
        parts = []
        for kind, beside in ((one, other), (other, one)):
            alone, together = self._alone.get(kind), self._beside.get((kind, beside))
            if alone is None or together is None or min(alone.count, together.count) < LEAST_MEASURED:
                return None
            parts.append(alone.seconds / together.seconds)
        return sum(parts)

    def gains(self) -> dict[frozenset[str], float]:
        """Return the gain of each pair that was measured."""
        if self._gains is None:
            found = {frozenset(pair): self.gain(*pair) for pair in self._beside}
            self._gains = {pair: gain for pair, gain in found.items() if gain is not None}
        return self._gains

    def parted(self, now: float) -> frozenset[frozenset[str]]:
        """Return the pairs that are better one after the other, until it is time to see whether that still holds."""
        fresh = {frozenset(pair) for pair, average in self._beside.items() if now - average.time < FORGET_SECONDS}
        return frozenset(pair for pair, gain in self.gains().items() if gain < LEAST_GAIN and pair in fresh)

    def state_dict(self) -> dict[str, Any]:
        """Return what was learnt as JSON."""
        return {
            "alone": [[kind, each.seconds, each.count] for kind, each in self._alone.items()],
            "beside": [[*pair, each.seconds, each.count] for pair, each in self._beside.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any], now: float = 0.0) -> None:
        """Take over what was learnt before; it counts as measured now."""
        self._gains = None
        self._alone = {kind: _Average(seconds, count, now) for kind, seconds, count in state["alone"]}
        self._beside = {(one, other): _Average(seconds, count, now) for one, other, seconds, count in state["beside"]}


def _note(averages: dict[Any, _Average], key: Any, seconds: float, now: float, most: int) -> None:
    if seconds <= 0:
        return
    if key in averages:
        averages[key].add(seconds, now)
        return
    if len(averages) >= most:
        del averages[min(averages, key=lambda each: averages[each].time)]
    averages[key] = _Average(seconds, 1, now)
