"""What the supervisor does every few seconds: the ticks, each an idempotent function. Free of torch."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from unified.job_state import JobState
from unified.ledger import JobRecord
from unified.queue.errors import QueueError
from unified.queue.records import UNDER, Progress
from unified.queue.spool import Ingested, scan
from unified.service import recovery, retention
from unified.service.supervisor import Supervisor
from unified.service.ticker import Tick
from unified.service.watchdog import checkpoint_tick_seconds
from unified.summary import finite
from unified.waiting import why_waiting

DISK_FULL = "disk-full"  #: how the reason of a job begins that is paused until there is room

NUMBERS_SECONDS = 10.0  #: for which a reason stands of which only numbers have changed
_NUMBER = re.compile(r"[\d.]+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was written down of a job, in which epoch of its, and when."""

    epoch: int
    text: str
    time: float

    @classmethod
    def of(cls, record: JobRecord, texts: Mapping[str, str], now: float) -> Told | None:
        """Return what is to be said of a job; None if nothing is, as it comes or goes."""
        if record.is_running and record.state is JobState.RUNNING:
            return cls(epoch=record.epoch, text="trains", time=now)
        if record.name not in texts:
            return None
        has_failed = record.slot is None and record.num_infra_failures + record.num_job_failures > 0
        # what was read back from the store may be what we said the last time
        before = f"{record.reason}; " if record.reason and has_failed and UNDER not in record.reason else ""
        return cls(epoch=record.epoch, text=before + texts[record.name], time=now)

    def is_news(self, last: Told | None) -> bool:
        """Whether it differs from what was said; where only numbers do, that can wait for a while."""
        if last is None or last.epoch != self.epoch or _NUMBER.sub("", last.text) != _NUMBER.sub("", self.text):
            return True
        return last.text != self.text and self.time - last.time >= NUMBERS_SECONDS


