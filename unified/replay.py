"""What a run of the engine did, and what the simulator makes of the same jobs under the same policy. Free of torch.

What the simulator is given is measured in that very run: when the policy could first see each job (reading it comes before),
how long the slots were taken by it (its loading, and its share of turns that it had together with others, included), how long
a slot stood still between two turns, and how long results were written after the last turn. It adds who had which slot when.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from schedulers.base import Scheduler
from schedulers.registry import create
from schedulers.simulation.outcome import Outcome
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.workload import SimJob
from unified.accounting import Spread
from unified.errors import UnifiedError

EVENTS = Path(".state") / "events.jsonl"
_ENDS = frozenset({"JobFinished", "JobFailed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedJob:
    """One job as the engine trained it; times are seconds on the engine's clock.

    Attributes:
        name: The job's name.
        user: Whose it is.
        priority: As in ``job.json``.
        weight: As in ``job.json``.
        deadline_seconds: As in ``job.json``.
        num_epochs: Epochs that it was to have.
        num_steps: Steps that it was to have.
        num_parameters: Size of its model.
        submitted_at: When it was handed in.
        ready_at: When the scheduler could first see it.
        slot_seconds: For how long slots were its.
        trained_at: When its last turn ended.
        ended_at: When its result was on disk, verified, or it had failed.
    """

    name: str
    user: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline_seconds: float | None = None
    num_epochs: int
    num_steps: int
    num_parameters: int
    submitted_at: float
    ready_at: float
    slot_seconds: float
    trained_at: float
    ended_at: float

    @property
    def completion_seconds(self) -> float:
        """Seconds from submission to the end."""
        return self.ended_at - self.submitted_at

    def as_simulated(self) -> SimJob:
        """Return what the simulator is to make of it."""
        deadline = None if self.deadline_seconds is None else self.submitted_at + self.deadline_seconds
        return SimJob(
            id=self.name,
            submit_time=self.ready_at,
            seconds=self.slot_seconds,
            user=self.user,
            priority=self.priority,
            weight=self.weight,
            deadline=deadline,
            is_deadline_soft=True,
            num_epochs=self.num_epochs,
            steps_total=self.num_steps,
            num_parameters=self.num_parameters,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedRun:
    """A run of the engine.

    Attributes:
        scheduler: As spelled.
        num_slots: How many slots it had.
        switch_seconds: For how long a slot stood still between two jobs' turns, median.
        jobs: Those that came to their ends, in order of submission.
        num_left_out: How many did not, or had no turn.
    """

    scheduler: str
    num_slots: int
    switch_seconds: float
    jobs: tuple[PlayedJob, ...]
    num_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Completion since submission of a group of jobs, as the engine had it and as simulated."""

    group: str
    num_jobs: int
    engine: Spread
    simulated: Spread

    @property
    def ratio(self) -> float:
        """Return the engine's mean over the simulated one."""
        return self.engine.mean / self.simulated.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A run beside its simulation.

    Attributes:
        run: The run.
        outcome: What the simulator made of it.
        agreements: All jobs, then thirds by the slot time that they took, where there are enough.
        engine_makespan: From the first submission to the last end.
        simulated_makespan: The same of the simulation.
    """

    run: PlayedRun
    outcome: Outcome
    agreements: tuple[Agreement, ...]
    engine_makespan: float
    simulated_makespan: float


def replay(run: PlayedRun, scheduler: Scheduler | None = None) -> Replay:
    """Simulate a run's jobs under its policy, resident where they first ran, and lay both side by side.

    Args:
        run: The run.
        scheduler: A new one of its policy; by default made as the run spells it.

    Raises:
        SchedulerConfigError: If the run's scheduler cannot be made from how it is spelled.
    """
    host = Host(slots=run.num_slots, placement="resident", switch_seconds=run.switch_seconds)
    outcome = simulate([job.as_simulated() for job in run.jobs], scheduler or create(run.scheduler), host)
    trained_at = {job.id: job.completion for job in outcome.jobs}
    ends = {job.name: trained_at[job.name] + job.ended_at - job.trained_at for job in run.jobs if job.name in trained_at}
    first = min(job.submitted_at for job in run.jobs)
    return Replay(
        run=run,
        outcome=outcome,
        agreements=tuple(_agreements([job for job in run.jobs if job.name in ends], ends)),
        engine_makespan=max(job.ended_at for job in run.jobs) - first,
        simulated_makespan=max(ends.values()) - first,
    )


def _agreements(jobs: Sequence[PlayedJob], ends: Mapping[str, float]) -> Iterator[Agreement]:
    by_length = sorted(jobs, key=lambda job: (job.slot_seconds, job.name))
    third = len(jobs) // 3
    groups = {"all": list(jobs)}
    if third:
        groups |= {
            "shortest third": by_length[:third],
            "middle third": by_length[third:-third],
            "longest third": by_length[-third:],
        }
    for name, group in groups.items():
        engine = Spread.of(job.completion_seconds for job in group)
        simulated = Spread.of(ends[job.name] - job.submitted_at for job in group)
        if engine and simulated:
            yield Agreement(group=name, num_jobs=len(group), engine=engine, simulated=simulated)


def read_run(folder: Path) -> PlayedRun:
    """Read a folder that ``unified run`` left.

    Raises:
        UnifiedError: If it holds no run that was recorded to its end, or one that was resumed.
    """
    path = folder / EVENTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UnifiedError(
            f"{folder}: expected what 'unified run --out' leaves, with {EVENTS}: {error.strerror or error}"
        ) from error
    record = RunRecord()
    for line in lines:
        try:
            record.take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UnifiedError(f"{path}: expected an event on each line, got {line[:100]!r}") from error
    recipes = {name: _recipe(folder / name / "result.json") for name in record.names}
    return record.played(recipes, where=str(folder))


def _recipe(path: Path) -> dict[str, Any]:
    """Return the ``job.json`` of a finished job; of one that failed there is none, and it counts as it would by default."""
    try:
        return json.loads(path.read_bytes())["job"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@dataclass(slots=True)
class _Turn:
    job: str
    began: float
    ended: float


@dataclass(slots=True)
class RunRecord:
    """Gathers a run from its events as ``events.jsonl`` has them: plain JSON, in the order in which they were told."""

    _heard_at: float = 0.0
    _scheduler: str = ""
    _num_slots: int = 0
    _submitted: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _ready_at: dict[str, float] = field(default_factory=dict)
    _open: dict[str, float] = field(default_factory=dict)
    _turns: dict[int, list[_Turn]] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The jobs, in order of submission."""
        return list(self._submitted)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event.

        Raises:
            UnifiedError: If it tells of a job that was submitted before: the run was resumed.
        """
        kind, at = event["event"], float(event["at"])
        if kind == "JobSubmitted":
            job = event["job"]
            if job in self._submitted:
                raise UnifiedError(f"job {job!r} was submitted twice: a run that was resumed cannot be replayed")
            # its own time is that of handing it in; it was told of once it was read, after what was told before
            self._submitted[job], self._ready_at[job] = event, event.get("ready_at", max(at, self._heard_at))
        elif kind == "RunStarted":
            self._scheduler, self._num_slots = event["scheduler"], len(event["slots"])
            begun = {turn.job for turns in self._turns.values() for turn in turns}
            self._ready_at |= {job: at for job in self._ready_at if job not in begun}
        elif kind == "TurnStarted":
            self._open[event["job"]] = at
        elif kind == "TurnEnded" and event["job"] in self._open:
            began = self._open.pop(event["job"])
            self._turns.setdefault(event["slot"], []).append(_Turn(event["job"], began, at))
        elif kind in _ENDS:
            self._ended[event["job"]] = at
        self._heard_at = max(self._heard_at, at)

    def played(self, recipes: Mapping[str, Mapping[str, Any]], *, where: str) -> PlayedRun:
        """Return the run.

        Args:
            recipes: By name, the ``job.json`` of jobs, as far as they matter to schedulers.
            where: What to call the run in messages.

        Raises:
            UnifiedError: If nothing was trained to an end.
        """
        slot_seconds = _shares(self._turns)
        trained_at = {turn.job: turn.ended for turns in self._turns.values() for turn in turns}
        for turns in self._turns.values():
            for turn in turns:
                trained_at[turn.job] = max(trained_at[turn.job], turn.ended)
        jobs = tuple(
            self._job(name, recipes.get(name, {}), slot_seconds[name], trained_at[name])
            for name in self._submitted
            if name in self._ended and name in slot_seconds
        )
        if not jobs or not self._num_slots:
            raise UnifiedError(f"{where}: no job was trained to its end there; there is nothing to replay")
        return PlayedRun(
            scheduler=self._scheduler,
            num_slots=self._num_slots,
            switch_seconds=self._switch_seconds(),
            jobs=jobs,
            num_left_out=len(self._submitted) - len(jobs),
        )

    def _job(self, name: str, recipe: Mapping[str, Any], slot_seconds: float, trained_at: float) -> PlayedJob:
        event = self._submitted[name]
        return PlayedJob(
            name=name,
            user=event["user"] or "",
            priority=recipe.get("priority", 0),
            weight=recipe.get("weight", 1.0),
            deadline_seconds=recipe.get("deadline_seconds"),
            num_epochs=max(1, event["num_epochs"]),
            num_steps=max(1, event["num_steps"]),
            num_parameters=event["num_parameters"],
            submitted_at=event["at"],
            ready_at=self._ready_at[name],
            slot_seconds=slot_seconds,
            trained_at=trained_at,
            ended_at=max(self._ended[name], trained_at),
        )

    def _switch_seconds(self) -> float:
        """Return for how long a slot typically stood still from one job's turn to another's who could have had it at once."""
        gaps = [
            after.began - before.ended
            for turns in self._turns.values()
            for before, after in _neighbours(turns)
            if after.job != before.job and self._ready_at[after.job] <= before.ended <= after.began
        ]
        return median(gaps) if gaps else 0.0


def _neighbours(turns: Iterable[_Turn]) -> Iterator[tuple[_Turn, _Turn]]:
    ordered = sorted(turns, key=lambda turn: (turn.began, turn.ended))
    return pairwise(ordered)


def _shares(turns_by_slot: Mapping[int, Sequence[_Turn]]) -> dict[str, float]:
    """Return by job the time that slots were its, shared evenly while several had turns on one."""
    found: dict[str, float] = {}
    for turns in turns_by_slot.values():
        times = sorted({time for turn in turns for time in (turn.began, turn.ended)})
        ordered = sorted(turns, key=lambda turn: turn.began)
        there: list[_Turn] = []
        for begin, end in pairwise(times):
            there = [turn for turn in there if turn.ended > begin]
            while ordered and ordered[0].began <= begin:
                there.append(ordered.pop(0))
            for turn in there:
                found[turn.job] = found.get(turn.job, 0.0) + (end - begin) / len(there)
    return found
