"""The supervisor: keeps workers busy with what is queued, for as long as it is left running. Free of torch.

One thread drives the workers, as in a run; ticks and admissions run beside it and hand it what concerns workers. All that must
survive is in the store before it is acted on, so this process may be killed at any time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from schedulers import registry
from unified import events
from unified.bookkeeper import Bookkeeper
from unified.budgets import Limits
from unified.conductor import Conductor
from unified.deadlines import DeadlineWatch
from unified.deciding import check_supplied
from unified.device import parse_device
from unified.errors import NurseryDiedError, WorkerDiedError
from unified.job_state import ENDED, RESIDENT, JobState
from unified.ledger import Ledger
from unified.mailbox import Mailbox
from unified.monitor import Monitor
from unified.nursery import Nursery
from unified.packing import Plan, Stage
from unified.planning import Planner
from unified.queue.config import ServiceConfig
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.queue.vetting import trust_in
from unified.service.admissions import Admitter
from unified.service.commands import Commands
from unified.service.complaints import Complaints
from unified.service.confining import confinement_of_workers
from unified.service.deadline_door import DeadlineDoor
from unified.service.job_files import JobFiles
from unified.service.journal import StoreJournal
from unified.service.narrator import Narrator
from unified.service.shortlist import Shortlist
from unified.service.status import StatusWriter, Tally
from unified.service.tensorboard_files import TensorboardFiles
from unified.service.ticker import Ticker
from unified.service.watchdog import Watchdog
from unified.service.working_set import WorkingSet
from unified.stacks import Stacks
from unified.telling import Telling

IDLE_SECONDS = 0.25
SAMPLE_SECONDS = 5.0  #: between two looks at the memory of all processes
_PACKER = "packer: interference"  #: under what the packer's memory is kept; no scheduler can be called so
REST_SECONDS = 10.0  #: after workers died before they got work

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """How a supervisor ended: jobs that were on slots, and how many of them are saved as they stood."""

    num_resident: int
    num_saved: int


class Supervisor:
    """Trains what is queued in a root.

    Args:
        root: The queue's folder, whose lock the caller holds.
        store: Its store.
        config: Its settings.
        holder: Name of this supervisor, ``host/pid/random``.
        nursery: Where workers come from.
        listeners: Told of every event, beside our own.
    """

    def __init__(
        self,
        root: Root,
        store: JobStore,
        config: ServiceConfig,
        *,
        holder: str,
        nursery: Nursery,
        listeners: Sequence[Callable[[events.Event], None]] = (),
    ) -> None:
        self.root, self.store, self.config, self.holder = root, store, config, holder
        self.nursery = nursery
        self.mailbox = Mailbox()
        self.tally = Tally()
        self._complaints = Complaints()
        self.started = time.time()
        self._began = time.monotonic()
        self.ticker: Ticker | None = None
        self._is_draining = self._is_fenced = False
        self._looked = time.monotonic()
        self._rests_until = 0.0
        self._saved_memory: dict[str, Any] | None = None
        self._saved_learning: dict[str, Any] | None = None
        self._workers: dict[int, int] = {}
        scheduler = registry.create(config.scheduler)
        check_supplied(scheduler, config.scheduler)
        devices = self.devices = parse_device(config.device)
        nursery.hides_gpus = devices == ("cpu",)
        self._planner = Planner(devices=devices, slots=config.slots, threads=config.threads)
        self.journal = StoreJournal(
            root=root,
            store=store,
            holder=holder,
            lease_seconds=config.lease_seconds,
            started=self.started,
            is_stopping=lambda: self._is_draining or self._is_fenced,
        )
        self.books = Bookkeeper(
            ledger=Ledger(),
            journal=self.journal,
            telling=Telling(scheduler=scheduler, name=config.scheduler),
            emit=self._emit,
            clock=self.now,
            limits=self.limits,
            keeps_cancelled=True,
            bans=set(store.bans()),
            stacks=Stacks(is_on=config.stacking and not config.deterministic),
        )
        self.conductor = Conductor(
            books=self.books,
            nursery=nursery,
            planner=self._planner,
            deterministic=config.deterministic,
            confinement=confinement_of_workers(root, config, devices),
            checkpoint_seconds=None,  # a tick asks for them, of parked members too
        )
        tensorboard = TensorboardFiles(root) if config.tensorboard else None
        files = JobFiles(root)
        self.narrator = Narrator(
            root=root,
            store=store,
            ledger=self.books.ledger,
            files=files,
            tensorboard=tensorboard,
            started=self.started,
            checkpoint_seconds=config.checkpoint_seconds,
        )
        self.commands = Commands(store=store, conductor=self.conductor, before_answer=lambda: self.write_status(is_exact=True))
        self._listeners = (self.narrator, self.tally, self._heed, *listeners)
        self.admitter = Admitter(
            root=root,
            store=store,
            config=config,
            nursery=nursery,
            planner=self._planner,
            on_verdict=lambda: self.mailbox.ask(self.working_set.refresh),
            on_rejected=lambda code: self.tally.rejected.update([code]),
        )
        self.working_set = WorkingSet(
            books=self.books,
            store=store,
            root=root,
            shortlist=Shortlist(store=store, scheduler=scheduler, window=config.window, started=self.started),
            num_threads=config.threads if self._planner.is_on_cpu else None,
            started=self.started,
            trust_in=lambda row: trust_in(root.spec(row.id), row, config),
            must_check_again=self._check_again,
            door=DeadlineDoor(conductor=self.conductor, store=store, reject=self.admitter.reject),
        )
        self._deadlines = DeadlineWatch(ledger=self.books.ledger, clock=self.now, emit=self._emit)
        self.status = StatusWriter(
            root=root,
            store=store,
            conductor=self.conductor,
            nursery=nursery,
            tally=self.tally,
            facts={
                "holder": holder,
                "started": self.started,
                "scheduler": config.scheduler,
                "decides_by": sorted(scheduler.needs),
                "device": ", ".join(devices),
                "sandbox": config.sandbox,
            },
        )
        self.watchdog = Watchdog(store=store, config=config, books=self.books, conductor=self.conductor)
        self._monitor = Monitor(nursery=nursery, slots=lambda: self.conductor.slots, devices=devices, seconds=SAMPLE_SECONDS)

    @property
    def limits(self) -> Limits:
        """What jobs may use up."""
        config = self.config
        return Limits(max_retries=0, max_infra_failures=config.max_infra_failures, retry_seconds=config.retry_seconds)

    @property
    def is_fenced(self) -> bool:
        """Whether another supervisor has taken the root."""
        return self._is_fenced

    def now(self) -> float:
        """Return the seconds since the supervisor was made: the clock of its events."""
        return time.monotonic() - self._began

    def run(self) -> Drained:
        """Train until :meth:`drain` or :meth:`fence` is called; return what became of the jobs on slots."""
        self.conductor.adopt(self._plan())
        self.books.telling.take_over(self.store.load_policy(self.config.scheduler))
        going_on = tuple(state for state in JobState if state not in ENDED)
        self.books.telling.forget_all_but({row.id for row in self.store.jobs(states=going_on)})
        learnt = self.store.load_policy(_PACKER)
        if learnt is not None:
            self.conductor.placer.interference.load_state_dict(learnt, self.now())
        self._emit_start()
        self.working_set.refresh()
        while not (self._is_draining or self._is_fenced):
            self._turn()
        return self._end()

    def drain(self) -> None:
        """Stop as soon as everybody is saved; safe in a signal handler."""
        self._is_draining = True
        self.mailbox.wake()

    def fence(self) -> None:
        """Stop at once, saving nothing: the root is somebody else's."""
        self._is_fenced = True
        self.mailbox.wake()

    def resident(self) -> frozenset[str]:
        """Return the ids of the jobs we hold; to be called by any thread."""
        return frozenset(record.name for record in self.books.ledger.all() if record.state in RESIDENT)

    def drop_lost(self, jobs: frozenset[str]) -> None:
        """Let go of jobs whose lease we no longer have."""
        for job in jobs:
            record = self.books.ledger.get(job)
            if record is not None and record.state in RESIDENT and self.store.get(job).holder != self.holder:
                logger.warning("job %s has passed to another supervisor; its member is dropped", job)
                self.books.lost.append(record)
        self._drop()

    def write_status(self, *, is_exact: bool = False) -> None:
        """Say how things are, in ``status.json``."""
        ticks, late = ({}, []) if self.ticker is None else (self.ticker.last_ok(), self.ticker.late())
        self.status.write(ticks=ticks, late=late, is_draining=self._is_draining, is_exact=is_exact)

    def save_policy(self) -> None:
        """Write down the scheduler's memory, if it has one that has changed, and the packer's."""
        memory = self.books.telling.memory()
        if memory is not None and memory != self._saved_memory:
            self.store.save_policy(self.config.scheduler, memory)
            self._saved_memory = memory
        learnt = self.conductor.placer.interference.state_dict()
        if learnt != self._saved_learning:
            self.store.save_policy(_PACKER, learnt)
            self._saved_learning = learnt

    def _plan(self) -> Plan:
        config, planner = self.config, self._planner
        if planner.is_on_cpu:
            count = config.slots if isinstance(config.slots, int) else max(1, planner.num_cores // config.threads)
            stage = Stage(threads=config.threads, slots=count, jobs=())
        else:
            count = config.slots if isinstance(config.slots, int) else len(planner.devices)
            stage = Stage(threads=None, slots=count, jobs=())
        return Plan(stages=(stage,), predicted_seconds=None, reason="a service: the same slots for everybody")

    def _emit_start(self) -> None:
        slots = self.conductor.describe_slots()
        self._emit(events.RunStarted(at=self.now(), slots=slots, scheduler=self.config.scheduler, plan="serves its queue"))

    def _turn(self) -> None:
        self.guarded(self.mailbox.run, "a request")
        self._drop()
        if time.monotonic() >= self._rests_until:
            self._advance()
        self._drop()
        self.guarded(self.commands.settle, "answering commands")
        self._listen()
        if self.ticker is not None and time.monotonic() - self._looked > 1.0:
            self._looked = time.monotonic()
            self.ticker.run_late()

    def guarded(self, act: Callable[[], None], what: str) -> None:
        """Do what somebody asked for; what goes wrong with it must not end everybody's training."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the border between one request and the service
            self._complaints.failed(what, error)
        else:
            self._complaints.succeeded(what)

    def _advance(self) -> None:
        began = time.perf_counter()
        try:
            self.conductor.advance()
        except NurseryDiedError as error:
            logger.warning("%s: a new one is started", error)
            self.nursery.revive()
        except Exception:  # a scheduler may be a plug-in
            self.tally.scheduler_errors += 1
            logger.exception("no turn could be given out; it is tried again in %g s", REST_SECONDS)
            self._rests_until = time.monotonic() + REST_SECONDS
        self.tally.decision_seconds += time.perf_counter() - began

    def _listen(self) -> None:
        pipes = self.conductor.pipes()
        ready: list[Any] = wait([*pipes, self.mailbox.fileno()], timeout=IDLE_SECONDS)
        for pipe in ready:
            if pipe == self.mailbox.fileno():
                self.mailbox.quiet()
                continue
            try:
                self.conductor.receive(pipes[pipe])
            except WorkerDiedError as error:
                logger.error("%s; trying again in %g s", error, REST_SECONDS)  # noqa: TRY400 - the message says it all
                self._rests_until = time.monotonic() + REST_SECONDS
            except Exception:  # one report must not end everybody's training
                logger.exception("a report of %s was lost; its worker is replaced", pipes[pipe].describe())
                self.conductor.stop_stalled(pipes[pipe])
        self.guarded(self._deadlines.look, "looking at deadlines")
        self.guarded(lambda: self._monitor.sample_if_due(self.now(), self._emit), "looking at memory")

    def _drop(self) -> None:
        """Let go of jobs that turned out to be somebody else's."""
        while self.books.lost:
            record = self.books.lost.pop()
            if record.name in self.books.ledger:
                self.narrator.files.drop(record.name)
                self.conductor.drop(record)

    def _end(self) -> Drained:
        """Save everybody and free their leases; without counting anything against them."""
        resident = [record for record in self.books.ledger.all() if record.slot is not None]
        if self._is_fenced:
            for record in resident:
                self.books.ledger.remove(record.name)
            self.conductor.stop()
            return Drained(num_resident=len(resident), num_saved=0)
        self.conductor.save_all(self.config.grace_seconds * 0.8)
        saved = sum(record.slot is None or record.is_hosting or record.is_safe for record in resident)
        for record in resident:
            if record.lacks_checkpoint and record.slot is not None:
                self.conductor.stop_stalled(self.conductor.slots[record.slot])  # it had its time; the others have theirs
        self.conductor.stop()
        self.guarded(self.save_policy, "saving the scheduler's memory")
        self.guarded(self.narrator.flush, "writing logs")
        return Drained(num_resident=len(resident), num_saved=saved)

    def _check_again(self, row: JobRow) -> None:
        self.store.admit(row.id, None, steps_total=row.steps_total, memory_bytes=row.memory_bytes)
        self.admitter.look()

    def _heed(self, event: events.Event) -> None:
        """Act on what needs more than a note."""
        if isinstance(event, events.WorkerStarted):
            if event.slot in self._workers:
                self.store.worker_ended(self._workers[event.slot], "replaced for another user's jobs")
            self._workers[event.slot] = self.store.worker_started(event.slot, event.pid)
        elif isinstance(event, events.WorkerLost):
            logger.warning(
                "the worker of slot %s died (%s); goes on: %s", event.slot, event.reason, ", ".join(event.jobs) or "–"
            )
            if event.slot in self._workers:
                self.store.worker_ended(self._workers.pop(event.slot), event.reason)
        elif isinstance(event, events.JobFailed):
            logger.warning("job %s: %s", event.job, event.reason)
        elif isinstance(event, events.JobCheckpointed):
            self.commands.checkpointed(event.job, event.step, os.path.relpath(event.path, self.root.path))
        elif isinstance(event, events.CheckpointRefused):
            self.commands.checkpoint_refused(event.job, event.reason)
            record = self.books.ledger.get(event.job)
            if event.is_disk and record is not None:
                reason = f"disk-full: a checkpoint of {event.num_bytes} bytes found no room ({event.reason})"
                self.mailbox.ask(lambda: self.conductor.set_aside_at_once(record, reason))

    def _emit(self, event: events.Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # one who only watches must not end anybody's training
                logger.exception("a listener failed on %s; the service goes on", type(event).__name__)
