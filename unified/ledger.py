"""The ledger of a run: every job's state and times in one place; states change through a journal only. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from schedulers.base import JobView
from unified.admission import Submission
from unified.errors import UnifiedError
from unified.events import JobSubmitted
from unified.job_state import JobState, check_move
from unified.messages import Checkpointed
from unified.packing import Demand
from unified.tenancy import Tenant
from unified.turns import StepTimes


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """One job of the run; times are seconds on the run's clock.

    Attributes:
        submission: What was handed in.
        results: Folder of its result.
        checkpoints: Folder of its checkpoints.
        submit_time: When it was submitted.
        state: Where it stands; changed by a :class:`Journal` alone.
        epoch: Number of times it was taken to a slot; its worker's files and reports carry it.
        restore_from: Checkpoints to go on from, best first; None for all that are in ``checkpoints``.
        num_threads: Intra-op threads for its whole life on a CPU; None until planned.
        slot: Where it is resident, or None.
        is_hosting: The worker was told to host it and has not answered yet.
        is_running: A turn of its is under way.
        is_returning: It is trained; its result is being written and verified.
        has_results_folder: The run made its folder of results.
        checkpoint_failed: Its last checkpoint could not be written.
        is_safe: Nothing has been trained since its last checkpoint.
        last_checkpoint: When its last checkpoint was written or asked for, or it came to its slot.
        least_checkpoint_seconds: The shortest interval at which its checkpoints are cheap enough.
        checkpoint_write_seconds: What its last checkpoint took until it was on disk.
        leaving: Why it was told to leave its slot: ``"pause"``, ``"cancel"``, ``"move"``, or None.
        returns_at_once: Once it is paused it is to wait for its turn again.
        step: Optimizer steps done, as last reported.
        step_times: What its latest steps took.
        step_seconds: Their median, or what an earlier run found; in a stack, of all its members' steps together; or None.
        trial_seconds: Seconds of a trial step by number of threads, measured on a copy before the run.
        first_start: When its first turn began.
        end_time: When it ended.
        training_seconds: Sum of its turns.
        slot_seconds: Its part of the slots' time: of a turn as one of several, so much is each one's.
        waiting_since: When its last turn ended or, while it has one, began; None before the first.
        num_preemptions: How often a turn of its was ended early for another job's sake.
        peak_bytes: Highest memory, estimated on a CPU, measured on a GPU.
        measured_bytes: What its turns were measured to need, by itself; 0 where that cannot be measured.
        resident_since: When it came to its slot.
        is_alone: It must have a slot to itself: it is on probation, or ran out of memory beside others.
        suspected_beside: Whom it ran beside when its worker died, until it is cleared.
        shared_turns: Those in whose company it was one of several suspects, as they stepped as one; it does so no more.
        num_job_failures: Failures of its own.
        num_infra_failures: Failures of workers and hosts since its last progress.
        num_blames: How often it was the culprit of a worker's death.
        last_fault: Kind and step of its last failure.
        reason: Why it failed, or why it waits.
        loss: Latest loss reported.
        metrics: The last row of its metrics.
        companions: Names of jobs that were resident beside it.
        stacked_with: Names of jobs that it stepped as one with.
        stack_speedup: How many times faster it was in its last stack than side by side; None if it never was in one.
    """

    submission: Submission
    results: Path
    checkpoints: Path
    submit_time: float
    state: JobState = JobState.QUEUED
    epoch: int = 0
    restore_from: tuple[Path, ...] | None = None
    num_threads: int | None = None
    slot: int | None = None
    is_hosting: bool = False
    is_running: bool = False
    is_returning: bool = False
    has_results_folder: bool = False
    checkpoint_failed: bool = False
    is_safe: bool = True
    last_checkpoint: float = 0.0
    least_checkpoint_seconds: float = 0.0
    checkpoint_write_seconds: float = 0.0
    leaving: str | None = None
    returns_at_once: bool = False
    step: int = 0
    step_times: StepTimes = field(default_factory=StepTimes)
    step_seconds: float | None = None
    trial_seconds: dict[int, float] = field(default_factory=dict)
    first_start: float | None = None
    end_time: float | None = None
    training_seconds: float = 0.0
    slot_seconds: float = 0.0
    waiting_since: float | None = None
    num_preemptions: int = 0
    peak_bytes: int = 0
    measured_bytes: int = 0
    resident_since: float = 0.0
    is_alone: bool = False
    suspected_beside: frozenset[str] = frozenset()
    shared_turns: frozenset[str] = frozenset()
    num_job_failures: int = 0
    num_infra_failures: int = 0
    num_blames: int = 0
    last_fault: str | None = None
    reason: str | None = None
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    companions: set[str] = field(default_factory=set)
    stacked_with: set[str] = field(default_factory=set)
    stack_speedup: float | None = None
    _tenant: tuple[object, Tenant] | None = field(default=None, repr=False)
    _view: tuple[object, JobView] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The job's name."""
        return self.submission.name

    @property
    def is_ready(self) -> bool:
        """Whether the scheduler may grant it a turn."""
        waits = self.state in {JobState.QUEUED, JobState.RUNNING}
        return waits and not (self.is_running or self.is_returning or self.is_hosting or self.leaving)

    @property
    def demand(self) -> Demand:
        """What it needs of a slot's memory: as estimated, until a turn was measured; that may have held no evaluation."""
        estimate = self.submission.estimate
        measured = max(self.measured_bytes, estimate.eval_peak_bytes) if self.measured_bytes else estimate.peak_bytes
        return Demand(resident_bytes=estimate.resident_bytes, peak_bytes=measured)

    @property
    def tenant(self) -> Tenant:
        """What the packer has to know of it."""
        state = (self.submission, self.measured_bytes, self.is_alone)  # hundreds are asked for at each decision
        if self._tenant is None or self._tenant[0] != state:
            submission = self.submission
            tenant = Tenant(
                id=self.name,
                demand=self.demand,
                members=(self.name,),
                users=frozenset({self.user}),
                keeps_to_its_user=self.keeps_to_its_user,
                needs_own_slot=self.needs_own_slot,
                dataset=submission.train.key,
                kind=f"{submission.stack_key or submission.model.sha256} {submission.spec.batch_size}",
            )
            self._tenant = (state, tenant)
        return self._tenant[1]

    @property
    def needs_own_slot(self) -> bool:
        """Whether nobody may be resident beside it."""
        spec = self.submission.spec
        return self.is_alone or spec.exclusive or spec.colocate == "never"

    @property
    def user(self) -> str:
        """Whose it is; jobs without a user are one user's, the operator's."""
        return self.submission.spec.user or ""

    @property
    def keeps_to_its_user(self) -> bool:
        """Whether its worker process may host this user's jobs only, from the process's start to its end."""
        return self.submission.model.runs_code or self.submission.spec.colocate == "same-user"

    def hand_in(self, at: float) -> None:
        """Note when it was handed in; what an earlier run has finished counts from now on with the times that it took then."""
        self.submit_time = at
        if self.first_start is not None and self.end_time is not None:
            self.first_start, self.end_time = at + self.first_start, at + self.end_time

    def leave_slot(self) -> None:
        """Note that the job is no longer resident anywhere."""
        self.slot = self.leaving = None
        self.is_hosting = self.is_running = self.is_returning = False

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether a checkpoint that was asked for can still come."""
        return self.slot is not None and not (self.is_safe or self.is_returning or self.checkpoint_failed)

    @property
    def trial(self) -> float | None:
        """Seconds of a trial step with its number of threads; before that is planned, with the first that was tried."""
        tried = self.trial_seconds
        return (next(iter(tried.values()), None) if self.num_threads is None else tried.get(self.num_threads)) or None

    @property
    def seconds_left(self) -> float:
        """Predicted seconds of training that are left; in steps if no step has been timed."""
        seconds = self.step_seconds or self.trial or 1.0
        return (self.submission.num_steps - self.step) * seconds

    def view(self) -> JobView:
        """Return the scheduler's frozen view of the job; the same one until something in it changes."""
        progress = (self.slot, self.step, self.step_seconds or self.trial, self.slot_seconds, self.num_preemptions)
        state = (self.submission, self.submit_time, self.waiting_since, self.first_start, self.measured_bytes, *progress)
        if self._view is None or self._view[0] != state:
            self._view = (state, self._seen())
        return self._view[1]

    def _seen(self) -> JobView:
        submission = self.submission
        return JobView(
            id=self.name,
            submit_time=self.submit_time,
            waiting_since=self.waiting_since,
            user_shares=((self.user, 1.0),),
            priority=submission.spec.priority,
            weight=submission.spec.weight,
            deadline=None if submission.spec.deadline_seconds is None else self.submit_time + submission.spec.deadline_seconds,
            is_deadline_soft=submission.spec.deadline_kind == "soft",
            num_parameters=submission.estimate.num_parameters,
            num_epochs=submission.num_epochs,
            steps_per_epoch=submission.steps_per_epoch,
            steps_total=submission.num_steps,
            steps_done=self.step,
            step_seconds=self.step_seconds or self.trial,
            attained_seconds=self.slot_seconds,
            num_preemptions=self.num_preemptions,
            memory_resident_bytes=self.demand.resident_bytes,
            memory_peak_bytes=self.demand.peak_bytes,
            has_begun=self.first_start is not None,
            slot_id=self.slot,
        )


