"""What a job loses when the job beside it brings their worker down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.service_process import Service, serving, wait_until
from benchmarks.storm_watch import Watch
from unified.job_state import ENDED, RESIDENT, JobState
from unified.queue.records import Transition
from unified.queue.verbs import Queue

BACK_SECONDS = 120.0
NUM_BESIDE = 3
DIED = "its worker died"
_S = JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourLoss:
    """What one crash cost one job that had not caused it.

    Attributes:
        crash: Number of the crash.
        job: Whose loss it is.
        waited_seconds: From the state that says that its worker is gone until it was on a slot again.
        redone_steps: Steps it had to do again; None if that was not seen.
        redone_seconds: The time they take at its pace.
    """

    crash: int
    job: str
    waited_seconds: float
    redone_steps: int | None
    redone_seconds: float | None

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.waited_seconds + (self.redone_seconds or 0.0)


def measure_neighbours(
    beside: Path, crash: Path, work: Path, *, crashes: int, checkpoint_seconds: float
) -> list[NeighbourLoss]:
    """Train a few jobs that share two workers with one that crashes, ``crashes`` times anew; return what each loss was."""
    work.mkdir(parents=True)
    options = {"slots": 2, "checkpoint-seconds": checkpoint_seconds, "scheduler": "round-robin", "trust": True}
    options |= {"sandbox": "off"}  # the model that crashes is a class of this very checkout, where the service is started
    service = Service(root=work / "root", log=work / "serve.log", options=options, settings={"tick_seconds": 0.2})
    with serving(service) as queue, Watch(service.root) as watch:
        innocent = [queue.submit(beside, by="bench", changes={"id": f"beside-{number}"}).job.id for number in range(NUM_BESIDE)]
        wait_until(lambda: all(_trains(queue, job) for job in innocent), BACK_SECONDS, "the jobs did not begin to train")
        for number in range(crashes):
            culprit = queue.submit(crash, by="bench", changes={"id": f"crash-{number}"}).job.id
            wait_until(lambda job=culprit: _has_crashed(queue, job), BACK_SECONDS, "the job that crashes did not")
            queue.cancel(culprit, by="bench", wait_seconds=BACK_SECONDS)
            wait_until(lambda: all(_trains(queue, job) for job in innocent), BACK_SECONDS, "the neighbours did not come back")
        moves = {job: queue.store.transitions(job) for job in innocent}
        for job in innocent:
            queue.cancel(job, by="bench", wait_seconds=BACK_SECONDS)
    return [_with_redone(loss, epoch, watch) for job in innocent for loss, epoch in _losses(job, moves[job])]


def _trains(queue: Queue, job: str) -> bool:
    return queue.get(job).state is _S.RUNNING


def _has_crashed(queue: Queue, job: str) -> bool:
    row = queue.get(job)
    if row.state in ENDED:
        raise RuntimeError(f"{job} was to crash beside others; it is {row.state}: {row.reason}")
    return any(move.reason.startswith(DIED) for move in queue.store.transitions(job))


def _losses(job: str, moves: Sequence[Transition]) -> list[tuple[NeighbourLoss, int]]:
    found = []
    for index, move in enumerate(moves):
        if move.old in RESIDENT and move.reason.startswith(DIED):
            back = next((later.time for later in moves[index:] if later.new is _S.RUNNING), None)
            if back is not None:
                waited = back - move.time
                loss = NeighbourLoss(crash=len(found), job=job, waited_seconds=waited, redone_steps=None, redone_seconds=None)
                found.append((loss, move.epoch))
    return found


def _with_redone(loss: NeighbourLoss, epoch: int, watch: Watch) -> NeighbourLoss:
    seen = watch.residencies.get((loss.job, epoch))
    if seen is None or seen.last_step is None or seen.resumed_step is None:
        return loss
    steps = max(0, seen.last_step - seen.resumed_step)
    pace = seen.seconds_per_step
    return NeighbourLoss(
        crash=loss.crash,
        job=loss.job,
        waited_seconds=loss.waited_seconds,
        redone_steps=steps,
        redone_seconds=None if pace is None else steps * pace,
    )
