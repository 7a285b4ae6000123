"""The engine's side of its workers: one handle per slot, and a reader for job folders. Free of torch."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from unified.admission import Submission
from unified.errors import ReadTimeoutError, ReportError, WorkerDiedError
from unified.ledger import JobRecord
from unified.messages import Command, Inspect, Inspected, StepsTimed, TimeSteps
from unified.nursery import Child, Nursery
from unified.quantities import plural
from unified.reports import receive
from unified.sandbox.records import Confinement


@dataclass(slots=True, kw_only=True)
class Slot:
    """Where one worker process runs: a device and, on a CPU, its number of intra-op threads.

    Attributes:
        index: Position in the run, from 0.
        device: ``"cpu"`` or ``"cuda:N"``.
        num_threads: Intra-op threads on a CPU.
        child: The worker process, or None while there is none.
        turn: Names of the jobs whose turn is under way, the leader of a stack first.
        num_in_turn: The most jobs that have had the turn under way, or the last one, together.
        may_be_joined: The turn under way lasts until its jobs are done, so that others may join it.
        is_ending: The worker was told to end the turn under way, for another unit's sake.
        attending: Name of the job whose own code the worker runs outside its turn, or None.
        last_report: When the worker last said anything, on the run's clock.
        is_stalled: It was ended because it said nothing for too long.
        num_workers: How many workers it has had.
        users: Whose jobs the worker process has hosted since it was started.
        is_one_users: It hosted a job that keeps to its user, whose code may have stayed: it hosts nobody else's any more.
    """

    index: int
    device: str
    num_threads: int
    child: Child | None = None
    turn: tuple[str, ...] = ()
    num_in_turn: int = 1
    may_be_joined: bool = False
    is_ending: bool = False
    attending: str | None = None
    last_report: float = 0.0
    is_stalled: bool = False
    num_workers: int = 0
    users: frozenset[str] = frozenset()
    is_one_users: bool = False

    @property
    def running(self) -> str | None:
        """The job whose turn is under way, or that leads in it; None between turns."""
        return self.turn[0] if self.turn else None

    @property
    def first_core(self) -> int:
        """Rank of the slot's first core among those that the process may use."""
        return self.index * self.num_threads

    def describe(self) -> str:
        """Return the slot in words, e.g. ``"slot 0: cpu, 1 thread"``."""
        if self.device != "cpu":
            return f"slot {self.index}: {self.device}"
        return f"slot {self.index}: cpu, {plural(self.num_threads, 'thread')}"

    def start(self, nursery: Nursery, *, deterministic: bool, confinement: Confinement | None) -> None:
        """Fork the slot's worker if it has none."""
        if self.child is None:
            self.is_stalled = self.is_one_users = False
            self.users = frozenset()
            self.num_workers += 1
            self.child = nursery.spawn(
                "unified.worker:run",
                device=self.device,
                num_threads=self.num_threads,
                first_core=self.first_core,
                deterministic=int(deterministic),
                confinement="" if confinement is None else confinement.to_json(),
            )

    def suits(self, jobs: Sequence[JobRecord], *, is_fresh: bool = False) -> bool:
        """Whether the worker process, or a new one if ``is_fresh``, may host these jobs together.

        What a process has hosted counts to its end: memory of earlier jobs may linger in it, and code that ran in it may stay.
        """
        users = {job.user for job in jobs}
        if not is_fresh:
            users |= self.users
        is_one_users = (self.is_one_users and not is_fresh) or any(job.keeps_to_its_user for job in jobs)
        return not is_one_users or len(users) == 1

    def note_guest(self, job: JobRecord) -> None:
        """Take note that the worker process hosts a job from now on."""
        self.users |= {job.user}
        self.is_one_users |= job.keeps_to_its_user

    def forget(self, job: str) -> None:
        """Take note that a job's turn, if it has one, concerns nobody any more."""
        self.turn = tuple(name for name in self.turn if name != job)

    def send(self, command: Command) -> bool:
        """Tell the worker; False if it is gone, which the engine will hear of from the closed pipe."""
        if self.child is None:
            return False
        try:
            self.child.pipe.send(command)
        except OSError:
            return False
        return True


@dataclass(slots=True, kw_only=True)
class Reader:
    """Reads job folders in short-lived inspector processes, several at a time.

    ``timeout_seconds`` is what one request may take; None: as long as it likes.
    """

    nursery: Nursery
    num_processes: int
    timeout_seconds: float | None = None
    _children: list[Child] = field(default_factory=list)

    def read(self, requests: Sequence[Inspect], *, num_threads: int = 1) -> list[tuple[Inspected, ...]]:
        """Return what was found, in the order of ``requests``: one answer for a job, one for each member of a sweep.

        Raises:
            WorkerDiedError: If an inspector died; the message names the folder it was reading.
        """
        return self._ask_all(requests, num_threads=num_threads, num_processes=self.num_processes)

    def time(self, submissions: Sequence[Submission], num_threads: int) -> list[StepsTimed]:
        """Time steps of these jobs, one after another, with ``num_threads`` each; raises as :meth:`read` does."""
        requests = [TimeSteps(submission=submission) for submission in submissions]
        return self._ask_all(requests, num_threads=num_threads, num_processes=1)

    def _ask_all(self, requests: Sequence[Any], *, num_threads: int, num_processes: int) -> list[Any]:
        if not requests:
            return []
        children = [
            self.nursery.spawn("unified.inspector:run", num_threads=num_threads)
            for _ in range(min(num_processes, len(requests)))
        ]
        try:
            return self._distribute(requests, children)
        finally:
            for child in children:
                self.nursery.reap(child)

    def _give_up(self, request: Inspect | TimeSteps, children: list[Child]) -> NoReturn:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        raise ReadTimeoutError(f"reading {_folder_of(request)} took longer than {self.timeout_seconds:g} s and was stopped")

    def _distribute(self, requests: Sequence[Any], children: list[Child]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        waiting = list(enumerate(requests))[::-1]
        busy: dict[Connection, int] = {}
        idle = [child.pipe for child in children]
        while waiting or busy:
            while idle and waiting:
                index, request = waiting.pop()
                pipe = idle.pop()
                pipe.send(request)
                busy[pipe] = index
            answered = wait(list(busy), timeout=self.timeout_seconds)
            if not answered:
                self._give_up(requests[next(iter(busy.values()))], children)
            for pipe in answered:
                assert isinstance(pipe, Connection), "only pipes were waited for"
                index = busy.pop(pipe)
                answers[index] = _receive(pipe, requests[index])
                idle.append(pipe)
        return answers


def _folder_of(request: Inspect | TimeSteps) -> Path:
    return request.folder if isinstance(request, Inspect) else request.submission.folder


def _receive(pipe: Connection, request: Inspect | TimeSteps) -> Any:
    try:
        return receive(pipe, tuple if isinstance(request, Inspect) else StepsTimed)
    except (EOFError, OSError, ReportError) as error:
        raise WorkerDiedError(
            f"the process that read {_folder_of(request)} died, most likely for lack of memory; "
            "hand that job in alone, or with a smaller model or batch_size"
        ) from error
