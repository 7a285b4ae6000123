"""Before a run: which slots, how many threads, in what order, and what it would need. Free of torch.

On a GPU there is one slot per device. On a CPU host slots and threads are planned together from the jobs' predicted lengths
(:func:`unified.packing.plan_slots`): step times measured by trial steps where there are any, guessed from operations otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

from schedulers import base
from schedulers.checks import wrong_grant
from unified.device import gpu_memory, host_memory, num_usable_cores
from unified.errors import UnifiedError
from unified.grouping import Candidate, Rules, group
from unified.job_state import ENDED
from unified.ledger import JobRecord
from unified.packing import JobCost, Plan, Stage, plan_devices, plan_slots
from unified.quantities import plural
from unified.run_plan import PlannedJob, RunPlan
from unified.stacks import Stacks
from unified.step_time import step_seconds_guess

GPU_MEMORY_SHARE = 0.8  #: of what is free on a GPU: a tenth is for datasets, the rest for context and fragmentation
MEMORY_SHARE = 0.9  #: of what is free may be planned for; the rest is for libraries and the page cache


class Planner:
    """Knows the machine and makes plans for it.

    Args:
        devices: ``("cpu",)`` or GPUs such as ``("cuda:0", "cuda:1")``.
        slots: Number of slots, or ``"auto"``.
        threads: Threads per CPU slot, or None to choose.

    Attributes:
        times_steps: The scheduler decides by the time of a step, so that it is measured before the run wherever it can be.

    Raises:
        UnifiedError: If slots or threads are impossible.
    """

    def __init__(self, *, devices: tuple[str, ...], slots: int | str, threads: int | None) -> None:
        self.devices = devices
        self.num_cores = num_usable_cores()
        self._slots = _checked_slots(slots)
        self._threads = _checked_threads(threads, self.num_cores)
        share = MEMORY_SHARE if self.is_on_cpu else GPU_MEMORY_SHARE
        self.times_steps = False
        self.capacity_bytes = int(_free_bytes(devices) * share)

    @property
    def is_on_cpu(self) -> bool:
        """Whether this is a CPU host's plan."""
        return self.devices == ("cpu",)

    @property
    def chooses_threads(self) -> bool:
        """Whether threads are left to the plan, so that step times matter."""
        return self.is_on_cpu and self._slots is None and self._threads is None and self.num_cores > 1

    @property
    def trial_threads(self) -> int:
        """With how many threads steps are first timed: those that every job will have, or 1 if that is yet to be planned."""
        if self.chooses_threads or not self.is_on_cpu:
            return 1
        return self._threads or max(1, self.num_cores // (self._slots or 1))

    def plan(self, records: Sequence[JobRecord], scheduler: base.Scheduler) -> Plan:
        """Return stages for the jobs that have not ended; a job that began earlier keeps its threads."""
        waiting = [record for record in records if record.state not in ENDED]
        if not self.is_on_cpu:
            return plan_devices([record.name for record in waiting], self._slots or len(self.devices))
        if any(record.num_threads is not None for record in waiting):
            return self._taken_up(waiting)
        order = ranking(waiting, scheduler)
        return plan_slots(
            [self._cost(record) for record in waiting],
            self.num_cores,
            order=order,
            slots=self._slots,
            threads=self._threads,
            sliceable=rotates(scheduler),
        )

    def least_slots(self, records: Sequence[JobRecord], scheduler: base.Scheduler) -> int:
        """Return how many slots there will be at any time, at least."""
        return min((stage.slots for stage in self.plan(records, scheduler).stages), default=1)

    def untimed(self, plan: Plan, records: Sequence[JobRecord]) -> tuple[int, list[JobRecord]] | None:
        """Return a number of threads, and the jobs the plan gives that many on a mere guess; None if there are none.

        Time these, plan again, and so on: what a second thread brings differs between models and machines, and on a busy
        host it may cost instead.
        """
        if not self.chooses_threads:
            return None
        threads = plan.threads_by_job
        for record in records:
            count = threads.get(record.name)
            if count and record.trial_seconds and count not in record.trial_seconds:
                same = [other for other in records if threads.get(other.name) == count]
                return count, [other for other in same if other.trial_seconds and count not in other.trial_seconds]
        return None

    def devices_of(self, stage: Stage) -> tuple[str, ...]:
        """Return the device of each of the stage's slots; several may share a GPU."""
        return tuple(self.devices[index % len(self.devices)] for index in range(stage.slots))

    def capacity_of(self, stage: Stage) -> int:
        """Return the bytes that jobs may take: together on a CPU host, on each slot with GPUs."""
        sharers = 1 if self.is_on_cpu else -(-stage.slots // len(self.devices))
        return self.capacity_bytes // sharers

    def describe(self, plan: Plan, records: Sequence[JobRecord], scheduler: base.Scheduler, stacks: Stacks) -> RunPlan:
        """Return the plan in words and numbers, for people."""
        threads = plan.threads_by_job
        by_name = {record.name: record for record in records}
        jobs = []
        for order, name in enumerate(ranking([by_name[name] for name in threads], scheduler), start=1):
            jobs.append(_planned(by_name[name], order, threads[name]))
        shared: dict[str, tuple[str, ...]] = {}
        for job in jobs:
            shared[job.dataset_key] = (*shared.get(job.dataset_key, ()), job.name)
        return RunPlan(
            jobs=tuple(jobs),
            stages="\n".join(map(_describe, plan.stages)),
            reason=plan.reason,
            predicted_seconds=plan.predicted_seconds,
            stacks=tuple(names for stage in plan.stages for names in _stacks_of(stage, by_name, stacks)),
            shared={key: names for key, names in shared.items() if len(names) > 1},
        )

    def _taken_up(self, waiting: Sequence[JobRecord]) -> Plan:
        """A run taken up again: threads as they were; what is new joins the jobs with the fewest."""
        fewest = min(record.num_threads for record in waiting if record.num_threads is not None)
        groups: dict[int, list[str]] = {}
        for record in waiting:
            groups.setdefault(record.num_threads or fewest, []).append(record.name)
        stages = tuple(
            Stage(threads=count, slots=self._slots_for(count), jobs=tuple(names)) for count, names in sorted(groups.items())
        )
        reason = "taken up again: every job keeps the threads it began with"
        return Plan(stages=stages, predicted_seconds=None, reason=reason)

    def _slots_for(self, num_threads: int) -> int:
        return self._slots or max(1, self.num_cores // num_threads)

    def _cost(self, record: JobRecord) -> JobCost:
        estimate, steps = record.submission.estimate, record.submission.num_steps - record.step
        guess = {count: step_seconds_guess(estimate, count) for count in _thread_counts(self.num_cores)}
        # A measured step at one thread corrects the guesses, whose ratio then says what more threads would bring.
        trials = record.trial_seconds
        scale = trials[1] / guess[1] if trials.get(1) and guess[1] else 1.0
        seconds = {count: steps * trials.get(count, value * scale) for count, value in guess.items()}
        return JobCost(name=record.name, seconds_by_threads=seconds)


def _stacks_of(stage: Stage, records: Mapping[str, JobRecord], stacks: Stacks) -> list[tuple[str, ...]]:
    """Return the stacks that a stage would begin with, if all its jobs were there at once and had the memory."""
    waiting = [records[name] for name in records if name in stage.jobs]
    rules = Rules(num_slots=stage.slots, max_size=stacks.max_size, num_running={}, least_sizes={}, bans=frozenset())
    candidates = [Candidate(name=record.name, key=stacks.group_key(record, stage.threads)) for record in waiting]
    return [names for names in group(candidates, rules) if len(names) > 1]


def _free_bytes(devices: tuple[str, ...]) -> int:
    """Return the free memory of the host, or of the GPU that has least."""
    sizes = [host_memory()] if devices == ("cpu",) else [gpu_memory(device) for device in devices]
    free = [size.available_bytes for size in sizes if size is not None]
    if not free:
        raise UnifiedError(f"NVML does not answer for {', '.join(devices)}, so memory cannot be planned; use --device cpu")
    return min(free)


def ranking(records: Sequence[JobRecord], scheduler: base.Scheduler) -> list[str]:
    """Return names in the order in which the policy would begin them on one slot."""
    waiting = {record.name: record.view() for record in records}
    order: list[str] = []
    while waiting:
        views = [replace(view, slot_id=None) for view in waiting.values()]
        slots = [base.SlotView(id=0)]
        try:
            grants = scheduler.select(0.0, views, slots)
            wrong = wrong_grant(grants, views, slots)
        except Exception:  # noqa: BLE001 - it may be a plug-in; what it does wrong in the run itself is told
            return [*order, *waiting]
        if wrong is not None:
            return [*order, *waiting]
        order.append(grants[0].unit_id)
        del waiting[grants[0].unit_id]
    return order


def rotates(scheduler: base.Scheduler) -> bool:
    """Whether the policy lets equal jobs progress together: of two, the other one goes on when the first has had a turn.

    Tried on a copy of the policy, as its memory changes by that.
    """
    try:
        return _rotates(deepcopy(scheduler))
    except Exception:  # noqa: BLE001 - a plug-in that cannot be copied, or raises
        return False


def _rotates(policy: base.Scheduler) -> bool:
    units = [base.JobView(id=name, submit_time=0.0, steps_total=1000, steps_per_epoch=10, step_seconds=1.0) for name in "ab"]
    tell = policy.on_event if isinstance(policy, base.Observes) else lambda event: None
    for unit in units:
        tell(base.Submitted(unit_id=unit.id, sequence=0))
    grants = policy.select(0.0, units, [base.SlotView(id=0)])
    if not grants or isinstance(grants[0].quantum, base.UntilDone):
        return False
    first = grants[0].unit_id
    tell(base.TurnDone(unit_id=first, sequence=1, steps=10, seconds=10.0))
    had = {"steps_done": 10, "attained_seconds": 10.0, "waiting_since": 10.0, "has_begun": True, "slot_id": 0}
    after = [replace(unit, **had) if unit.id == first else unit for unit in units]
    return any(grant.unit_id != first for grant in policy.select(10.0, after, [base.SlotView(id=0)]))


def _describe(stage: Stage) -> str:
    kind = "GPU" if stage.threads is None else plural(stage.threads, "thread")
    return f"{plural(stage.slots, 'slot')} x {kind}: {', '.join(stage.jobs)}"


def _planned(record: JobRecord, order: int, threads: int | None) -> PlannedJob:
    submission, estimate = record.submission, record.submission.estimate
    seconds = record.trial_seconds.get(threads or 1)
    return PlannedJob(
        name=record.name,
        user=submission.spec.user,
        order=order,
        threads=threads,
        num_parameters=estimate.num_parameters,
        peak_bytes=estimate.peak_bytes,
        resident_bytes=estimate.resident_bytes,
        flops_per_step=estimate.flops_per_step,
        num_steps=submission.num_steps,
        predicted_seconds=None if seconds is None else seconds * submission.num_steps,
        dataset_key=submission.train.key,
        dataset_bytes=submission.train.nbytes,
        dataset_source=submission.train.source,
    )


def _thread_counts(num_cores: int) -> list[int]:
    powers = [2**power for power in range(num_cores.bit_length()) if 2**power <= num_cores]
    return sorted({*powers, num_cores})


def _checked_slots(slots: int | str) -> int | None:
    if slots == "auto":
        return None
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
        raise UnifiedError(f"slots: expected a whole number from 1, or 'auto', got {slots!r}")
    return slots


def _checked_threads(threads: int | None, num_cores: int) -> int | None:
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= num_cores:
        raise UnifiedError(f"threads: expected a whole number from 1 to {num_cores}, got {threads!r}")
    return threads
