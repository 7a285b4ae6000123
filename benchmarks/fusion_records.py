"""What a run of the fusion benchmark finds, as values; they stand in the JSON file as they are here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

THRESHOLDS = (0.0, 0.01, 0.02)
"""Drops that are allowed, as shares of the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to search.

    Attributes:
        name: For the tables.
        preset: Of :mod:`fusion.search.config`.
        policy: In place of the preset's, or None.
        thresholds: That one search serves.
    """

    name: str
    preset: str
    policy: str | None
    thresholds: tuple[float, ...]

    @property
    def title(self) -> str:
        """The name, with the threshold where a search serves one alone."""
        return self.name if len(self.thresholds) > 1 else f"{self.name} {100 * self.thresholds[0]:g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A threshold has a better model, by the validation part.

    Attributes:
        threshold: Which.
        seconds: Since the search began.
        number: Of the candidate.
        drop: On the validation part.
        predicted: Its speedup by the search's own table of costs.
        yardstick: By one table for all searches of the set and seed.
    """

    threshold: float
    seconds: float
    number: int
    drop: float
    predicted: float
    yardstick: float


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The model that a search hands out for a threshold.

    Attributes:
        threshold: Which.
        number: Of the candidate; 0 for the models side by side.
        seconds: When the search had it.
        rejected: Numbers of faster candidates that the held-out samples ruled out.
        drops: On the validation part, by task, as the search says.
        held_out_drops: On the held-out part, by task, counted by this benchmark: in accuracy, or in agreement where the
            search had no labels.
        accuracy_drops: On the held-out part, in accuracy by the labels, whether the search had them or not.
        yardstick: Speedup by one table for all searches of the set and seed.
        own_speedup: Speedup that the search measured itself.
        speedup: Measured with all finalists of the set and seed in turns, in one process, by the tenth percentile of the runs:
            a median may be several times off where others use the machine.
        median_speedup: The same by the median.
        latency_ms: Tenth percentile of one forward pass in that measurement.
        parameters: Number of them.
        flops: Per sample.
    """

    threshold: float
    number: int
    seconds: float
    rejected: tuple[int, ...]
    drops: Mapping[str, float]
    held_out_drops: Mapping[str, float]
    accuracy_drops: Mapping[str, float]
    yardstick: float
    own_speedup: float
    speedup: float
    median_speedup: float
    latency_ms: float
    parameters: int
    flops: int

    @property
    def is_over(self) -> bool:
        """Whether a task lost more on the held-out part than was allowed."""
        return max(self.held_out_drops.values()) > self.threshold + 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A candidate's end: when, after how many passes over the training part, and how."""

    seconds: float
    epochs: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search.

    Attributes:
        set: Name of the task set.
        seed: Of teachers and search.
        contender: How it searched.
        place: Its place in the order of the searches of this set and seed, from 0.
        load_before: Load average of the machine over the last minute before it.
        seconds: Until it had ended its search, in its own count.
        whole_seconds: With taking the models apart before and measuring the finalists after.
        full_epochs: Passes of a full training.
        why: What ended it.
        judged: Its candidates, in order.
        gains: In order.
        ends: By threshold, ascending.
    """

    set: str
    seed: int
    contender: Contender
    place: int
    load_before: float
    seconds: float
    whole_seconds: float
    full_epochs: int
    why: str
    judged: tuple[Judged, ...]
    gains: tuple[Gain, ...]
    ends: tuple[End, ...]

    def end(self, threshold: float) -> End:
        """Return the model for a threshold."""
        return next(end for end in self.ends if end.threshold == threshold)

    def arrivals(self, threshold: float) -> Iterator[tuple[float, float]]:
        """Yield (seconds, speedup by the yardstick) of what was found for a threshold and not ruled out by held-out samples."""
        end = self.end(threshold)
        for gain in self.gains:
            if gain.threshold == threshold and gain.number not in end.rejected:
                yield gain.seconds, gain.yardstick
        if end.number:
            yield end.seconds, end.yardstick

    def reached(self, threshold: float, speedup: float) -> float | None:
        """Return after how many seconds a speedup was reached; None if it never was."""
        return min((seconds for seconds, found in self.arrivals(threshold) if found >= speedup * (1 - 1e-9)), default=None)

    def fully_trained(self, seconds: float) -> int:
        """Return how many candidates had had their full training by then."""
        return sum(each.seconds <= seconds and each.epochs >= self.full_epochs for each in self.judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A model with one adapter before any training.

    Attributes:
        seed: Of teachers and draw.
        host: Block (task, number) whose input is shared.
        guest: Block that takes it.
        drops: Largest drop of a task, by how the adapter starts.
    """

    seed: int
    host: tuple[int, int]
    guest: tuple[int, int]
    drops: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What was found on one set with one seed.

    Attributes:
        set: Its name.
        seed: Of teachers and searches.
        models: What is fused.
        source: Of the data.
        has_labels: Whether searches saw labels.
        teacher_accuracy: On the held-out part, by task.
        teacher_seconds: To train them.
        original_ms: Tenth percentile of one forward pass of the models side by side, measured with the finalists.
        searches: In the order of the contenders, not of time.
        starts: Of single adapters; on one set only.
        failures: Searches that broke, with the reason.
    """

    set: str
    seed: int
    models: str
    source: str
    has_labels: bool
    teacher_accuracy: Mapping[str, float]
    teacher_seconds: float
    original_ms: float
    searches: tuple[Search, ...]
    starts: tuple[Start, ...]
    failures: tuple[str, ...]

    def search(self, name: str, threshold: float) -> Search | None:
        """Return the search by a contender that serves a threshold, if there is one."""
        found = (each for each in self.searches if each.contender.name == name and threshold in each.contender.thresholds)
        return next(found, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A search that trained what it would have ended early.

    Attributes:
        seed: Of teachers and search.
        candidates: Number of them.
        met: Those that were within a threshold.
        ended: Those that would have been ended early: (share of the full training, reason, whether it met a threshold,
            whether it then was the best of one).
    """

    seed: int
    candidates: int
    met: int
    ended: tuple[tuple[float, str, bool, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Random mutation passes over many tasks.

    Attributes:
        num_tasks: How many.
        num_passes: How many.
        equal: Passes after which every task's answer, alone and with all, was bit for bit that of its own path.
        adapters: In all of them.
        shared: Blocks that served more than one task, in all of them.
    """

    num_tasks: int
    num_passes: int
    equal: int
    adapters: int
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A search that was killed, and gone on with.

    Attributes:
        seed: Of the search.
        after_seconds: From its begin to the kill; None if it had ended before.
        share: Of the time of the search that was not killed.
        candidates: That were written down when it was killed.
        is_equal: Whether it ended with the same models, bit for bit.
        num_better: Thresholds for which those were not just the models side by side.
    """

    seed: int
    after_seconds: float | None
    share: float
    candidates: int
    is_equal: bool
    num_better: int
