"""Looks after the jobs on slots: workers that hang, jobs that train too long, checkpoints that are due, what all of it costs.

Free of torch.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field

from unified.bookkeeper import Bookkeeper
from unified.conductor import Conductor
from unified.job_state import JobState
from unified.queue.config import ServiceConfig
from unified.queue.store import JobStore
from unified.slots import Slot

STALL_FACTOR = 20  #: a worker may be silent for so many of a job's measured steps, however short stall_seconds is

logger = logging.getLogger(__name__)


def checkpoint_tick_seconds(config: ServiceConfig) -> float:
    """Return how often to look whose checkpoint is due."""
    return min(1.0, config.checkpoint_seconds / 8)


@dataclass(slots=True, kw_only=True)
class Watchdog:
    """What is done for those who train, every now and then, by the thread that drives their workers.

    Attributes:
        store: Where usage is written down.
        config: The service's settings.
        books: The jobs.
        conductor: Who tells the workers.
    """

    store: JobStore
    config: ServiceConfig
    books: Bookkeeper
    conductor: Conductor
    _charged: float = field(default_factory=time.monotonic)

    def watch(self) -> None:
        """End workers that say nothing any more, and jobs that have trained for too long."""
        now = self.books.clock()
        for slot in self.conductor.slots:
            residents = self.books.ledger.resident(slot.index)
            going = (record.name for record in residents if record.is_returning or record.leaving)
            job = slot.running or slot.attending or next(going, None)
            if slot.child is None or job is None or slot.is_stalled:
                continue
            record = self.books.ledger.get(job)
            step_seconds = (record.step_seconds or 0.0) if record is not None else 0.0
            if now - slot.last_report > max(self.config.stall_seconds, STALL_FACTOR * step_seconds):
                logger.warning(
                    "the worker of %s has said nothing for %.0f s; it is replaced", slot.describe(), now - slot.last_report
                )
                self.conductor.stop_stalled(slot)
            else:
                self._watch_run_times(slot)

    def _watch_run_times(self, slot: Slot) -> None:
        for record in filter(None, map(self.books.ledger.get, slot.turn)):
            most = record.submission.spec.max_run_seconds
            if most is not None and self.books.trained_seconds(record) > most:
                self.conductor.end(record, f"has trained for more than its max_run_seconds of {most:g} s")

    def ask_for_checkpoints(self) -> None:
        """Have those jobs write checkpoints whose last one is old enough, unless they count their steps for it.

        Asked for early enough that the next one is on disk when the interval is over: it bounds what a crash costs.
        """
        now = self.books.clock() + checkpoint_tick_seconds(self.config)
        for record in self.books.ledger.all():
            interval = max(self.config.checkpoint_seconds, record.least_checkpoint_seconds) - record.checkpoint_write_seconds
            counts_steps = record.submission.spec.checkpoint.every_steps is not None
            is_unsaved = record.state is JobState.RUNNING and not (record.is_safe or record.is_returning)
            if is_unsaved and not counts_steps and now - record.last_checkpoint >= interval:
                record.last_checkpoint = self.books.clock()
                self.conductor.checkpoint(record)

    def charge_usage(self) -> None:
        """Note what each user's jobs have occupied since the last time."""
        now = time.monotonic()
        seconds, self._charged = now - self._charged, now
        used: defaultdict[str, float] = defaultdict(float)
        memory: defaultdict[str, float] = defaultdict(float)
        for record in self.books.ledger.all():
            if record.slot is not None:
                user = record.submission.spec.user or ""
                used[user] += seconds
                memory[user] += seconds * record.demand.resident_bytes
        for user, slot_seconds in used.items():
            self.store.add_usage(user, slot_seconds, memory[user])
