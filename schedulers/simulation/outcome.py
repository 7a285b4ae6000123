"""What came of a simulated workload: frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from schedulers.simulation.workload import SimJob


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What became of one job.

    Attributes:
        job: The job.
        first_start: When its first turn began.
        completion: When it was done.
        preemptions: How often it lost its slot before its end and had to wait.
        longest_wait: The longest time that it was without service.
    """

    job: SimJob
    first_start: float
    completion: float
    preemptions: int
    longest_wait: float

    @property
    def id(self) -> str:
        """Its name."""
        return self.job.id

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.job.user

    @property
    def submit_time(self) -> float:
        """When it was handed in."""
        return self.job.submit_time

    @property
    def seconds(self) -> float:
        """The slot time that it takes, alone on a slot."""
        return self.job.seconds

    @property
    def completion_seconds(self) -> float:
        """The time from submission to completion, its JCT."""
        return self.completion - self.job.submit_time

    @property
    def is_late(self) -> bool:
        """It was done after its deadline, by more than rounding."""
        deadline = self.job.deadline
        return deadline is not None and self.completion > deadline + 1e-6 * max(1.0, abs(deadline))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A stretch of time that a unit had on a slot; ``seconds`` is the work done in it, in seconds of a slot of its own."""

    unit_id: str
    slot_id: int
    began: float
    ended: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a policy made of a workload.

    Attributes:
        jobs: Those that were accepted, in the order of their submission.
        refused: Those that were not, with the policy's reason.
        turns: All turns; one that went straight on on its slot is one.
        decision_seconds: Real time of each question to the scheduler.
        num_wrong: How many of its answers could not be carried out; those decisions were taken by first come, first served.
        wrong: What was wrong with the first of them.
    """

    jobs: tuple[JobOutcome, ...]
    refused: dict[str, str]
    turns: tuple[Turn, ...]
    decision_seconds: tuple[float, ...]
    num_wrong: int
    wrong: str = ""

    @property
    def makespan(self) -> float:
        """Time from the first submission to the last completion."""
        if not self.jobs:
            return 0.0
        return max(job.completion for job in self.jobs) - min(job.submit_time for job in self.jobs)
