"""Which jobs share a slot: slots and threads planned from predicted times, and memory counted before anyone is let in.

On a CPU host two single-threaded slots beat one slot of two threads as long as there is work for both, but a job
that is longer than everything else together should have all threads. A job keeps its thread count for life, as
another one would change its rounding; so the choice is made beforehand, here. Pure functions of frozen records.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from unified.quantities import bytes_text, plural, seconds_text


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """What a job would take alone.

    Attributes:
        name: The job.
        seconds_by_threads: Predicted seconds from first to last step, by number of threads; 1 must be there.
    """

    name: str
    seconds_by_threads: Mapping[int, float]

    def __post_init__(self) -> None:
        times = self.seconds_by_threads
        if 1 not in times or not all(0 <= seconds < math.inf for seconds in times.values()):
            raise ValueError(f"job {self.name!r}: expected finite seconds for 1 thread and more, got {dict(times)}")

    def seconds(self, threads: int) -> float:
        """Return the prediction for ``threads``, or for the next lower number that there is one for."""
        return self.seconds_by_threads[max(count for count in self.seconds_by_threads if count <= threads)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Slots that exist at the same time. A stage begins when the one before it is done.

    Attributes:
        threads: Intra-op threads of each slot; None on a GPU, where PyTorch's own default stays.
        slots: Number of slots.
        jobs: Names of the jobs that run in this stage, in the policy's order.
    """

    threads: int | None
    slots: int
    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The stages, in order, with each job in exactly one of them.

    Attributes:
        stages: One or two stages; none if there is no job and nothing was asked for.
        predicted_seconds: Predicted time until the last job is done; None if nothing was predicted.
        reason: Why it is this plan, in one line.
    """

    stages: tuple[Stage, ...]
    predicted_seconds: float | None
    reason: str

    @property
    def threads_by_job(self) -> dict[str, int | None]:
        """The thread count of each job."""
        return {name: stage.threads for stage in self.stages for name in stage.jobs}


def plan_slots(
    costs: Sequence[JobCost],
    cores: int,
    *,
    order: Sequence[str],
    slots: int | None = None,
    threads: int | None = None,
    sliceable: bool = False,
) -> Plan:
    """Plan slots and threads of a CPU host for the least predicted makespan.

    Without ``slots`` and ``threads``, the ``k`` longest jobs get all cores, one after another (the wide stage), and
    the others share ``cores // T`` slots of ``T`` threads (the narrow stage), for the best ``k`` and the best ``T``
    of 1, the powers of two and ``cores``. Of equally fast plans the one with fewer stages, then fewer slots, wins.

    Args:
        costs: The jobs.
        cores: Number of cores.
        order: Names of the jobs in the order in which the policy begins them; the stage of the first one goes first.
        slots: Number of slots, if asked for: the plan has one stage then. As many as the cores allow, if only
            ``threads`` is given.
        threads: Threads of each slot, if asked for; ``cores // slots`` if only ``slots`` is given.
        sliceable: The policy rotates: the jobs of a stage progress together and may change slots within it.

    Raises:
        ValueError: If a number is not positive, or ``order`` and ``costs`` do not name the same jobs.

    Example:
        >>> costs = [JobCost(name=name, seconds_by_threads={1: 60, 2: 40}) for name in ("a", "b")]
        >>> plan_slots(costs, 2, order=["a", "b"]).reason
        '2 slots of 1 thread: 60.0 s predicted, against 80.0 s on 1 slot of 2 threads'
    """
    _check(costs, cores, order, slots, threads)
    rank = {name: position for position, name in enumerate(order)}
    jobs = tuple(sorted(costs, key=lambda cost: rank[cost.name]))
    if not jobs and slots is None:
        return Plan(stages=(), predicted_seconds=0.0, reason="no jobs")
    if slots is not None or threads is not None:
        return _fixed(jobs, cores, slots, threads, sliceable)
    plain = list(_one_stage_layouts(jobs, cores, sliceable))
    best = min(chain(plain, _two_stage_layouts(jobs, cores, sliceable)), key=_Layout.sort_key)
    others = [layout for layout in plain if layout.stages != best.stages]
    against = min(others, key=_Layout.sort_key, default=None)
    reason = f"{_describe(best.stages)}: {seconds_text(best.seconds)} predicted"
    if against is not None:
        reason += f", against {seconds_text(against.seconds)} on {_describe(against.stages)}"
    return Plan(stages=best.stages, predicted_seconds=best.seconds, reason=reason)


def plan_devices(names: Sequence[str], num_devices: int) -> Plan:
    """Plan one slot for each GPU; any job may run on any of them.

    Raises:
        ValueError: If there is no device.
    """
    if num_devices < 1:
        raise ValueError(f"expected at least 1 device, got {num_devices}; use device 'cpu'")
    stage = Stage(threads=None, slots=num_devices, jobs=tuple(names))
    return Plan(stages=(stage,), predicted_seconds=None, reason=f"{plural(num_devices, 'slot')}, one for each GPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The memory of a job on a slot.

    Attributes:
        resident_bytes: Held for as long as it is on the slot: weights, buffers, gradients, optimizer state.
        peak_bytes: Highest total during one of its steps, ``resident_bytes`` included. Mapped datasets are in neither.
    """

    resident_bytes: int
    peak_bytes: int

    @property
    def step_bytes(self) -> int:
        """What a step needs on top of what is resident; not negative, even if a measured peak is below an estimate."""
        return max(0, self.peak_bytes - self.resident_bytes)


