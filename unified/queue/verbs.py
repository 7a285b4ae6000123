"""What one can ask of a queue: the verbs behind the command line, the HTTP API and the Python client."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unified.errors import InvalidSubmission, Problem
from unified.job_state import ENDED, RESIDENT, IllegalMoveError, JobState
from unified.queue.archive import submit_archive
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, FencedError
from unified.queue.reasons import NO_SUPERVISOR, explain, reason
from unified.queue.records import CommandRow, JobRow, Page, Submitted
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.queue.submitting import submit_folder
from unified.queue.sweeping import submit_all
from unified.queue.verb_rules import CANCEL, CHECKPOINT, FRESH, FROM_SCRATCH, PAUSE, REQUEUE, RESUME, VERBS, Verb, way_out

_S = JobState
_RACES = 20  #: how often a job may change under our hands before we give up
_POLL_SECONDS = 0.05
_POLL_MANY_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a verb.

    Attributes:
        job: The job as it is now.
        done: Whether what was asked is so; False while a supervisor has yet to carry it out.
        text: What happened, in words.
        command: Number of the command that the supervisor has to carry out, or had to; None if it took none.
    """

    job: JobRow
    done: bool
    text: str
    command: int | None = None


class Queue:
    """A queue: its folder, its store, its settings, and what one can ask of it. Ids may be shortened while unique.

    Where a ``user`` is given, other users' jobs do not exist: :class:`UnknownJobError`. ``by`` is who asks, for the record.
    """

    def __init__(self, root: Root, store: JobStore, config: ServiceConfig) -> None:
        self.root = root
        self.store = store
        self.config = config

    @classmethod
    def open(cls, path: str | Path, *, make: bool = False) -> Self:
        """Open the queue in the folder ``path``.

        Args:
            path: Its root.
            make: Whether to make a queue there if there is none.

        Raises:
            RootError: If there is none, or it cannot be used.
            StoreVersionError: If another version of unified made it.
        """
        root = Root.make(path) if make else Root.open(path)
        config = ServiceConfig.read(root.config)
        return cls(root, JobStore.open(root.database), config)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # What there is

    @property
    def is_served(self) -> bool:
        """Whether a supervisor runs."""
        return self.root.supervisor() is not None

    def status(self) -> dict[str, Any] | None:
        """Return what the supervisor last said of itself; None if none runs."""
        return self.root.read_status() if self.is_served else None

    def get(self, job: str, *, user: str | None = None) -> JobRow:
        """Return a job.

        Raises:
            UnknownJobError: If there is none of that id.
            AmbiguousIdError: If the id is shortened too much.
        """
        return self.store.get(self.store.resolve(job, user=user))

    def reason(self, row: JobRow) -> str:
        """Say why a job stands where it stands."""
        is_served = row.state in ENDED or self.is_served
        if row.state is _S.RUNNING and is_served and self._is_parked(row):
            return "parked: on its slot, another has its turn"
        return reason(row, is_served=is_served, now=time.time())

    def _is_parked(self, row: JobRow) -> bool:
        slots = (self.root.read_status() or {}).get("slots") or []
        return any(slot.get("index") == row.slot and slot.get("running") not in {None, row.id} for slot in slots)

    def explain(self, job: str, *, user: str | None = None) -> list[str]:
        """Say in sentences what a job waits for, and what decides when it is its turn."""
        return explain(self.get(job, user=user), self.store, self.status(), now=time.time())

    def log(self, job: str, *, user: str | None = None) -> Path:
        """Return where the job's log is; the file comes with the first line."""
        return self.root.log(self.get(job, user=user).id)

    def metrics(self, job: str, since: int = 0, *, user: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of the job's metrics from step ``since`` on.

        A row of that very step may have come after the last look, so it is not left out.
        """
        path = self.root.metrics(self.get(job, user=user).id)
        try:
            lines = path.read_bytes().split(b"\n")[:-1]  # behind the last newline: a line still being written
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by a kill; the writer goes on behind it
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict) and row.get("step", 0) >= since]

    def artifacts(self, job: str, *, user: str | None = None) -> list[Path]:
        """Return the files of the job's published result, or of what is left of one that was given up."""
        folder = self.artifact_folder(job, user=user)
        return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

    def artifact_folder(self, job: str, *, user: str | None = None) -> Path:
        """Return the folder of :meth:`artifacts`; it is there only if there are any."""
        row = self.get(job, user=user)
        if row.state is _S.DEAD:
            return self.root.dead(row.id)
        published, working = self.root.result(row.id), self.root.working_result(row.id, row.epoch)
        # Between the commit and the renaming, the result is where it was written.
        is_on_its_way = row.state is _S.FINISHED and not published.is_dir() and working.is_dir()
        return working if is_on_its_way else published

    def wait(self, jobs: Sequence[str], *, timeout: float | None = None, user: str | None = None) -> Iterator[JobRow]:
        """Yield each of the jobs as it ends; a finished one when its result is in ``results/``.

        Raises:
            TimeoutError: If some have not ended after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        left = list(dict.fromkeys(self.store.resolve(job, user=user) for job in jobs))
        while True:
            began = time.monotonic()
            for job in tuple(left):
                row = self.store.get(job)
                if row.state in ENDED and not self._is_on_its_way(row):
                    left.remove(job)
                    yield row
            if not left:
                return
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"{len(left)} of the jobs have not ended: {', '.join(left[:10])}")
            # Looking at many jobs takes a while, and must not keep the store busy.
            pause = max(_POLL_MANY_SECONDS, now - began)
            time.sleep(pause if deadline is None else min(pause, deadline - now))

    def _is_on_its_way(self, row: JobRow) -> bool:
        """Whether a job's result is committed, and about to be moved to where its owner looks for it."""
        if row.state is not _S.FINISHED or self.root.result(row.id).is_dir() or not self.is_served:
            return False
        return self.root.working_result(row.id, row.epoch).is_dir()

    # Behind those that return lists, as in the rest of the class the word means this method.
    def list(
        self,
        *,
        states: Sequence[JobState] = (),
        user: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Page:
        """Return a page of the jobs in these states (none given: in any), in order of submission."""
        return self.store.page(states=states, user=user, cursor=cursor, limit=limit, newest_first=newest_first)

    # What changes something

    def submit(
        self, path: str | Path, *, by: str, user: str | None = None, changes: Mapping[str, Any] | None = None
    ) -> Submitted:
        """Take in a job folder, or a zip of one, but no sweep; when this returns, the job survives a power cut.

        Args:
            path: The folder or the zip.
            by: Who submits.
            user: Whose job it is; by default what ``job.json`` says.
            changes: Fields of ``job.json`` that are to be others.

        Raises:
            InvalidSubmission: With all that is wrong with it.
            ConflictError: If there is another job of that id, or of that client_token.
            RefusedError: If it is too large, over a limit, or the disk is full.
        """
        path = Path(path)
        changes = dict(changes or {})
        if path.is_dir():
            return submit_folder(self.root, self.store, path, by=by, user=user, changes=changes)
        if path.is_file() and path.suffix.lower() == ".zip":
            return submit_archive(self.root, self.store, path, by=by, user=user, changes=changes)
        raise InvalidSubmission([_no_job(path)])

    def submit_all(
        self, path: str | Path, *, by: str, user: str | None = None, changes: Mapping[str, Any] | None = None
    ) -> tuple[Submitted, ...]:
        """Take in the job in a folder or zip, or all members of its sweep; arguments and errors are those of :meth:`submit`."""
        path = Path(path)
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
            return tuple(submit_all(self.root, self.store, path, by=by, user=user, changes=changes))
        raise InvalidSubmission([_no_job(path)])

    def pause(self, job: str, *, by: str, user: str | None = None, wait_seconds: float | None = None) -> Outcome:
        """Set a job aside; its memory is free when it is PAUSED. Raises like :meth:`cancel`."""
        return self._carry_out(PAUSE, self.store.resolve(job, user=user), by, wait_seconds)

    def resume(self, job: str, *, by: str, user: str | None = None, wait_seconds: float | None = None) -> Outcome:
        """Let a paused job wait for a slot again, in its old place. Raises like :meth:`cancel`."""
        return self._carry_out(RESUME, self.store.resolve(job, user=user), by, wait_seconds)

    def cancel(self, job: str, *, by: str, user: str | None = None, wait_seconds: float | None = None) -> Outcome:
        """End a job; it is CANCELLED when it is off its slot.

        Args:
            job: Its id, may be shortened.
            by: Who asks.
            user: If given, whose job it must be.
            wait_seconds: How long to wait for the supervisor, if it takes one; None: not at all.

        Raises:
            UnknownJobError: If there is no such job.
            AmbiguousIdError: If the id is shortened too much.
            ConflictError: If it cannot be done in the job's present state, which the message names.
        """
        return self._carry_out(CANCEL, self.store.resolve(job, user=user), by, wait_seconds)

    def checkpoint(self, job: str, *, by: str, user: str | None = None, wait_seconds: float | None = None) -> Outcome:
        """Save a job's state now. One that is on no slot is saved already. Raises like :meth:`cancel`."""
        row = self.get(job, user=user)
        if row.state in RESIDENT or row.state in ENDED:
            return self._carry_out(CHECKPOINT, row.id, by, wait_seconds)
        saved = self.store.checkpoints(row.id)
        if not saved:
            raise ConflictError(f"job {row.id}: it is {row.state}, on no slot, and has no checkpoint: there is nothing to save")
        return Outcome(job=row, done=True, text=f"saved already: step {saved[0].step}, {saved[0].path}")

    def requeue(
        self,
        job: str,
        *,
        by: str,
        user: str | None = None,
        wait_seconds: float | None = None,
        from_scratch: bool = False,
    ) -> Outcome:
        """Queue a job again that failed, was given up or cancelled, with all its tries.

        Args:
            job: Its id, may be shortened.
            by: Who asks.
            user: If given, whose job it must be.
            wait_seconds: Ignored, as it is done at once; so that all verbs are called alike.
            from_scratch: Forget its checkpoints, and train it from the beginning.

        Raises:
            ConflictError: If it has not ended, is finished, or what was submitted is gone; else like :meth:`cancel`.
        """
        row = self.get(job, user=user)
        if row.state in REQUEUE.moves:
            if not (self.root.spec(row.id) / "job.json").is_file():
                raise ConflictError(f"job {row.id}: what was submitted is gone; submit it anew")
            if from_scratch:
                self._forget_checkpoints(row.id)
        elif from_scratch:
            raise ConflictError(f"job {row.id}: cannot requeue it from scratch: it is {row.state}; cancel it first")
        return self._carry_out(REQUEUE, row.id, by, wait_seconds, FRESH | (FROM_SCRATCH if from_scratch else {}))

    def _forget_checkpoints(self, job: str) -> None:
        # Rows first: a file without a row is swept away some day, a row without its file would be a broken promise.
        for saved in self.store.checkpoints(job):
            self.store.drop_checkpoint(job, saved.epoch, saved.step)
        folder = self.root.checkpoints(job)
        # Then the seals, without which the rest is no checkpoint to anybody.
        for path in sorted(folder.glob("*"), key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)

    def _carry_out(
        self, verb: Verb, job: str, by: str, wait_seconds: float | None, changes: Mapping[str, Any] | None = None
    ) -> Outcome:
        """Do at once what needs no worker, ask the supervisor for the rest; again if the job changed meanwhile."""
        for _ in range(_RACES):
            row = self.store.get(job)
            asked = [command for command in self.store.pending() if command.job == job]
            # A job that runs has nothing to resume, unless it was asked to pause and the supervisor has yet to do so.
            overtaken = bool(asked and verb.asked and row.state in RESIDENT & verb.already)
            if row.state in verb.asked or overtaken:
                last = asked[-1] if asked and asked[-1].verb == verb.name else None
                command = last or self.store.command(job, verb.name, by=by)
                return self._wait_for(command, wait_seconds)
            if row.state in verb.already:
                return Outcome(job=row, done=True, text=f"already {row.state if verb.moves else verb.past}")
            if row.state not in verb.moves:
                raise ConflictError(f"job {job}: cannot {verb.name} it: it is {row.state}{way_out(verb, row.state)}")
            with contextlib.suppress(FencedError, ConflictError, IllegalMoveError):
                return self._move(verb, row, by, changes or {})
        raise ConflictError(f"job {job}: it changes too quickly to {verb.name} it; try again")

    def _move(self, verb: Verb, row: JobRow, by: str, changes: Mapping[str, Any]) -> Outcome:
        to = verb.moves[row.state]
        said = f"{verb.past} by {by}" if by else verb.past
        moved = self.store.move(
            row.id,
            to,
            old=row.state,
            epoch=row.epoch,
            reason=f"{said}; waits for a slot" if to is _S.QUEUED else said,
            by=by,
            **changes,
        )
        return Outcome(job=moved, done=True, text=verb.past)

    def finish(self, outcome: Outcome, wait_seconds: float) -> Outcome:
        """Wait until the supervisor has done what was asked of it, if it has yet to; so several jobs can be asked first.

        Raises:
            ConflictError: If it could not be done.
        """
        if outcome.done or outcome.command is None:
            return outcome
        return self._wait_for(self.store.get_command(outcome.command), wait_seconds)

    def _wait_for(self, command: CommandRow, wait_seconds: float | None) -> Outcome:
        deadline = time.monotonic() + (wait_seconds or 0.0)
        while command.outcome is None:
            is_served = self.is_served
            if not is_served or time.monotonic() >= deadline:
                why = "it is being done" if is_served else f"{NO_SUPERVISOR}: it is done as soon as one runs"
                text = f"{command.verb} asked for; {why}"
                return Outcome(job=self.store.get(command.job), done=False, text=text, command=command.sequence)
            time.sleep(_POLL_SECONDS)
            command = self.store.get_command(command.sequence)
        row = self.store.get(command.job)
        kind, _, details = command.outcome.partition(": ")
        if kind == "conflict":
            raise ConflictError(f"job {row.id}: cannot {command.verb} it: {details or row.state}")
        past = VERBS[command.verb].past
        return Outcome(job=row, done=True, text=f"{past}: {details}" if details else past, command=command.sequence)


def _no_job(path: Path) -> Problem:
    return Problem(
        code="E-FOLDER",
        job=path.stem or str(path),
        field=str(path),
        expected="a job folder or a .zip of one",
        given="a file of another kind" if path.exists() else "nothing",
        remedy="name the folder that holds job.json",
    )
