"""The ledger of a run: every job's state and times in one place, changed only through its methods. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schedulers.base import JobView
from unified.admission import Submission
from unified.errors import UnifiedError
from unified.job import JobState, check_move
from unified.packing import Demand

ENDED = frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED})


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """One job of the run; times are seconds on the run's clock.

    Attributes:
        submission: What was handed in.
        results: Folder of its result.
        checkpoints: Folder of its checkpoints.
        submit_time: When it was submitted.
        state: Where it stands; changed by :meth:`move` alone.
        num_threads: Intra-op threads for its whole life on a CPU; None until planned.
        slot: Where it is resident, or None.
        is_hosting: The worker was told to host it and has not answered yet.
        is_running: A turn of its is under way.
        is_returning: It is trained; its result is being written and verified.
        has_results_folder: The run made its folder of results.
        checkpoint_failed: Its last checkpoint could not be written.
        is_safe: Nothing has been trained since its last checkpoint.
        leaving: Why it was told to leave its slot: ``"pause"``, ``"cancel"``, ``"move"``, or None.
        step: Optimizer steps done, as last reported.
        step_seconds: Seconds of a step, measured over its turns; None before the first.
        trial_seconds: Seconds of a trial step by number of threads, measured on a copy before the run.
        first_start: When its first turn began.
        end_time: When it ended.
        training_seconds: Sum of its turns.
        peak_bytes: Highest memory, estimated on a CPU, measured on a GPU.
        num_deaths: How often a worker died in one of its turns.
        reason: Why it failed.
        metrics: The last row of its metrics.
        companions: Names of jobs that were resident beside it.
        num_events: Counter for the scheduler's events.
    """

    submission: Submission
    results: Path
    checkpoints: Path
    submit_time: float
    state: JobState = JobState.QUEUED
    num_threads: int | None = None
    slot: int | None = None
    is_hosting: bool = False
    is_running: bool = False
    is_returning: bool = False
    has_results_folder: bool = False
    checkpoint_failed: bool = False
    is_safe: bool = True
    leaving: str | None = None
    step: int = 0
    step_seconds: float | None = None
    trial_seconds: dict[int, float] = field(default_factory=dict)
    first_start: float | None = None
    end_time: float | None = None
    training_seconds: float = 0.0
    peak_bytes: int = 0
    num_deaths: int = 0
    reason: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    companions: set[str] = field(default_factory=set)
    num_events: int = 0

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
        """What it needs of a slot's memory."""
        estimate = self.submission.estimate
        return Demand(resident_bytes=estimate.resident_bytes, peak_bytes=estimate.peak_bytes)

    def move(self, state: JobState) -> None:
        """Change the state.

        Raises:
            IllegalMoveError: If ``state`` cannot follow the present one.
        """
        check_move(self.state, state, job=self.name)
        self.state = state

    def leave_slot(self) -> None:
        """Note that the job is no longer resident anywhere."""
        self.slot = self.leaving = None
        self.is_hosting = self.is_running = self.is_returning = False

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether a checkpoint that was asked for can still come."""
        return self.slot is not None and not (self.is_safe or self.is_returning or self.checkpoint_failed)

    @property
    def seconds_left(self) -> float:
        """Predicted seconds of training that are left; in steps if no step has been timed."""
        seconds = self.step_seconds or self.trial_seconds.get(self.num_threads or 1) or 1.0
        return (self.submission.num_steps - self.step) * seconds

    def next_event(self) -> int:
        """Return the sequence number of the job's next event for the scheduler."""
        self.num_events += 1
        return self.num_events

    def view(self) -> JobView:
        """Return the scheduler's frozen view of the job."""
        submission = self.submission
        return JobView(
            id=self.name,
            submit_time=self.submit_time,
            priority=submission.spec.priority,
            num_parameters=submission.estimate.num_parameters,
            num_epochs=submission.num_epochs,
            steps_per_epoch=submission.steps_per_epoch,
            steps_total=submission.num_steps,
            steps_done=self.step,
            has_begun=self.first_start is not None,
            slot_id=self.slot,
        )


class Ledger:
    """The jobs of a run by name, in the order of their submission."""

    def __init__(self) -> None:
        self._records: dict[str, JobRecord] = {}

    def add_all(self, records: Sequence[JobRecord]) -> None:
        """Take jobs in, all or none.

        Raises:
            UnifiedError: If two jobs of the run would have one name.
        """
        names = [*self._records, *(record.name for record in records)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UnifiedError(f"there are two jobs named {twice[0]!r} in this run; give each its own name")
        # A new dict, not a changed one: the engine's thread may be going over the old one just now.
        self._records = self._records | {record.name: record for record in records}

    def __getitem__(self, name: str) -> JobRecord:
        if name not in self._records:
            known = ", ".join(sorted(self._records)) or "none"
            raise UnifiedError(f"there is no job named {name!r} in this run; there is: {known}")
        return self._records[name]

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
