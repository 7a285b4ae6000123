"""Where jobs with deadlines come into a queue's working set: refused at once, or promised to be in time. Free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedulers import base
from unified.conductor import Conductor
from unified.deadlines import deadline_problems, ineffective_deadline
from unified.errors import Problem
from unified.ledger import JobRecord
from unified.queue.records import JobRow
from unified.queue.store import JobStore

logger = logging.getLogger(__name__)

_ACCEPTED = "is_accepted"  #: in a row's admission: its deadline was found to be one that can be kept


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineDoor:
    """Asks the scheduler once for each job that has a deadline; what was accepted stays so over restarts.

    Attributes:
        conductor: Knows the scheduler and the slots.
        store: The queue's store.
        reject: Ends a queued job for what is wrong with it.
    """

    conductor: Conductor
    store: JobStore
    reject: Callable[[JobRow, Sequence[Problem]], None]

    def let_in(self, candidates: Sequence[tuple[JobRow, JobRecord]]) -> list[JobRecord]:
        """Return those that are accepted beside the jobs of the ledger, in their order."""
        decider, accepted = self.conductor.decider, list[JobRecord]()
        present = self.conductor.books.ledger.all()
        for row, record in candidates:
            if row.deadline_seconds is not None and row.epoch == 0 and not (row.admission or {}).get(_ACCEPTED):
                if (warning := ineffective_deadline(decider, record)) is not None:
                    logger.warning("%s", warning)
                problems = deadline_problems(decider, [record], [*present, *accepted], max(1, len(self.conductor.slots)))
                if problems:
                    self.reject(row, problems)
                    continue
                self._mark(row)
            accepted.append(record)
        return accepted

    def _mark(self, row: JobRow) -> None:
        if isinstance(self.conductor.decider.scheduler, base.Admits):
            admission = (row.admission or {}) | {_ACCEPTED: True}
            self.store.admit(row.id, admission, steps_total=row.steps_total, memory_bytes=row.memory_bytes)