def stack_demand(members: Sequence[Demand]) -> Demand:
    """Return the memory of jobs that step as one: all their steps at the same time, and one more copy of what they hold.

    >>> stack_demand([Demand(resident_bytes=10, peak_bytes=14), Demand(resident_bytes=10, peak_bytes=15)])
    Demand(resident_bytes=20, peak_bytes=49)
    """
    resident = sum(demand.resident_bytes for demand in members)
    return Demand(resident_bytes=resident, peak_bytes=2 * resident + sum(demand.step_bytes for demand in members))


def admits(candidate: Demand, resident: Sequence[Demand], capacity_bytes: int) -> bool:
    """Say whether ``candidate`` fits beside those who are resident: one of them steps while the others are parked.

    The paper's equation (2) takes the maximum over the sub-models; the weights of the parked ones count here, too.
    """
    return _needed_bytes(candidate, resident) <= capacity_bytes


def why_not(candidate: Demand, resident: Sequence[Demand], capacity_bytes: int) -> str:
    """Explain in one line why ``candidate`` is not admitted; empty if it is.

    >>> why_not(Demand(resident_bytes=2**30, peak_bytes=3 * 2**30), [], 2**31)
    'memory: needs 3 GiB, the slot has 2 GiB; lower batch_size or use a bigger device'
    """
    if admits(candidate, resident, capacity_bytes):
        return ""
    capacity, alone = bytes_text(capacity_bytes), _needed_bytes(candidate, ())
    if alone > capacity_bytes:
        return f"memory: needs {bytes_text(alone)}, the slot has {capacity}; lower batch_size or use a bigger device"
    needed, others = bytes_text(_needed_bytes(candidate, resident)), plural(len(resident), "other job")
    return f"memory: needs {needed} together with {others}, the slot has {capacity}; waits until one of them ends"


def _needed_bytes(candidate: Demand, resident: Sequence[Demand]) -> int:
    everyone = [candidate, *resident]
    return sum(demand.resident_bytes for demand in everyone) + max(demand.step_bytes for demand in everyone)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """A possible answer and its predicted makespan."""

    stages: tuple[Stage, ...]
    seconds: float

    def sort_key(self) -> tuple[float, int, int]:
        # rounded: the same times summed in another order are no reason to prefer a more complicated plan
        return round(self.seconds, 6), len(self.stages), sum(stage.slots for stage in self.stages)


