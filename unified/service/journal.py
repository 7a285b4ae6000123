"""The supervisor's journal: every change of a job's state is durable before anybody acts on it. Free of torch."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from unified.job_state import ENDED, RESIDENT, JobState
from unified.ledger import JobRecord
from unified.messages import Checkpointed
from unified.queue.errors import ConflictError, FencedError, UnknownJobError
from unified.queue.faults import reach
from unified.queue.files import folder_bytes, rename_durably, sync_tree
from unified.queue.records import CheckpointRow, JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.summary import finite

NUM_GENERATIONS = 2
PATIENCE_SECONDS = 0.5
_LOST = (FencedError, ConflictError, UnknownJobError)

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreJournal:
    """Makes changes in the store, under this supervisor's lease and the job's epoch.

    Attributes:
        root: The queue's folder.
        store: Its store.
        holder: Who we are.
        lease_seconds: How long a lease lasts without renewal.
        started: When the run's clock was 0, in seconds since 1970.
        is_stopping: Whether to stop waiting for a disk that takes nothing.
        unpublished: Finished jobs whose files are not where they belong yet, with the epoch of their last residency.
    """

    root: Root
    store: JobStore
    holder: str
    lease_seconds: float
    started: float
    is_stopping: Callable[[], bool]
    unpublished: dict[str, int] = field(default_factory=dict)

    def move(self, record: JobRecord, to: JobState, reason: str, **changes: Any) -> bool:
        """See :class:`unified.ledger.Journal`; ``delay_seconds`` says when a job in RETRY_WAIT is tried again."""
        delay = changes.pop("delay_seconds", None)
        changes |= self._facts(record, to)
        if delay is not None:
            changes["not_before"] = time.time() + delay
        try:
            self._patiently(
                lambda: self.store.move(
                    record.name,
                    to,
                    old=record.state,
                    epoch=record.epoch,
                    holder=self.holder if record.state in RESIDENT else None,
                    reason=reason or str(to),
                    by="supervisor",
                    **changes,
                ),
                lambda row: row.state is to and row.epoch == record.epoch and row.holder in {None, self.holder},
                record,
            )
        except _LOST as error:
            logger.warning("%s", error)
            return False
        record.state = to
        return True

    def _facts(self, record: JobRecord, to: JobState) -> dict[str, Any]:
        """Return what a row should say after a move, as the ledger knows it."""
        facts: dict[str, Any] = {"training_seconds": record.training_seconds}
        if record.state in RESIDENT:
            facts |= {"steps_done": record.step, "metrics": finite(record.metrics), "memory_bytes": record.peak_bytes}
            facts |= {"step_seconds": record.step_seconds, "loss": finite({"loss": record.loss})["loss"]}
        if record.first_start is not None:
            facts["started_time"] = self.started + record.first_start
        if to in ENDED:
            facts["finished_time"] = time.time()
        return facts

    def lease(self, record: JobRecord, slot: int) -> bool:
        """See :class:`unified.ledger.Journal`."""
        try:
            row = self._patiently(
                lambda: self.store.lease(
                    record.name,
                    holder=self.holder,
                    slot=slot,
                    seconds=self.lease_seconds,
                    reason=f"is loaded on slot {slot}",
                    by="supervisor",
                ),
                lambda row: row.state is JobState.LOADING and row.epoch == record.epoch + 1 and row.holder == self.holder,
                record,
            )
        except _LOST as error:
            logger.info("%s", error)
            return False
        if row.num_threads is None and record.num_threads is not None:
            self._patiently(lambda: self.store.set_threads(record.name, record.num_threads))
        record.state, record.epoch = JobState.LOADING, row.epoch
        record.results = self.root.working_result(record.name, row.epoch)
        record.restore_from = tuple(self.root.path / saved.path for saved in self.store.checkpoints(record.name))
        return True

    def publish(self, record: JobRecord) -> bool:
        """See :class:`unified.ledger.Journal`.

        Raises:
            OSError: If the files cannot be brought to the disk.
        """
        job, working = record.name, record.results
        sync_tree(working)
        reach("publish.before-commit")
        changes: dict[str, Any] = {"result_path": self.root.relative(self.root.result(job)), "steps_done": record.step}
        with contextlib.suppress(*_LOST):
            changes["num_bytes"] = self.store.get(job).num_bytes + folder_bytes(working)
        if not self.move(record, JobState.FINISHED, "done", **changes):
            return False
        self.unpublished[job] = record.epoch
        self.bring_out()
        if job not in self.unpublished:
            record.results = self.root.result(job)
        return True

    def bring_out(self) -> None:
        """Move finished results to where their owners find them; what fails is tried again, at the next start at the latest."""
        for job, epoch in list(self.unpublished.items()):
            try:
                reach("publish.committed")
                publish_files(self.root, job, epoch)
                reach("publish.renamed")
            except OSError as error:
                logger.warning("job %s: its result cannot be moved to results/ yet: %s", job, error)
            else:
                self.unpublished.pop(job, None)
                self._forget_checkpoints(job)

    def _forget_checkpoints(self, job: str) -> None:
        """A finished job has its result: nobody goes on from its checkpoints."""
        with contextlib.suppress(OSError):
            for saved in self.store.checkpoints(job):
                self.store.drop_checkpoint(job, saved.epoch, saved.step)
            shutil.rmtree(self.root.checkpoints(job), ignore_errors=True)

    def checkpointed(self, record: JobRecord, report: Checkpointed) -> bool:
        """See :class:`unified.ledger.Journal`; generations before the last two are removed."""
        row = CheckpointRow(
            job=record.name,
            epoch=record.epoch,
            step=report.step,
            path=self.root.relative(report.path),
            sha256=report.sha256,
            num_bytes=report.num_bytes,
            time=time.time(),
        )
        try:
            self._patiently(lambda: self._add_checkpoint(row))
        except _LOST as error:
            logger.warning("%s", error)
            return False
        with contextlib.suppress(OSError):  # the next one does it
            reach("checkpoint.row")
            for old in self.store.checkpoints(record.name)[NUM_GENERATIONS:]:
                self.store.drop_checkpoint(record.name, old.epoch, old.step)
                remove_checkpoint_files(self.root.path / old.path)
        return True

    def _add_checkpoint(self, row: CheckpointRow) -> None:
        reach("checkpoint.before-row")
        self.store.add_checkpoint(row, holder=self.holder)

    def ban(self, one: str, other: str) -> None:
        """See :class:`unified.ledger.Journal`."""
        self._patiently(lambda: self.store.add_ban(one, other))

    def _patiently(
        self, write: Callable[[], T], is_outcome: Callable[[JobRow], bool] | None = None, record: JobRecord | None = None
    ) -> T | JobRow:
        """Write until it succeeds: while the store's disk takes nothing, nothing may happen that it should know of.

        A write may have been committed although it failed: then the next try finds that ``record`` has changed, and
        ``is_outcome`` knows that this was us.

        Raises:
            OSError: If it still fails when we are to stop; the next start takes up what the store says.
        """
        has_failed = False
        while True:
            try:
                return write()
            except _LOST:
                if not has_failed or is_outcome is None or record is None:
                    raise
                row = self.store.get(record.name)
                if not is_outcome(row):
                    raise
                return row
            except OSError as error:
                if self.is_stopping():
                    raise
                if not has_failed:
                    logger.error("the store cannot be written (%s): everything waits until it can", error)  # noqa: TRY400
                has_failed = True
                time.sleep(PATIENCE_SECONDS)


def publish_files(root: Root, job: str, epoch: int) -> None:
    """Move a finished result to where its owner finds it; what is left of earlier residencies goes."""
    working, published = root.working_result(job, epoch), root.result(job)
    if working.is_dir():
        aside = root.job(job) / "result-before"
        shutil.rmtree(aside, ignore_errors=True)
        if published.exists():  # of an earlier life under the same id
            published.rename(aside)
        rename_durably(working, published)
    for left in root.job(job).glob("result-*"):
        shutil.rmtree(left, ignore_errors=True)


def remove_checkpoint_files(seal: Path) -> None:
    """Remove a checkpoint's files, the seal first."""
    with contextlib.suppress(OSError):
        seal.unlink(missing_ok=True)
        seal.with_suffix(".pt").unlink(missing_ok=True)
