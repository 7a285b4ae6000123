"""What came of a storm: what was lost, doubled, wrong or illegal, how soon deaths were noticed, and how much was done again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.equality import are_equal
from benchmarks.quantiles import Quantiles
from benchmarks.storm import Ended, Kill, Storm
from unified.job_state import LEGAL_MOVES, RESIDENT, JobState
from unified.queue.records import Transition
from unified.queue.root import Root

MATCH_SECONDS = 30.0  #: a loss is due to a kill that came at most so long before it
WORKER_DIED = "its worker died"
SUPERVISOR_DIED = "its supervisor ended"
_NOTE = re.compile(r"checkpoint at step (\d+) \(.*?, ([\d.]+) s(?:; at most every ([\d.]+) s)?\)")
_S = JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a job's log says of a checkpoint: how long it took, and the interval that was in force from then on."""

    seconds: float
    interval_seconds: float


Notes = dict[tuple[str, int], Note]  #: by job and step


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A job that lost its slot to a kill.

    Attributes:
        job: Its id.
        epoch: The residency that ended.
        target: What was killed.
        noticed_seconds: From the kill until the job's state said so.
        back_seconds: From the kill until it trained again; None if it never did.
        redone_steps: Steps between the checkpoint it went on from and the last one reported before the kill; None if that
            was not seen.
        redone_seconds: Training time before the kill that was lost: since the state that it went on from was copied, or since
            it began if no checkpoint of this residency counted yet; None if that was not seen.
        interval_seconds: Between checkpoints as it was in force then: the worker stretches it where they take long.
    """

    job: str
    epoch: int
    target: str
    noticed_seconds: float
    back_seconds: float | None
    redone_steps: int | None
    redone_seconds: float | None
    interval_seconds: float

    @property
    def redone_intervals(self) -> float | None:
        """What was done again, in checkpoint intervals."""
        return None if self.redone_seconds is None else self.redone_seconds / self.interval_seconds

    @property
    def beyond_seconds(self) -> float | None:
        """What was done again beyond one interval: a checkpoint under way does not count yet."""
        return None if self.redone_seconds is None else max(0.0, self.redone_seconds - self.interval_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be 0, with the ids it concerns, and what came of every job.

    Attributes:
        kills: Delivered, by target.
        accepted: Jobs that submitters were promised.
        lost: Promised, and not there or not finished at the end, with state and reason.
        doubled: Published twice, or two jobs for one order.
        wrong: Finished with other weights than undisturbed.
        compared: How many were compared.
        illegal: Transitions that the table of moves does not have.
        unasked_ends: See :class:`~benchmarks.storm.Storm`.
        attempts: Residencies per job, and how many jobs had so many.
    """

    kills: dict[str, int]
    accepted: int
    lost: list[str]
    doubled: list[str]
    wrong: list[str]
    compared: int
    illegal: list[str]
    unasked_ends: list[str]
    attempts: dict[int, int]


def judge(storm: Storm, results: Path, undisturbed: Mapping[str, Path]) -> Verdict:
    """Compare what was promised with what is there, and weights with those of the undisturbed run."""
    jobs = {ended.row.id: ended for ended in storm.jobs}
    promised = set(storm.promised) | set(storm.orders)
    finished = [job for job in jobs if jobs[job].row.state is _S.FINISHED and job in storm.orders]
    there = [job for job in finished if (results / job / "state_dict.pt").is_file()]
    pairs = [(results / job / "state_dict.pt", undisturbed[storm.orders[job].name] / "state_dict.pt") for job in there]
    equal = are_equal(pairs) if pairs else []
    lost = [f"{job}: {_fate(jobs.get(job))}" for job in sorted(promised - set(finished))]
    lost += [f"{job}: finished without a result" for job in finished if job not in there]
    return Verdict(
        kills=dict(Counter(kill.target for kill in storm.kills)),
        accepted=len(set(storm.promised)),
        lost=lost,
        doubled=[*(job for job, ended in jobs.items() if _times(ended, _S.FINISHED) > 1), *sorted(set(jobs) - promised)],
        wrong=[job for job, is_equal in zip(there, equal, strict=True) if not is_equal],
        compared=len(there),
        illegal=[text for ended in storm.jobs for text in illegal_moves(ended.row.id, ended.transitions)],
        unasked_ends=storm.unasked_ends,
        attempts=dict(sorted(Counter(_times(ended, _S.LOADING) for ended in storm.jobs).items())),
    )


def illegal_moves(job: str, transitions: Sequence[Transition]) -> Iterator[str]:
    """Yield, in words, every transition that does not follow from the one before it."""
    old, epoch = None, 0
    for move in transitions:
        is_first = old is None and move.old is None and move.new is _S.QUEUED
        is_legal = is_first or (old is not None and move.old is old and move.new in LEGAL_MOVES[old])
        if not is_legal or move.epoch != epoch + (move.new is _S.LOADING):
            yield f"{job}: {old} (epoch {epoch}) -> {move.old} -> {move.new} (epoch {move.epoch})"
        old, epoch = move.new, move.epoch