def submitted_event(record: JobRecord) -> JobSubmitted:
    """Return the news that a job was accepted."""
    submission = record.submission
    origin = submission.spec.from_sweep
    return JobSubmitted(
        at=record.submit_time,
        job=record.name,
        user=submission.spec.user,
        num_epochs=submission.num_epochs,
        num_steps=submission.num_steps,
        steps_per_epoch=submission.steps_per_epoch,
        num_parameters=submission.estimate.num_parameters,
        peak_bytes=submission.estimate.peak_bytes,
        first_step=record.step,
        sweep=None if origin is None else origin.name,
        values={} if origin is None else dict(origin.values),
    )


class Journal(Protocol):
    """Where changes of jobs' states are made. A queue's journal makes them durable first."""

    def move(self, record: JobRecord, to: JobState, reason: str, **changes: Any) -> bool:
        """Move a job; False if it is no longer ours to move, and then nothing was changed.

        Raises:
            IllegalMoveError: If ``to`` cannot follow the present state.
        """
        ...

    def lease(self, record: JobRecord, slot: int) -> bool:
        """Take a job to a slot: QUEUED -> LOADING under a new epoch; False if it is no longer ours to take."""
        ...

    def publish(self, record: JobRecord) -> bool:
        """Make the finished result in ``record.results`` the job's result: -> FINISHED; False as for :meth:`move`."""
        ...

    def checkpointed(self, record: JobRecord, report: Checkpointed) -> bool:
        """Make a checkpoint that is on disk the one to go on from; False as for :meth:`move`."""
        ...

    def ban(self, one: str, other: str) -> None:
        """Remember that two jobs must not be resident beside each other."""
        ...


