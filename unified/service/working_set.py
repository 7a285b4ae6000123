"""Which of the queued jobs the scheduler chooses among: a shortlist of those that wait, and who is on a slot. Free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from schedulers import base
from unified.admission import Submission
from unified.bookkeeper import Bookkeeper
from unified.errors import InvalidSubmission
from unified.job_state import JobState
from unified.ledger import JobRecord, submitted_event
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.service.admissions import from_json
from unified.service.shortlist import Listed, Shortlist

MOST_REMEMBERED = 10_000  #: jobs that wait no more whose last event is remembered, as they may come back
_EPOCH_BITS = 20  #: of the numbers of events: no job has a million of them on one slot

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
    """

    books: Bookkeeper
    store: JobStore
    root: Root
    shortlist: Shortlist
    num_threads: int | None
    started: float
    trust_in: Callable[[JobRow], bool | str]
    must_check_again: Callable[[JobRow], None]
    _sequences: dict[str, int] = field(default_factory=dict)

    def refresh(self) -> None:
        """Take in jobs that wait now; let go of those that no longer do, and of those that left their slots for good."""
        ledger = self.books.ledger
        for record in ledger.all():
            if record.slot is None and record.state is not JobState.QUEUED:
                self._remove(record)
        before = self.shortlist.waiting
        chosen, held = self.shortlist.look(), {record.name for record in ledger.all()}
        for record in ledger.all():
            listed = chosen.get(record.name)
            if record.slot is None and (listed is None or listed.epoch != record.epoch):
                self._remove(record)
        self._tell_who_came(before, held)
        rows = self.store.queued_rows([job for job in chosen if job not in ledger])
        rows.sort(key=lambda row: (row.submit_time, row.id))
        new = [record for row in rows if (record := self._record(row)) is not None]
        if new:
            ledger.add_all(new)
        for record in new:
            self.books.emit(submitted_event(record))

    def _remove(self, record: JobRecord) -> None:
        self._sequences[record.name] = record.num_events
        self.books.ledger.remove(record.name)

    def _tell_who_came(self, before: Mapping[str, Listed], held: AbstractSet[str]) -> None:
        """Tell the scheduler of all who came and went, also beyond the shortlist: its order depends on it."""
        waiting, ledger = self.shortlist.waiting, self.books.ledger
        for job, listed in waiting.items():
            if job not in before and job not in held:
                self._tell(base.Submitted, listed)
        for job, listed in before.items():
            if job not in waiting and job not in ledger:
                self._tell(base.Cancelled, listed)
        while len(self._sequences) > len(waiting) + MOST_REMEMBERED:
            del self._sequences[next(iter(self._sequences))]

    def _tell(self, kind: type[base.Event], listed: Listed) -> None:
        scheduler, view = self.books.scheduler, listed.view
        # counted from the epoch on: the same again after a restart, and then a repeated event is ignored
        number = self._sequences[view.id] = max(self._sequences.pop(view.id, 0), listed.epoch << _EPOCH_BITS) + 1
        if not isinstance(scheduler, base.Observes):
            return
        try:
            scheduler.on_event(kind(unit_id=view.id, sequence=number, user_shares=view.user_shares, weight=view.weight))
        except Exception:  # it may be a plug-in
            logger.exception("scheduler %s failed on %s; the service goes on", self.books.scheduler_name, kind.__name__)

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
            peak_bytes=row.memory_bytes or submission.estimate.peak_bytes,
            is_alone=row.is_alone,
            num_job_failures=row.num_job_failures,
            num_infra_failures=row.num_infra_failures,
            num_blames=row.num_blames,
            last_fault=row.last_fault,
            reason=row.reason,
            loss=row.loss,
            metrics=dict(row.metrics),
            num_events=self._sequences.get(row.id, row.epoch << _EPOCH_BITS),
        )