def read_notes(storm: Storm, root: Root, interval_seconds: float) -> Notes:
    """Return what the jobs' logs say of their checkpoints; what a killed supervisor had not yet written is missing.

    ``interval_seconds`` is the interval that was set; a log tells of a longer one.
    """
    found: Notes = {}
    for ended in storm.jobs:
        job = ended.row.id
        log = root.log(job).read_text() if root.log(job).exists() else ""
        for step, seconds, interval in _NOTE.findall(log):
            found[job, int(step)] = Note(seconds=float(seconds), interval_seconds=float(interval or interval_seconds))
    return found


def find_losses(storm: Storm, notes: Notes, interval_seconds: float) -> list[Loss]:
    """Return every residency that a kill ended, each with the kill that did; the interval is the one that was set."""
    kills = {WORKER_DIED: _Kills(storm, "worker"), SUPERVISOR_DIED: _Kills(storm, "supervisor")}
    losses = []
    for ended in storm.jobs:
        for index, move in enumerate(ended.transitions):
            reason = next((reason for reason in kills if move.reason.startswith(reason)), None)
            kill = kills[reason].before(move.time) if reason is not None and move.old in RESIDENT else None
            if kill is not None:
                note = notes.get((move.job, _resumed_step(storm, move)), Note(seconds=0.0, interval_seconds=interval_seconds))
                losses.append(_loss(storm, ended.transitions, index, kill, note))
    return sorted(losses, key=lambda loss: (loss.job, loss.epoch))


class _Kills:
    """Finds the kill that a loss is due to: the last that the supervisor, or the next one, had noticed by then."""

    def __init__(self, storm: Storm, target: str) -> None:
        kills = [kill for kill in storm.kills if kill.target == target]
        known = [(kill.time if target != "worker" else _noticed(storm, kill), kill) for kill in kills]
        self._noticed = sorted(((time, kill) for time, kill in known if time is not None), key=lambda pair: pair[0])

    def before(self, time: float) -> Kill | None:
        """Return that of a loss at ``time``."""
        found = [kill for noticed, kill in self._noticed if time - MATCH_SECONDS <= noticed <= time]
        return found[-1] if found else None


def _noticed(storm: Storm, kill: Kill) -> float | None:
    """Return when the supervisor took note of a worker's end."""
    rows = [row for row in storm.workers if row.pid == kill.pid and row.started <= kill.time]
    return rows[-1].ended if rows else None


def _loss(storm: Storm, moves: Sequence[Transition], index: int, kill: Kill, note: Note) -> Loss:
    move = moves[index]
    seen = storm.residencies.get((move.job, move.epoch))
    began = next((past.time for past in moves[:index] if past.epoch == move.epoch and past.new is _S.RUNNING), None)
    back = next((later.time for later in moves[index + 1 :] if later.new is _S.RUNNING), None)
    steps = seconds = None
    if seen is not None and seen.last_step is not None and seen.resumed_step is not None:
        steps = max(0, seen.last_step - seen.resumed_step)
        if seen.resumed_time is not None and seen.resumed_epoch == move.epoch:
            seconds = kill.time - seen.resumed_time + note.seconds
        else:
            seconds = 0.0 if began is None else max(0.0, kill.time - began)
    return Loss(
        job=move.job,
        epoch=move.epoch,
        target=kill.target,
        noticed_seconds=move.time - kill.time,
        back_seconds=None if back is None else back - kill.time,
        redone_steps=steps,
        redone_seconds=seconds,
        interval_seconds=note.interval_seconds,
    )


def _resumed_step(storm: Storm, move: Transition) -> int:
    """Return the step of the checkpoint of this residency from which the next one went on; 0 if it had written none."""
    seen = storm.residencies.get((move.job, move.epoch))
    is_own = seen is not None and seen.resumed_epoch == move.epoch
    return seen.resumed_step or 0 if seen is not None and is_own else 0


def _times(ended: Ended, state: JobState) -> int:
    return sum(move.new is state for move in ended.transitions)


def _fate(ended: Ended | None) -> str:
    return "not in the store" if ended is None else f"{ended.row.state}: {ended.row.reason}"


def quantiles_of(losses: Sequence[Loss], figure: str, target: str | None = None) -> Quantiles | None:
    """Return the quantiles of a figure over the losses, to kills of ``target`` if given, where it is known."""
    values = [getattr(loss, figure) for loss in losses if target in {None, loss.target}]
    return Quantiles.of([value for value in values if value is not None])
