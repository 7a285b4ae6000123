"""How long functions and the stages of a run take: warm, synchronised, interleaved, within a limit (GMorph, section 5).

A mean of a few runs one after the other says little on a shared machine. Here functions take turns, so that a slow spell of the
machine meets all of them alike, and the median is reported with its spread. Short ones run a few times in each turn, and the
first time does not count: what a model of a millisecond takes after fifty others have used the caches is a third more than
what it takes in service, and would depend on its company.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fusion.graph.errors import FusionError

Clock = Callable[[], float]
SHORT_SECONDS = 0.05  # below it a run is disturbed by what ran before
BURST = 3  # measured runs of a short function in each of its turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the runs of one function took.

    Attributes:
        median_seconds: Of all measured runs.
        iqr_seconds: Distance of the quartiles; 0 for a single run.
        quiet_seconds: Their tenth percentile: what a run takes that little gets in the way of. On a machine that others use
            it stays about the same from one hour to the next, where the median may double.
        num_runs: How many were measured.
    """

    median_seconds: float
    iqr_seconds: float
    quiet_seconds: float
    num_runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Return what measured runs come to.

        Example:
            >>> Timing.of([1.0, 2.0, 3.0, 4.0, 100.0])
            Timing(median_seconds=3.0, iqr_seconds=2.0, quiet_seconds=1.4, num_runs=5)
        """
        quiet, low, middle, high = (float(value) for value in np.percentile(seconds, [10, 25, 50, 75]))
        return cls(median_seconds=middle, iqr_seconds=high - low, quiet_seconds=quiet, num_runs=len(seconds))

    @property
    def relative_error(self) -> float:
        """Standard error of the median over the median, were the runs normally distributed."""
        if self.num_runs < 2 or self.median_seconds <= 0:
            return math.inf
        return 0.93 * self.iqr_seconds / math.sqrt(self.num_runs) / self.median_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedTiming:
    """What the runs of one function took, and each of their stages.

    The medians of the stages add up to less than that of the whole on a busy machine: most runs are interrupted somewhere,
    but no stage is in most runs.
    """

    total: Timing
    stages: tuple[Timing, ...]

    @classmethod
    def of(cls, runs: Sequence[Sequence[float]]) -> StagedTiming:
        """Return what measured runs, each a list of its stages' seconds, come to."""
        stages = tuple(Timing.of(seconds) for seconds in zip(*runs, strict=True))
        return cls(total=Timing.of([sum(run) for run in runs]), stages=stages)


class Marks(Protocol):
    """Notes points in time while something runs."""

    def mark(self) -> None:
        """Note now."""


class Recorder(Marks, Protocol):
    """Marks that can be read again."""

    @property
    def device(self) -> torch.device:
        """Where what is timed runs."""

    def seconds(self) -> list[float]:
        """Return what passed between one mark and the next, and forget the marks."""


class StagedRun(Protocol):
    """Runs something in stages; marks the begin and the end of each, all in all one mark more than there are stages."""

    def __call__(self, marks: Marks) -> object:
        """Run it once."""