class MemoryJournal:
    """The journal of a run in memory: what is on disk says itself how far each job came."""

    def move(self, record: JobRecord, to: JobState, reason: str, **changes: Any) -> bool:
        """See :class:`Journal`."""
        check_move(record.state, to, job=record.name)
        record.state = to
        return True

    def lease(self, record: JobRecord, slot: int) -> bool:
        """See :class:`Journal`."""
        return self.move(record, JobState.LOADING, "")

    def publish(self, record: JobRecord) -> bool:
        """See :class:`Journal`."""
        return self.move(record, JobState.FINISHED, "")

    def checkpointed(self, record: JobRecord, report: Checkpointed) -> bool:
        """See :class:`Journal`."""
        return True

    def ban(self, one: str, other: str) -> None:
        """See :class:`Journal`; for this run the bookkeeper remembers it."""


class Ledger:
    """The jobs of a run by name, in the order of their submission."""

    def __init__(self) -> None:
        self._records: dict[str, JobRecord] = {}

    def add_all(self, records: Sequence[JobRecord]) -> None:
        """Take jobs in, all or none; raises as :meth:`check_names` does."""
        self.check_names(records)
        # A new dict, not a changed one: the engine's thread may be going over the old one just now.
        self._records = self._records | {record.name: record for record in records}

    def check_names(self, records: Sequence[JobRecord]) -> None:
        """Check that these jobs could be taken in.

        Raises:
            UnifiedError: If two jobs of the run would have one name.
        """
        names = [*self._records, *(record.name for record in records)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UnifiedError(f"there are two jobs named {twice[0]!r} in this run; give each its own name")

    def remove(self, name: str) -> None:
        """Forget a job."""
        self._records = {key: record for key, record in self._records.items() if key != name}

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __getitem__(self, name: str) -> JobRecord:
        if name not in self._records:
            known = ", ".join(sorted(self._records)) or "none"
            raise UnifiedError(f"there is no job named {name!r} in this run; there is: {known}")
        return self._records[name]

    def get(self, name: str) -> JobRecord | None:
        """Return a job, or None if there is none of that name."""
        return self._records.get(name)

    def __len__(self) -> int:
        return len(self._records)

    def all(self) -> list[JobRecord]:
        """Return every job in order of submission."""
        return list(self._records.values())

    def ready(self) -> list[JobRecord]:
        """Return the jobs that could be granted a turn, in order of submission."""
        return [record for record in self._records.values() if record.is_ready]

    def resident(self, slot: int) -> list[JobRecord]:
        """Return the jobs that occupy memory on ``slot``."""
        return [record for record in self._records.values() if record.slot == slot]

    def count(self, *states: JobState) -> int:
        """Return how many jobs are in one of ``states``."""
        return sum(record.state in states for record in self._records.values())
