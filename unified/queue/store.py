"""The store: the one place that holds the jobs of a queue and changes their states, durably."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection

from unified.job_state import JobState
from unified.queue import store_moves as moves
from unified.queue import store_notes as notes
from unified.queue import store_queries as queries
from unified.queue.clock import Clock
from unified.queue.database import Database
from unified.queue.errors import FencedError
from unified.queue.migrations import prepare
from unified.queue.records import (
    CheckpointRow,
    CommandRow,
    JobRow,
    NewJob,
    Page,
    Progress,
    Submitted,
    Transition,
    Usage,
    WaitingRow,
    WorkerRow,
)

_LAST_CHECK = "last_check"

P = ParamSpec("P")
T = TypeVar("T")


class JobStore:
    """The jobs of a queue. Threads may share one; each process opens its own.

    Every write is one transaction: it is on the disk when the method returns, and all of it or nothing. Writes raise
    :class:`OSError` if the disk is full or fails. Methods that take a job raise
    :class:`~unified.queue.errors.UnknownJobError` if there is none of that id.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._fenced_writes = 0
        self._counting = threading.Lock()

    @classmethod
    def open(cls, path_or_url: str | Path, *, clock: Clock | None = None) -> Self:
        """Open a store; make it, or bring it up to date, where needed.

        Args:
            path_or_url: A file, or the URL of a database.
            clock: Where the time comes from, the host's clocks by default.

        Raises:
            RootError: If it cannot be used, e.g. is on a network file system.
            StoreVersionError: If this code cannot read its version.
        """
        database = Database.open(path_or_url)
        try:
            prepare(database)
        except BaseException:
            database.close()
            raise
        return cls(database, clock or Clock.system())

    def close(self) -> None:
        """Close it; it may be closed twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Jobs: what there is

    def get(self, job: str) -> JobRow:
        """Return a job."""
        return self._read(queries.get, job)

    def resolve(self, prefix: str, *, user: str | None = None) -> str:
        """Return the id that begins with ``prefix``, among ``user``'s jobs if given; one that is ``prefix`` wins.

        Raises:
            UnknownJobError: If there is none.
            AmbiguousIdError: If there are several.
        """
        return self._read(queries.resolve, prefix, user)

    def page(
        self,
        *,
        states: Collection[JobState] = (),
        user: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Page:
        """Return up to ``limit`` jobs by (submit_time, id), behind the page that gave ``cursor``.

        A job that is there all the while comes exactly once, whatever is submitted or changes its state between two pages.

        Raises:
            BadCursorError: If no page in this order gave ``cursor``.
        """
        return self._read(queries.page, states=states, user=user, cursor=cursor, limit=limit, newest_first=newest_first)

    def jobs(self, *, states: Collection[JobState] = (), user: str | None = None) -> list[JobRow]:
        """Return all jobs, in some states or of one user where given, by (submit_time, id)."""
        return self._read(queries.jobs, states, user)

    def waiting(self, limit: int) -> list[JobRow]:
        """Return the first queued jobs that were checked, by (priority, submit_time)."""
        return self._read(queries.queued, limit, is_checked=True)

    def waiting_epochs(self) -> dict[str, int]:
        """Return all queued jobs that were checked, each with its epoch."""
        return self._read(queries.waiting_epochs)

    def waiting_rows(self, ids: Sequence[str]) -> list[WaitingRow]:
        """Return what a scheduler may go by of jobs; those that are not queued, or not checked, are left out."""
        return self._read(queries.waiting_rows, ids)

    def queued_rows(self, ids: Sequence[str]) -> list[JobRow]:
        """Return jobs, in no order; those that are not queued, or not checked, are left out."""
        return self._read(queries.queued_rows, ids)

    def unchecked(self, limit: int) -> list[JobRow]:
        """Return the first queued jobs that are yet to be checked, by (priority, submit_time)."""
        return self._read(queries.queued, limit, is_checked=False)

    def counts(self, user: str | None = None) -> dict[JobState, int]:
        """Return the number of jobs, of one user or all, in each state that has any."""
        return self._read(queries.counts, user)

    def bytes_by_user(self) -> dict[str, int]:
        """Return the sizes of all job folders, summed by user."""
        return self._read(queries.bytes_by_user)

    def transitions(self, job: str) -> list[Transition]:
        """Return how a job's state changed, in order."""
        return self._read(queries.transitions, job)

    def due(self, now: float | None = None) -> list[JobRow]:
        """Return the jobs that wait for another try and have waited long enough at ``now``, wall clock."""
        return self._read(queries.due, self._clock.wall() if now is None else now)

    # Jobs: what happens to them

    def submit(self, new: NewJob, *, by: str) -> Submitted:
        """Accept a job. The same one again, by its id or its user's token, answers with the first and changes nothing.

        Raises:
            ConflictError: If the id or the token is taken by other content.
            InvalidSubmission: If it is signed, and the signature has expired or was used before.
        """
        return self._write(moves.submit, new, by, self._clock.wall())

    def move(
        self,
        job: str,
        to: JobState,
        *,
        old: JobState,
        epoch: int,
        reason: str,
        by: str,
        holder: str | None = None,
        **changes: Any,
    ) -> JobRow:
        """Change a job's state, if it still is what the caller thinks it is.

        A job that leaves its slot loses lease and holder; one that ends gets its ``finished_time``.

        Args:
            job: Its id.
            to: The new state.
            old: The one it must be in.
            epoch: The one it must be in.
            reason: Why, in words for its owner.
            by: Who does it.
            holder: If given, who must have its lease.
            **changes: Other fields of the :class:`~unified.queue.records.JobRow` that change with it.

        Raises:
            IllegalMoveError: If :data:`~unified.job_state.LEGAL_MOVES` has no such move; LOADING is reached by :meth:`lease`.
            FencedError: If the epoch or the holder is another one by now.
            ConflictError: If the state is another one by now.
        """
        asked = moves.Move(job=job, to=to, old=old, epoch=epoch, reason=reason, by=by, holder=holder, changes=changes)
        with self._counting_fenced():
            return self._write(moves.move, asked, self._clock)

    def lease(self, job: str, *, holder: str, slot: int, seconds: float, reason: str, by: str) -> JobRow:
        """Take a queued job to a slot: LOADING, with a new epoch and a lease for some seconds.

        Raises:
            FencedError: If it is not queued any more.
        """
        asked = moves.Lease(job=job, holder=holder, slot=slot, seconds=seconds, reason=reason, by=by)
        return self._write(moves.lease, asked, self._clock)

    def renew(self, holder: str, seconds: float) -> frozenset[str]:
        """Let all leases of ``holder`` end some seconds from now; return the ids of the jobs that it still has."""
        return self._write(moves.renew, holder, seconds, self._clock)

    def expired(self) -> list[JobRow]:
        """Return the jobs on slots whose lease is over, or is of another boot of the host."""
        return self._read(queries.expired, self._clock)

    def held_by(self, holder: str) -> list[JobRow]:
        """Return the jobs that ``holder`` has, their leases over or not."""
        return self._read(queries.held_by, holder)

    def holders(self) -> frozenset[str]:
        """Return all who have a job."""
        return self._read(queries.holders)

    def note(self, progress: Sequence[Progress], *, holder: str) -> frozenset[str]:
        """Write down a turn's report; return the ids of jobs that are not ``holder``'s in that epoch any more."""
        fenced = self._write(moves.note, progress, holder)
        self._count_fenced(len(fenced))
        return fenced

    def set_reason(self, reasons: Mapping[str, str], *, is_resident: bool = False) -> None:
        """Say why jobs wait, by id, for a slot or (``is_resident``) on one. Those that do not any more keep their reason."""
        self._write(moves.set_reasons, reasons, is_resident)

    def admit(self, job: str, admission: dict[str, Any] | None, *, steps_total: int | None, memory_bytes: int | None) -> bool:
        """Write down what the check of a job found, None to have it checked again; False if it waits no more."""
        found = {"admission": admission, "steps_total": steps_total, "memory_bytes": memory_bytes}
        return self._write(moves.set_in_states, job, (JobState.QUEUED, JobState.PAUSED), found)

    def set_threads(self, job: str, num_threads: int | None) -> None:
        """Fix with how many threads a job trains."""
        self._write(moves.set_in_states, job, (), {"num_threads": num_threads})

    def forget(self, job: str) -> None:
        """Remove a job that has ended and all that is stored of it; its files are left alone.

        Raises:
            ConflictError: If it has not ended.
        """
        self._write(moves.forget, job)

    @property
    def fenced_writes(self) -> int:
        """How many writes of this process came too late, and changed nothing."""
        return self._fenced_writes

    # Checkpoints

    def add_checkpoint(self, row: CheckpointRow, *, holder: str) -> None:
        """Make a checkpoint current whose file is on the disk.

        Raises:
            FencedError: If the job is not ``holder``'s in that epoch any more.
        """
        with self._counting_fenced():
            self._write(moves.add_checkpoint, row, holder)

    def checkpoints(self, job: str) -> list[CheckpointRow]:
        """Return a job's checkpoints, newest first."""
        return self._read(queries.checkpoints, job)

    def drop_checkpoint(self, job: str, epoch: int, step: int) -> None:
        """Forget a checkpoint; its file is left alone."""
        self._write(moves.drop_checkpoint, job, epoch, step)

    # Commands: what a supervisor is asked to do

    def command(self, job: str, verb: str, *, by: str) -> CommandRow:
        """Ask the supervisor to do something with a job."""
        return self._write(notes.add_command, job, verb, by, self._clock.wall())

    def pending(self) -> list[CommandRow]:
        """Return what is asked and not done yet, in the order asked."""
        return self._read(notes.pending)

    def get_command(self, sequence: int) -> CommandRow:
        """Return a command, which goes with its job."""
        return self._read(notes.get_command, sequence)

    def settle(self, sequence: int, outcome: str) -> None:
        """Say what came of a command; the first word stands."""
        self._write(notes.settle, sequence, outcome)

    # What else the supervisor keeps

    def add_ban(self, one: str, other: str) -> None:
        """Keep two jobs from sharing a slot."""
        self._write(notes.add_ban, one, other)

    def bans(self) -> frozenset[frozenset[str]]:
        """Return the pairs of jobs that may not share a slot."""
        return self._read(notes.bans)

    def worker_started(self, slot: int, pid: int) -> int:
        """Write down a new worker process; return its number."""
        return self._write(notes.worker_started, slot, pid, self._clock.wall())

    def worker_ended(self, sequence: int, how: str) -> None:
        """Write down how a worker process ended; the first word stands."""
        self._write(notes.worker_ended, sequence, how, self._clock.wall())

    def workers(self, slot: int | None = None) -> list[WorkerRow]:
        """Return the worker processes of a slot, or of all, in the order they were started."""
        return self._read(notes.workers, slot)

    def add_usage(self, user: str, slot_seconds: float, byte_seconds: float) -> None:
        """Add to what a user has used."""
        self._write(notes.add_usage, user, slot_seconds, byte_seconds)

    def usage(self) -> list[Usage]:
        """Return what each user has used, by name."""
        return self._read(notes.usage)

    def stamp(self, tick: str) -> None:
        """Say that a tick was done now."""
        self._write(notes.stamp, tick, self._clock.wall())

    def ticks(self) -> dict[str, float]:
        """Return when each tick was last done, wall clock."""
        return self._read(notes.ticks)

    def save_policy(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep the state of a scheduler."""
        self._write(notes.save_policy, name, state)

    def load_policy(self, name: str) -> dict[str, Any] | None:
        """Return the state of a scheduler that was kept last, if any."""
        return self._read(notes.load_policy, name)

    def set_meta(self, key: str, value: str) -> None:
        """Keep a word under a key."""
        self._write(notes.set_meta, key, value)

    def get_meta(self, key: str) -> str | None:
        """Return the word under a key, if any."""
        return self._read(notes.get_meta, key)

    def check(self) -> None:
        """Write something, to see whether that is possible; if not, it raises."""
        self.set_meta(_LAST_CHECK, repr(self._clock.wall()))

    def _read(self, query: Callable[Concatenate[Connection, P], T], *given: P.args, **named: P.kwargs) -> T:
        with self._database.reading() as connection:
            return query(connection, *given, **named)

    def _write(self, change: Callable[Concatenate[Connection, P], T], *given: P.args, **named: P.kwargs) -> T:
        with self._database.writing() as connection:
            return change(connection, *given, **named)

    @contextmanager
    def _counting_fenced(self) -> Iterator[None]:
        try:
            yield
        except FencedError:
            self._count_fenced(1)
            raise

    def _count_fenced(self, number: int) -> None:
        with self._counting:
            self._fenced_writes += number