@dataclass(slots=True, kw_only=True)
class Ticks:
    """The ticks of a supervisor.

    Attributes:
        supervisor: Whose.
        lock: Descriptor of the root's lock; None if we do not go by it.
    """

    supervisor: Supervisor
    lock: int | None
    _told: dict[str, Told] = field(default_factory=dict)
    _told_of: dict[str, str] = field(default_factory=dict)
    _noted: dict[str, Progress] = field(default_factory=dict)
    _strays: frozenset[tuple[str, int]] = frozenset()

    def all(self) -> list[Tick]:
        """Return them with their intervals."""
        config = self.supervisor.config
        scale = config.tick_seconds
        ask = self._in_loop
        return [
            Tick(name="heartbeat", seconds=config.heartbeat_seconds, run=self.heartbeat, own_thread=True),
            Tick(name="leases", seconds=min(5.0 * scale, config.lease_seconds / 2), run=self.leases),
            Tick(name="spool", seconds=scale, run=self.spool, own_thread=True),
            Tick(name="commands", seconds=0.3 * scale, run=ask(self.supervisor.commands.look)),
            Tick(name="queue", seconds=scale, run=self.queue),
            Tick(name="reasons", seconds=scale, run=ask(self.reasons)),
            Tick(name="notes", seconds=scale, run=ask(self.notes)),
            Tick(
                name="checkpoints",
                seconds=checkpoint_tick_seconds(config),
                run=ask(self.supervisor.watchdog.ask_for_checkpoints),
            ),
            Tick(name="watch", seconds=min(1.0, config.stall_seconds / 4), run=ask(self.supervisor.watchdog.watch)),
            Tick(name="policy", seconds=5.0 * scale, run=ask(self.supervisor.save_policy)),
            Tick(name="status", seconds=1.0, run=ask(self.supervisor.write_status)),
            Tick(name="disk", seconds=30.0 * scale, run=self.disk),
            Tick(name="retention", seconds=600.0 * scale, run=self.retention, own_thread=True),
        ]

    def _in_loop(self, run: Callable[[], None]) -> Callable[[], None]:
        """Return a tick that has ``run`` done by the thread that drives the workers, whose errors end nothing."""
        is_waiting = False

        def guarded() -> None:
            nonlocal is_waiting
            is_waiting = False
            self.supervisor.guarded(run, f"the tick {run.__name__!r}")

        def ask() -> None:
            nonlocal is_waiting
            if not is_waiting:  # one is enough, however busy the loop is
                is_waiting = True
                self.supervisor.mailbox.ask(guarded)

        return ask

    def heartbeat(self) -> None:
        """Renew the leases of all jobs we hold; find out which we no longer do, and whether the root is still ours."""
        supervisor = self.supervisor
        if self.lock is not None and not self._has_lock():
            logger.error("the lock of %s is somebody else's; this supervisor ends", supervisor.root.path)
            supervisor.fence()
            return
        expected = supervisor.resident()
        held = supervisor.store.renew(supervisor.holder, supervisor.config.lease_seconds)
        missing = expected - held
        if missing:
            supervisor.mailbox.ask(lambda: supervisor.drop_lost(missing))

    def _has_lock(self) -> bool:
        assert self.lock is not None, "only asked where there is one"
        try:
            return os.path.samestat(os.fstat(self.lock), self.supervisor.root.lock.stat())
        except FileNotFoundError:
            return False

    def leases(self) -> None:
        """Free the jobs of supervisors that have stopped renewing."""
        supervisor = self.supervisor
        count = recovery.release_expired(supervisor.store, supervisor.limits, mine=supervisor.holder)
        supervisor.tally.leases_expired += count
        self._free_strays()

    def _free_strays(self) -> None:
        """Free jobs whose lease we hold and renew, but that are on none of our slots: an error came between the two."""
        supervisor = self.supervisor
        resident = supervisor.resident()
        rows = [row for row in supervisor.store.held_by(supervisor.holder) if row.id not in resident]
        for row in rows:
            if (row.id, row.epoch) in self._strays:  # twice in a row: not one that is just being taken in, or has just left
                logger.warning("job %s is on no slot of ours, though we hold its lease", row.id)
                recovery.release(supervisor.store, row, "it was on no slot", supervisor.limits)
        self._strays = frozenset((row.id, row.epoch) for row in rows)

    def spool(self) -> None:
        """Take in what was dropped."""
        supervisor = self.supervisor
        for folder in (supervisor.root.incoming, supervisor.root.rejected):
            folder.mkdir(exist_ok=True)  # somebody may have tidied up
        found = scan(supervisor.root, supervisor.store, supervisor.config, now=time.time())
        for entry in found:
            supervisor.tally.rejected.update(problem.code for problem in entry.problems)
            self._tell(entry)
        if any(entry.outcome == "accepted" for entry in found):
            supervisor.admitter.look()

    def _tell(self, entry: Ingested) -> None:
        """Say what became of a dropped entry; one that is only delayed comes back at every scan."""
        if entry.outcome in {"accepted", "rejected"} or self._told_of.get(entry.entry) == entry.text:
            return
        logger.warning("incoming/%s: %s: %s", entry.entry, entry.outcome, entry.text)
        self._told_of = {name: text for name, text in self._told_of.items() if (self.supervisor.root.incoming / name).exists()}
        if entry.outcome == "delayed":
            self._told_of[entry.entry] = entry.text
        if entry.outcome == "duplicate" and entry.job is not None:
            job, text = entry.job.id, entry.text
            self.supervisor.mailbox.ask(lambda: self.supervisor.narrator.files.log(job, text))

    def queue(self) -> None:
        """Let jobs whose wait for a retry is over wait for a slot; look for new ones."""
        supervisor = self.supervisor
        for row in supervisor.store.due():
            try:
                supervisor.store.move(
                    row.id,
                    JobState.QUEUED,
                    old=JobState.RETRY_WAIT,
                    epoch=row.epoch,
                    reason="is tried again",
                    by="supervisor",
                    not_before=None,
                )
            except QueueError as error:
                logger.info("%s", error)
        supervisor.admitter.look()
        supervisor.mailbox.ask(supervisor.working_set.refresh)

    def reasons(self) -> None:
        """Write down why each job that does not train does not, and no more that it does not of those that do."""
        supervisor = self.supervisor
        texts = why_waiting(supervisor.conductor.placer, supervisor.conductor.decider)
        told: dict[str, Told] = {}
        for is_resident in (False, True):
            records = [record for record in supervisor.books.ledger.all() if (record.slot is not None) is is_resident]
            found = {record.name: Told.of(record, texts, supervisor.now()) for record in records}
            changed = {name: each for name, each in found.items() if each is not None and each.is_news(self._told.get(name))}
            if changed:
                supervisor.store.set_reason({name: each.text for name, each in changed.items()}, is_resident=is_resident)
            told |= {name: changed.get(name) or self._told[name] for name, each in found.items() if each is not None}
        self._told = told

    def notes(self) -> None:
        """Write down how far the jobs on slots have come, in one transaction, and their files."""
        supervisor = self.supervisor
        reports = {record.name: self._progress(record) for record in supervisor.books.ledger.all() if record.slot is not None}
        changed = [report for name, report in reports.items() if self._noted.get(name) != report]
        self._noted = reports
        if changed:
            fenced = supervisor.store.note(changed, holder=supervisor.holder)
            if fenced:
                supervisor.drop_lost(frozenset(fenced))
        supervisor.narrator.flush()
        supervisor.watchdog.charge_usage()
        supervisor.mailbox.ask(supervisor.journal.bring_out)  # the loop publishes too: never two at once

    def disk(self) -> None:
        """Let jobs go on that were paused for want of room, once there is enough of it."""
        supervisor = self.supervisor
        state = retention.disk_state(supervisor.root, supervisor.config)
        if state.is_low:
            logger.warning("%s is nearly full: nothing new is accepted", supervisor.root.path)
            return
        for row in supervisor.store.jobs(states=[JobState.PAUSED]):
            if row.reason.startswith(DISK_FULL) and state.has_room and state.free_bytes > 2 * _needed_bytes(row.reason):
                try:
                    supervisor.store.move(
                        row.id, JobState.QUEUED, old=row.state, epoch=row.epoch, reason="there is room again", by="supervisor"
                    )
                except QueueError as error:
                    logger.info("%s", error)

    def retention(self) -> None:
        """Remove what is too old."""
        supervisor = self.supervisor
        supervisor.mailbox.ask(supervisor.narrator.trim_timeline)
        for text in retention.sweep(supervisor.root, supervisor.store, supervisor.config, time.time()):
            logger.info("removed %s", text)

    def _progress(self, record: JobRecord) -> Progress:
        return Progress(
            job=record.name,
            epoch=record.epoch,
            steps_done=record.step,
            loss=None if record.loss is None else finite({"loss": record.loss})["loss"],
            metrics=finite(record.metrics),
            step_seconds=record.step_seconds or record.trial,
            memory_bytes=record.peak_bytes,
            training_seconds=self.supervisor.books.trained_seconds(record),
        )


def _needed_bytes(reason: str) -> int:
    """Return how much the checkpoint needed that found no room, as the reason says."""
    found = re.search(r"checkpoint of (\d+) bytes", reason)
    return int(found[1]) if found else 0
