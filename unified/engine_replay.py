"""Jobs like those of a trace, small enough to train them all in a minute, in the real engine. Imports torch when it makes them.

Lengths and arrivals are scaled down alike. Every job is a small perceptron on made-up data that is given as many steps as its
scaled length asks for, by the step time that one job of the kind is measured to have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from schedulers.registry import create
from schedulers.simulation.workload import SimJob
from unified.engine import Engine
from unified.errors import UnifiedError
from unified.events import Event, TurnEnded
from unified.job_state import JobState
from unified.listeners import event_to_json
from unified.replay import Replay, RunRecord, replay

if TYPE_CHECKING:
    from unified.job import JobSpec

LEAST_STEPS = 20  #: of a job: with fewer, it would be loading and writing alone
LEAST_QUANTUM = 0.1  #: seconds; turns that are shorter would be messages alone
_TIMED_STEPS = 1000
_POLL_SECONDS = 0.01
_SAMPLES, _FEATURES, _CLASSES, _BATCH = 1024, 64, 10, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What each policy is given.

    Attributes:
        jobs: The jobs, their times scaled.
        slots: Of the engine; one thread each.
        quantum: Seconds of a turn, of each policy that has a quantum and is not given one.
        step_seconds: Measured seconds of a step.
    """

    jobs: tuple[SimJob, ...]
    slots: int
    quantum: float
    step_seconds: float

    def num_steps(self, job: SimJob) -> int:
        """Return the steps that its length asks for."""
        return max(LEAST_STEPS, round(job.seconds / self.step_seconds))


def scaled(jobs: Sequence[SimJob], *, seconds: float, slots: int, quantum: float) -> Work:
    """Scale jobs down to so many seconds of work in all, and measure a step.

    Args:
        jobs: As a trace has them.
        seconds: Of slot time, of all jobs together.
        slots: Of the engine.
        quantum: Seconds of a turn, as for the trace.
    """
    factor = seconds / sum(job.seconds for job in jobs)
    small = tuple(_scaled(job, factor) for job in jobs)
    return Work(jobs=small, slots=slots, quantum=max(LEAST_QUANTUM, factor * quantum), step_seconds=measured_step_seconds())


def _scaled(job: SimJob, factor: float) -> SimJob:
    deadline = None if job.deadline is None else factor * job.deadline
    return replace(job, submit_time=factor * job.submit_time, seconds=factor * job.seconds, deadline=deadline)


def measured_step_seconds() -> float:
    """Train one job of the kind and return the seconds of a step of its."""
    turns: list[TurnEnded] = []

    def listen(event: Event) -> None:
        if isinstance(event, TurnEnded):
            turns.append(event)

    with Engine(slots=1, threads=1, device="cpu", stacking=False, listeners=[listen]) as engine:
        engine.submit(make_job("timed", _TIMED_STEPS, SimJob(id="timed", submit_time=0.0, seconds=1.0)))
        _train(engine)
    return sum(turn.seconds for turn in turns) / sum(turn.steps for turn in turns)


def play(spelling: str, work: Work) -> Replay:
    """Train the jobs in the engine under a policy, each handed in when it comes, and simulate what was trained.

    Raises:
        SchedulerConfigError: If the policy is spelled wrongly.
        UnifiedError: If a job could not be trained.
    """
    defaults = {"quantum": f"{work.quantum:.6f}s"}
    scheduler = create(spelling, defaults)
    record = RunRecord()
    jobs = sorted(work.jobs, key=lambda job: job.submit_time)
    names = {job.id: f"job-{number}" for number, job in enumerate(jobs)}
    specs = [make_job(names[job.id], work.num_steps(job), job) for job in jobs]
    listeners = [lambda event: record.take(event_to_json(event))]
    with Engine(scheduler=scheduler, slots=work.slots, threads=1, device="cpu", stacking=False, listeners=listeners) as engine:
        feeder = Feeder(engine, specs, [job.submit_time for job in jobs])
        feeder.start()
        while feeder.is_alive():
            _train(engine)
            feeder.join(_POLL_SECONDS)
        _train(engine)
    if feeder.error is not None:
        raise feeder.error
    run = record.played({spec.name: _recipe(spec) for spec in specs}, where=f"engine under {spelling}")
    return replay(replace(run, scheduler=spelling), create(spelling, defaults))


class Feeder(threading.Thread):
    """Hands jobs in, each at its time, counted from when the first had been read: reading that one starts the processes."""

    def __init__(self, engine: Engine, specs: Sequence[JobSpec], times: Sequence[float]) -> None:
        super().__init__(name="feeder", daemon=True)
        self.error: Exception | None = None
        self._engine = engine
        self._plan = list(zip(specs, times, strict=True))

    def run(self) -> None:
        """Hand them in; ``error`` is what went wrong."""
        try:
            (first, began), *others = self._plan
            self._engine.submit(first)
            offset = time.monotonic() - began
            for spec, at in others:
                time.sleep(max(0.0, at + offset - time.monotonic()))
                self._engine.submit(spec)
        except Exception as error:  # noqa: BLE001 - it is raised again where somebody waits for it
            self.error = error


def _train(engine: Engine) -> None:
    for result in engine.run():
        if result.state is not JobState.FINISHED:
            raise UnifiedError(f"job {result.name!r} of the engine's run is {result.state}: {result.reason}")


def make_job(name: str, num_steps: int, job: SimJob) -> JobSpec:
    """Return a small job of so many steps, whose it is and how urgent as ``job`` says."""
    import torch

    from unified.job import JobSpec

    data = torch.Generator().manual_seed(0)
    inputs = torch.randn(_SAMPLES, _FEATURES, generator=data)
    targets = torch.randint(_CLASSES, (_SAMPLES,), generator=data)
    model = torch.nn.Sequential(torch.nn.Linear(_FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, _CLASSES))
    recipe = {
        "name": name,
        "user": job.user or None,
        "model": model,
        "data": {"train": (inputs, targets)},
        "loss": "CrossEntropyLoss",
        "optimizer": {"name": "SGD", "lr": 0.01},
        "max_steps": num_steps,
        "batch_size": _BATCH,
        "priority": job.priority,
        "weight": job.weight,
        "deadline_seconds": None if job.deadline is None else job.deadline - job.submit_time,
    }
    return JobSpec.parse(recipe)


def _recipe(spec: JobSpec) -> dict[str, Any]:
    return {"priority": spec.priority, "weight": spec.weight, "deadline_seconds": spec.deadline_seconds}