def time_interleaved(
    functions: Sequence[Callable[[], object]],
    *,
    max_seconds: float,
    min_runs: int = 5,
    warmup: int = 3,
    precision: float = 0.005,
    device: torch.device | None = None,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Measure functions in turns.

    In a round each function has one turn, and each round begins with another one. Rounds end when the time is up, or once there
    are ``min_runs`` and the median of every function is known to ``precision``. Random states are as before afterwards; the
    garbage collector rests meanwhile, and everything runs in inference mode. What evaluates a module is to be put in eval
    mode by the caller, see :func:`evaluating`.

    Args:
        functions: Each is one whole run.
        max_seconds: No round begins after so many seconds, warm-up included. Each function is measured once all the same.
        min_runs: Measured runs of each function, if time allows.
        warmup: Rounds that are not measured; they take at most half of the time.
        precision: Relative standard error of the medians at which it ends early; 0 uses up the time.
        device: Where they run; None and the CPU need no synchronisation.
        clock: Seconds, monotonic.

    Returns:
        One timing per function, in their order.

    Raises:
        FusionError: If there is no function, or a number is out of range.

    Example:
        >>> ticks = iter(range(1000))
        >>> [fast] = time_interleaved([lambda: None], max_seconds=100, clock=lambda: float(next(ticks)))
        >>> fast.median_seconds
        1.0
    """

    def staged(function: Callable[[], object]) -> StagedRun:
        def run(marks: Marks) -> None:
            marks.mark()
            function()
            marks.mark()

        return run

    timings = time_stages(
        [staged(function) for function in functions],
        max_seconds=max_seconds,
        min_runs=min_runs,
        warmup=warmup,
        precision=precision,
        recorder=recorder_for(device or torch.device("cpu"), clock),
        clock=clock,
    )
    return [timing.total for timing in timings]


def time_stages(
    runs: Sequence[StagedRun],
    *,
    max_seconds: float,
    min_runs: int = 5,
    warmup: int = 3,
    precision: float = 0.005,
    recorder: Recorder | None = None,
    clock: Clock = time.perf_counter,
) -> list[StagedTiming]:
    """Measure each stage of runs that take turns; all else is as in :func:`time_interleaved`.

    Args:
        runs: Each marks the borders of its stages.
        max_seconds: No round begins after so many seconds.
        min_runs: Measured rounds, if time allows.
        warmup: Rounds that are not measured.
        precision: Relative standard error of each run's median total at which it ends early.
        recorder: What is marked; None: the time of day, for what runs on the CPU.
        clock: For the limit.

    Returns:
        One timing per run, in their order.

    Raises:
        FusionError: If there is no run, or a number is out of range.
    """
    seconds = stage_seconds(
        runs,
        max_seconds=max_seconds,
        min_runs=min_runs,
        warmup=warmup,
        precision=precision,
        recorder=recorder,
        clock=clock,
    )
    return [StagedTiming.of(rounds) for rounds in seconds]


def stage_seconds(
    runs: Sequence[StagedRun],
    *,
    max_seconds: float,
    min_runs: int = 5,
    warmup: int = 3,
    precision: float = 0.005,
    recorder: Recorder | None = None,
    clock: Clock = time.perf_counter,
) -> list[list[list[float]]]:
    """Return what :func:`time_stages` sums up: for each run, each time that it was measured, the seconds of each stage."""
    _check(runs, max_seconds, min_runs, warmup)
    recorder = recorder or recorder_for(torch.device("cpu"))
    begin = clock()
    seconds: list[list[list[float]]] = [[] for _ in runs]
    with _undisturbed(recorder.device):
        for _ in range(warmup):
            for run in runs:
                run(recorder)
                recorder.seconds()
            if clock() - begin >= max_seconds / 2:
                break
        first = 0
        while first == 0 or not (clock() - begin >= max_seconds or _is_precise(seconds, min_runs, precision)):
            for offset in range(len(runs)):
                index = (first + offset) % len(runs)
                seconds[index] += _turn(runs[index], recorder, is_alone=len(runs) == 1)
            first += 1
    return seconds


def recorder_for(device: torch.device, clock: Clock = time.perf_counter) -> Recorder:
    """Return what notes times on a device.

    On a GPU the marks are events on its stream, so that stages add up to the whole without waiting in between, and ``clock``
    is not used.
    """
    return _EventMarks(device) if device.type == "cuda" else _ClockMarks(device, clock)


def work_clock(device: torch.device) -> Clock:
    """Return a clock that stands still while other processes have the CPU, if there is one for what runs on ``device``.

    There is where one thread does all the work. It serves to compare: what people wait for is the time of day.
    """
    is_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if is_one_thread else time.perf_counter


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode for a while; each part has its own mode again afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        # parents come before their parts here, so that a part that differs has the last word
        for part, was_training in modes:
            if part.training != was_training:
                part.train(was_training)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Put the global random states of torch (of the CPU and ``device``), NumPy and Python back as they were."""
    devices = [device] if device.type != "cpu" else []
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - other people's code may draw from it
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with random_states_kept(device), torch.inference_mode():
            yield
    finally:
        if was_collecting:
            gc.enable()


class _ClockMarks:
    """Marks by a clock; a device other than the CPU is waited for first."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._wait = None if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)
        self._times: list[float] = []

    @property
    def device(self) -> torch.device:
        return self._device

    def mark(self) -> None:
        if self._wait is not None:
            self._wait()
        self._times.append(self._clock())

    def seconds(self) -> list[float]:
        times, self._times = self._times, []
        return [after - before for before, after in pairwise(times)]


class _EventMarks:
    """Marks on a GPU's stream: the time between two holds the work, and the waiting for the CPU to launch it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []

    @property
    def device(self) -> torch.device:
        return self._device

    def mark(self) -> None:
        if not self._events:
            torch.cuda.synchronize(self._device)
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)

    def seconds(self) -> list[float]:
        events, self._events = self._events, []
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]


def _turn(run: StagedRun, marks: Recorder, *, is_alone: bool) -> list[list[float]]:
    """Run once, or a few times if it is short; return the stages of those runs that count."""
    run(marks)
    stages = marks.seconds()
    if is_alone or sum(stages) >= SHORT_SECONDS:
        return [stages]
    found = []
    for _ in range(BURST):
        run(marks)
        found.append(marks.seconds())
    return found


def _is_precise(seconds: list[list[list[float]]], min_runs: int, precision: float) -> bool:
    num_runs = min(len(rounds) for rounds in seconds)
    # looked at each time that the runs have grown by an eighth: percentiles are not free
    if num_runs < min_runs or num_runs % max(1, num_runs // 8) or precision <= 0:
        return False
    return all(Timing.of([sum(stages) for stages in rounds]).relative_error <= precision for rounds in seconds)


def _check(runs: Sequence[StagedRun], max_seconds: float, min_runs: int, warmup: int) -> None:
    if not runs:
        raise FusionError("expected at least one function to measure, got none")
    if not (max_seconds > 0 and min_runs >= 1 and warmup >= 0):
        raise FusionError(
            f"expected max_seconds > 0, min_runs >= 1 and warmup >= 0; got {max_seconds}, {min_runs} and {warmup}"
        )
