"""The engine: ties jobs, plan, scheduler and workers together. It decides nothing and trains nothing itself. Free of torch.

``submit`` reads jobs through an inspector, ``run`` plans slots, asks the scheduler who runs next, tells the workers, and yields
each job's result the moment it is on disk and verified. ``pause``, ``resume``, ``cancel`` and ``checkpoint`` may be called from
other threads, or between two results; they take effect at the next step boundary of the job they name.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from schedulers import base, registry
from unified import events, messages
from unified.bookkeeper import Bookkeeper
from unified.conductor import Conductor
from unified.deadlines import DeadlineWatch, deadline_problems, ineffective_deadline
from unified.deciding import check_supplied
from unified.device import parse_device
from unified.errors import InvalidSubmission, UnifiedError
from unified.intake import Intake
from unified.job import JobSpec
from unified.job_state import ENDED, JobState
from unified.ledger import JobRecord, Ledger, MemoryJournal, submitted_event
from unified.mailbox import Mailbox
from unified.monitor import Monitor
from unified.nursery import Nursery
from unified.packing import Plan
from unified.planning import Planner
from unified.results import Result, result_of
from unified.run_memory import RunMemory
from unified.run_plan import RunPlan
from unified.run_state import RunFolder
from unified.stacks import Stacks
from unified.telling import Telling

IDLE_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Engine:
    """Trains submitted jobs as members of one hybrid per slot.

    Args:
        scheduler: A policy's name, with options as in ``"round-robin:quantum=200"``, or an object with ``select``.
        slots: Number of workers, or ``"auto"``: one per GPU, or what the plan finds best on a CPU.
        threads: Intra-op threads of each CPU slot; by default planned.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        out: Folder for results; None keeps weights in memory and removes the files at the end.
        trust: Accept submissions that run code when they are loaded.
        resume: Go on with the run that ``out`` holds.
        deterministic: Use deterministic kernels only (on a GPU this makes results bit-equal to the plain loop).
        stacking: Let jobs of one architecture step as one where that is faster; never with ``deterministic``.
        listeners: Called with every event, in the engine's thread; what one raises is logged, and the run goes on.
        nursery: One that was started before, to save its start-up; the engine closes it.

    Raises:
        SchedulerConfigError: If the policy is unknown, or decides by what is not known of jobs here.
        UnifiedError: If the device is not there or ``slots``/``threads`` make no sense.

    Example:
        >>> import torch, unified
        >>> job = unified.JobSpec(
        ...     name="tiny", model=torch.nn.Linear(4, 2), data={"train": (torch.randn(32, 4), torch.zeros(32).long())},
        ...     loss="CrossEntropyLoss", optimizer={"name": "SGD", "lr": 0.1}, epochs=1, batch_size=8,
        ... )
        >>> with unified.Engine(slots=1) as engine:
        ...     name = engine.submit(job)
        ...     [(result.name, str(result.state)) for result in engine.run()]
        [('tiny', 'finished')]
    """

    def __init__(  # noqa: PLR0913 - the settings of a run, all optional, all by name
        self,
        *,
        scheduler: str | base.Scheduler = "default",
        slots: int | str = "auto",
        threads: int | None = None,
        device: str = "auto",
        out: str | Path | None = None,
        trust: bool = False,
        resume: bool = False,
        deterministic: bool = False,
        stacking: bool = True,
        listeners: Sequence[Callable[[events.Event], None]] = (),
        nursery: Nursery | None = None,
    ) -> None:
        self._scheduler = registry.create(scheduler) if isinstance(scheduler, str) else scheduler
        self.scheduler_name = scheduler if isinstance(scheduler, str) else type(scheduler).__name__
        check_supplied(self._scheduler, self.scheduler_name)
        self._keeps_files = out is not None
        self._folder = RunFolder(path=Path(out or tempfile.mkdtemp(prefix="unified-")).resolve())
        self._listeners = tuple(listeners)
        self._began = time.monotonic()
        self._ledger = Ledger()
        self._mailbox = Mailbox()
        self._lock = threading.Lock()
        self._is_closed, self._is_resumed = False, resume
        devices = parse_device(device)
        self._planner = Planner(devices=devices, slots=slots, threads=threads)
        self._planner.times_steps = "step_seconds" in self._scheduler.needs
        self._lock_file = self._folder.open(resume=resume)
        self._nursery = nursery or Nursery()
        self._nursery.hides_gpus = devices == ("cpu",)
        self._intake = Intake(nursery=self._nursery, folder=self._folder, planner=self._planner, trust=trust, resume=resume)
        self._books = Bookkeeper(
            ledger=self._ledger,
            journal=MemoryJournal(),
            telling=Telling(scheduler=self._scheduler, name=self.scheduler_name),
            emit=self._emit,
            clock=self.now,
            stacks=Stacks(is_on=stacking and not deterministic),
        )
        self._conductor = Conductor(
            books=self._books,
            nursery=self._nursery,
            planner=self._planner,
            deterministic=deterministic,
        )
        self._monitor = Monitor(nursery=self._nursery, slots=lambda: self._conductor.slots, devices=self._planner.devices)
        self._memory = RunMemory(folder=self._folder, telling=self._books.telling, ledger=self._ledger)
        if resume:
            self._memory.take_over()
        self._deadlines = DeadlineWatch(ledger=self._ledger, clock=self.now, emit=self._emit)
        self._reported: set[str] = set()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def now(self) -> float:
        """Return the seconds since the engine was made: the clock of all its events."""
        return time.monotonic() - self._began

    def submit(self, job: JobSpec) -> str:
        """Hand in a job made in Python and return its name; of a sweep the sweep's, while each member has its own.

        Raises:
            InvalidSubmission: With everything that is wrong with it.
            DoesNotFitError: If no slot could ever hold it.
            UnifiedError: If its name is taken.
        """
        self.submit_all([job])
        return job.name

    def submit_all(self, jobs: Sequence[JobSpec]) -> list[str]:
        """Hand in several jobs at once, which are read side by side; raises as :meth:`submit` does, for all of them.

        Returns:
            Their names, with those of the members of sweeps.
        """
        return self._admit(lambda: self._intake.read_specs(jobs))

    def submit_folders(self, folders: Sequence[str | Path]) -> list[str]:
        """Hand in job folders, or folders that hold job folders, and return the jobs' names.

        Raises:
            InvalidSubmission: With everything that is wrong with any of them; then none is accepted.
            DoesNotFitError: If no slot could ever hold one of them.
            UnifiedError: If a name is taken.
        """
        return self._admit(lambda: self._intake.read_folders([Path(folder) for folder in folders]))

    def inspect_folder(self, folder: str | Path) -> tuple[messages.Inspected, ...]:
        """Read one job folder without submitting it; of a sweep there is an answer for each member."""
        return self._intake.inspect(Path(folder))

    def dry_run(self) -> RunPlan:
        """Say what :meth:`run` would do: order, slots and threads, memory, shared data; nothing is started."""
        records = self._ledger.all()
        plan = self._planner.describe(self._make_plan(), records, self._scheduler, self._books.stacks)
        views = {record.name: record.view() for record in records}
        jobs = [replace(job, why=self._conductor.decider.explain(views[job.name])) for job in plan.jobs]
        return replace(plan, jobs=tuple(jobs))

    def run(self) -> Iterator[Result]:
        """Train what was submitted and yield each job's result the moment it is on disk, verified.

        Ends when every job has ended or is paused; after :meth:`resume` or :meth:`submit` call it again. A
        ``KeyboardInterrupt`` writes checkpoints first. Leaving the iterator early stops the workers; the jobs
        that had not ended go back to the queue.
        """
        self._check_open()
        if self._conductor.is_active:
            raise UnifiedError("this engine is running already; finish that iterator, or close() it, first")
        self._books.telling.forget_all_but([record.name for record in self._ledger.all()])
        plan = self._make_plan()
        self._folder.save_plan({record.name: record.num_threads for record in self._ledger.all()} | plan.threads_by_job)
        self._conductor.adopt(plan)
        self._monitor.sample(self.now(), self._emit)
        self._emit(
            events.RunStarted(
                at=self.now(),
                slots=self._conductor.describe_slots(),
                scheduler=self.scheduler_name,
                plan=plan.reason,
            )
        )
        try:
            yield from self._loop()
        except KeyboardInterrupt:
            self._conductor.checkpoint_all()
            raise
        finally:
            self._conductor.stop()
            self._memory.save()
            self._monitor.sample(self.now(), self._emit)
            self._emit(
                events.RunEnded(
                    at=self.now(),
                    num_finished=self._ledger.count(JobState.FINISHED),
                    num_failed=self._ledger.count(JobState.FAILED),
                    num_cancelled=self._ledger.count(JobState.CANCELLED),
                )
            )

    def pause(self, name: str) -> None:
        """Set a job aside at its next step boundary: a checkpoint is written and its memory freed.

        Raises:
            UnifiedError: If there is no such job, or it has ended.
        """
        record = self._living(name)
        self._mailbox.ask(lambda: self._conductor.pause(record))

    def resume(self, name: str) -> None:
        """Let a paused job wait for its turn again; raises as :meth:`pause` does."""
        record = self._living(name)
        self._mailbox.ask(lambda: self._conductor.resume(record))

    def cancel(self, name: str) -> None:
        """End a job at its next step boundary and keep nothing of it; raises as :meth:`pause` does."""
        record = self._living(name)
        self._mailbox.ask(lambda: self._conductor.cancel(record))

    def checkpoint(self, name: str) -> None:
        """Write a checkpoint of a job at its next step boundary; raises as :meth:`pause` does."""
        record = self._living(name)
        self._mailbox.ask(lambda: self._conductor.checkpoint(record))

    def state(self, name: str) -> JobState:
        """Return where a job stands.

        Raises:
            UnifiedError: If there is no such job.
        """
        return self._ledger[name].state

    def close(self) -> None:
        """End all processes and, without ``out``, remove the run's files."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._conductor.stop()
        finally:
            self._nursery.close()
            self._mailbox.close()
            os.close(self._lock_file)
            if not self._keeps_files:
                shutil.rmtree(self._folder.path, ignore_errors=True)

    def _make_plan(self) -> Plan:
        """Plan, time what the plan was guessing about, and plan again until nothing in it is a guess."""
        records = self._ledger.all()
        plan = self._planner.plan(records, self._scheduler)
        while (guessed := self._planner.untimed(plan, records)) is not None:
            num_threads, jobs = guessed
            self._intake.time_steps(jobs, num_threads)
            plan = self._planner.plan(records, self._scheduler)
        return plan

    def _admit(self, read: Callable[[], list[JobRecord]]) -> list[str]:
        """Take in what ``read`` returns, all of it or nothing; jobs count as submitted from before they were read."""
        self._check_open()
        submit_time = self.now()
        with self._lock:
            records = read()
            for position, record in enumerate(records):
                record.hand_in(submit_time + 1e-6 * position)  # those handed in together keep their order
            self._memory.restore(records)
            self._ledger.check_names(records)
            self._check_deadlines(records)
            self._ledger.add_all(records)
        if self._conductor.is_active:
            self._mailbox.ask(lambda: self._announce(records))  # scheduler and listeners belong to the thread that runs
        else:
            self._announce(records)
        return [record.name for record in records]

    def _check_deadlines(self, records: Sequence[JobRecord]) -> None:
        """Refuse jobs whose deadlines the scheduler could not keep; not those that an earlier run accepted."""
        decider, present = self._conductor.decider, self._ledger.all()
        for record in records:
            if (warning := ineffective_deadline(decider, record)) is not None:
                logger.warning("%s", warning)
        if isinstance(self._scheduler, base.Admits) and not self._is_resumed:
            num_slots = len(self._conductor.slots) or self._planner.least_slots([*present, *records], self._scheduler)
            problems = deadline_problems(decider, records, present, num_slots)
            if problems:
                raise InvalidSubmission(problems)

    def _announce(self, records: Sequence[JobRecord]) -> None:
        for record in records:
            if record.state is JobState.FINISHED:  # by the run that is taken up again
                self._emit(submitted_event(record))
                self._books.tell_finished(record)
            else:
                self._books.note(base.Submitted, record)
                self._emit(submitted_event(record))

    def _loop(self) -> Iterator[Result]:
        while True:
            self._mailbox.run()
            self._conductor.advance()
            for record in self._ledger.all():
                if record.state in ENDED and record.name not in self._reported:
                    self._reported.add(record.name)
                    yield self._result(record)
            if not self._mailbox and self._conductor.is_idle:
                return
            self._listen()

    def _listen(self) -> None:
        self._check_open()
        pipes = self._conductor.pipes()
        ready: list[Any] = wait([*pipes, self._mailbox.fileno()], timeout=IDLE_SECONDS)
        for pipe in ready:
            if pipe == self._mailbox.fileno():
                self._mailbox.quiet()
            else:
                self._conductor.receive(pipes[pipe])
        self._monitor.sample_if_due(self.now(), self._emit)
        self._deadlines.look()
        self._memory.save_if_due(self.now())

    def _result(self, record: JobRecord) -> Result:
        result = result_of(record)
        if not self._keeps_files:
            if record.state is JobState.FINISHED:
                _ = result.state_dict  # read now: the files go with the engine
            result.folder = None
        return result

    def _living(self, name: str) -> JobRecord:
        self._check_open()
        record = self._ledger[name]
        if record.state in ENDED:
            raise UnifiedError(f"job {name!r} has ended ({record.state}); nothing can be asked of it any more")
        return record

    def _check_open(self) -> None:
        if self._is_closed:
            raise UnifiedError("this engine is closed; make another one")

    def _emit(self, event: events.Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # one who only watches must not end anybody's training
                logger.exception("a listener failed on %s; the run goes on", type(event).__name__)
