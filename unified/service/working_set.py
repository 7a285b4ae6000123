"""Which of the queued jobs the scheduler chooses among: a shortlist of those that wait, and who is on a slot. Free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from schedulers import base
from unified.admission import Submission
from unified.bookkeeper import Bookkeeper
from unified.errors import InvalidSubmission
from unified.job_state import ENDED, JobState
from unified.ledger import JobRecord, submitted_event
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.service.admissions import from_json
from unified.service.deadline_door import DeadlineDoor
from unified.service.shortlist import Listed, Shortlist

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """Keeps the ledger in step with the store.

    Attributes:
        books: The ledger's keeper.
        store: The queue's store.
        root: Its folder.
        shortlist: The waiting jobs that the scheduler chooses among.
        num_threads: Intra-op threads of every slot; None on GPUs.
        started: When the run's clock was 0, in seconds since 1970.
        trust_in: Whether a job's model may still be loaded if that runs code; a SHA-256: that file alone.
        must_check_again: Told of a job whose files are not where its check found them, or which may no longer run its code.
        door: Who may not come in for its deadline's sake.
    """

    books: Bookkeeper
    store: JobStore
    root: Root
    shortlist: Shortlist
    num_threads: int | None
    started: float
    trust_in: Callable[[JobRow], bool | str]
    must_check_again: Callable[[JobRow], None]
    door: DeadlineDoor

    def refresh(self) -> None:
        """Take in jobs that wait now; let go of those that no longer do, and of those that left their slots for good."""
        ledger = self.books.ledger
        for record in ledger.all():
            if record.slot is None and record.state is not JobState.QUEUED:
                self._let_go(record)
        before = self.shortlist.waiting
        chosen, held = self.shortlist.look(), {record.name for record in ledger.all()}
        for record in ledger.all():
            listed = chosen.get(record.name)
            if record.slot is None and (listed is None or listed.epoch != record.epoch):
                self._let_go(record)
        self._tell_who_came(before, held)
        rows = self.store.queued_rows([job for job in chosen if job not in ledger])
        rows.sort(key=lambda row: (row.submit_time, row.id))
        new = self.door.let_in([(row, record) for row in rows if (record := self._record(row)) is not None])
        if new:
            ledger.add_all(new)
        for record in new:
            self.books.emit(submitted_event(record))

    def _let_go(self, record: JobRecord) -> None:
        """Take a job out; the scheduler must not wait for one that is not there."""
        self.books.ledger.remove(record.name)
        if record.state not in ENDED and record.name not in self.shortlist.waiting:
            self.books.note(base.Paused, record)

    def _tell_who_came(self, before: Mapping[str, Listed], held: AbstractSet[str]) -> None:
        """Tell the scheduler of all who came and went, also beyond the shortlist: its order depends on it."""
        waiting = self.shortlist.waiting
        for job, listed in waiting.items():
            if job not in before and job not in held:
                self.books.telling.tell(base.Submitted, listed.view)
        for job, listed in before.items():
            if job not in waiting and job not in held:
                self.books.telling.tell(base.Cancelled, listed.view)

    def _is_trusted(self, submission: Submission, row: JobRow) -> bool:
        """Whether a job may go to a worker: the settings may have changed since it was checked."""
        return not submission.model.runs_code or self.trust_in(row) in {True, submission.model.sha256}

    def _record(self, row: JobRow) -> JobRecord | None:
        try:
            submission = from_json(row, self.root)
        except (InvalidSubmission, KeyError, TypeError, ValueError) as error:
            logger.warning("job %s must be checked again: %s", row.id, error)
            submission = None
        if submission is None or not self._is_trusted(submission, row):
            self.must_check_again(row)
            return None
        step_seconds = row.step_seconds
        trial = (row.admission or {}).get("step_seconds")
        return JobRecord(
            submission=submission,
            results=self.root.working_result(row.id, row.epoch),
            checkpoints=self.root.checkpoints(row.id),
            submit_time=row.submit_time - self.started,
            epoch=row.epoch,
            num_threads=row.num_threads if row.num_threads is not None else self.num_threads,
            step=row.steps_done,
            step_seconds=step_seconds,
            trial_seconds={} if trial is None else {1: trial},
            first_start=None if row.started_time is None else row.started_time - self.started,
            training_seconds=row.training_seconds,
            slot_seconds=row.training_seconds,  # more than its part, if it was in a stack
            peak_bytes=row.memory_bytes or submission.estimate.peak_bytes,
            is_alone=row.is_alone,
            num_job_failures=row.num_job_failures,
            num_infra_failures=row.num_infra_failures,
            num_blames=row.num_blames,
            last_fault=row.last_fault,
            reason=row.reason,
            loss=row.loss,
            metrics=dict(row.metrics),
        )