def _one_stage_layouts(jobs: Sequence[JobCost], cores: int, sliceable: bool) -> Iterator[_Layout]:
    for threads in [*_narrow_threads(cores), cores]:
        times = {job.name: job.seconds(threads) for job in jobs}
        yield _layout(times, threads, cores // threads, sliceable)


def _two_stage_layouts(jobs: Sequence[JobCost], cores: int, sliceable: bool) -> Iterator[_Layout]:
    wide_times = {job.name: job.seconds(cores) for job in jobs}
    for threads in _narrow_threads(cores):
        times = {job.name: job.seconds(threads) for job in jobs}
        longest_first = sorted(times, key=lambda name: -times[name])
        for num_wide in range(1, len(jobs)):
            wide_names = set(longest_first[:num_wide])
            wide = _layout({name: wide_times[name] for name in times if name in wide_names}, cores, 1, sliceable)
            rest = {name: seconds for name, seconds in times.items() if name not in wide_names}
            narrow = _layout(rest, threads, cores // threads, sliceable)
            yield _in_turn(wide, narrow) if jobs[0].name in wide_names else _in_turn(narrow, wide)


def _narrow_threads(cores: int) -> list[int]:
    return [2**power for power in range(cores.bit_length()) if 2**power < cores]


def _layout(times: Mapping[str, float], threads: int, slots: int, sliceable: bool) -> _Layout:
    """One stage of jobs, in the policy's order, with as many of ``slots`` as there is work for."""
    seconds = _shared(times.values(), slots) if sliceable else _listed(times.values(), slots)
    stage = Stage(threads=threads, slots=min(slots, len(times)), jobs=tuple(times))
    return _Layout(stages=(stage,), seconds=seconds)


def _in_turn(first: _Layout, second: _Layout) -> _Layout:
    return _Layout(stages=first.stages + second.stages, seconds=first.seconds + second.seconds)


def _listed(times: Collection[float], slots: int) -> float:
    """Makespan if each slot that falls idle takes the next job to its end (list scheduling)."""
    ends = [0.0] * slots
    for seconds in times:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def _shared(times: Collection[float], slots: int) -> float:
    """Makespan if all jobs progress together: no job on two slots at once, no slot idle before the last job."""
    return max(max(times, default=0.0), sum(times) / slots)


def _fixed(jobs: Sequence[JobCost], cores: int, slots: int | None, threads: int | None, sliceable: bool) -> Plan:
    num_threads = threads or max(1, cores // (slots or 1))
    # not cut to the number of jobs: who asks for slots may hand in more jobs later
    num_slots = slots or max(1, cores // num_threads)
    times = {job.name: job.seconds(num_threads) for job in jobs}
    layout = _layout(times, num_threads, num_slots, sliceable)
    stage = replace(layout.stages[0], slots=num_slots)
    reason = f"{_describe((stage,))}, as asked: {seconds_text(layout.seconds)} predicted"
    return Plan(stages=(stage,), predicted_seconds=layout.seconds, reason=reason)


def _describe(stages: Sequence[Stage]) -> str:
    parts = []
    for stage in stages:
        who = stage.jobs[0] if len(stage.jobs) == 1 else plural(len(stage.jobs), "job")
        where = f"{plural(stage.slots, 'slot')} of {plural(stage.threads or 1, 'thread')}"
        parts.append(where if len(stages) == 1 else f"{who} on {where}")
    return ", then ".join(parts)


def _check(costs: Sequence[JobCost], cores: int, order: Sequence[str], slots: int | None, threads: int | None) -> None:
    for name, count in (("cores", cores), ("slots", slots), ("threads", threads)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if sorted(order) != sorted(cost.name for cost in costs) or len(set(order)) < len(order):
        raise ValueError(f"order {list(order)} does not name each job once: {[cost.name for cost in costs]}")
