"""The deep check of what is queued: inspectors read each job once, and what they found is kept with it. Free of torch."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unified.admission import DatasetRef, Estimate, ModelForm, ModelRef, Submission
from unified.errors import NurseryDiedError, Problem, UnifiedError, WorkerDiedError
from unified.job import JobSpec
from unified.job_state import JobState
from unified.messages import Inspect, Inspected
from unified.nursery import Nursery
from unified.planning import Planner
from unified.quantities import bytes_text
from unified.queue.config import ServiceConfig
from unified.queue.errors import QueueError
from unified.queue.files import write_durably
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.slots import Reader

VERSION = 1
CHECK_SECONDS = 600.0  #: what reading one job may take
BATCH = 4  #: jobs handed to inspectors at once
MAX_DEATHS = 3  #: of inspectors that read a job, after which it counts as unreadable
RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


def to_json(submission: Submission, step_seconds: float | None, root: Root) -> dict[str, Any]:
    """Return what a check found as plain JSON, files relative to the root where they lie in it."""
    test = None if submission.test is None else _file_record(submission.test, root)
    return {
        "version": VERSION,
        "model": _file_record(submission.model, root),
        "train": _file_record(submission.train, root),
        "test": test,
        "estimate": asdict(submission.estimate),
        "step_seconds": step_seconds,
    }


def from_json(row: JobRow, root: Root) -> Submission | None:
    """Return the submission of a checked job, or None if it must be checked again: its files are gone or were moved.

    Raises:
        InvalidSubmission: If the row's description is none any more.
    """
    found = row.admission
    if found is None or found.get("version") != VERSION:
        return None
    model, train = _file_arguments(found["model"], root), _file_arguments(found["train"], root)
    test = None if found["test"] is None else _file_arguments(found["test"], root)
    if not all(part["path"].exists() for part in (model, train, test) if part is not None):
        return None
    return Submission(
        spec=JobSpec.parse(row.spec, job=row.id, asks_torch=False),
        folder=root.spec(row.id),
        model=ModelRef(**model | {"form": ModelForm(model["form"])}),
        train=DatasetRef(**train),
        test=None if test is None else DatasetRef(**test),
        estimate=Estimate(**found["estimate"]),
        id=row.id,
    )


def _file_record(ref: ModelRef | DatasetRef, root: Root) -> dict[str, Any]:
    content = {item.name: getattr(ref, item.name) for item in fields(ref)}
    path = ref.path
    content["path"] = root.relative(path) if path.is_relative_to(root.path) else str(path)
    return json.loads(json.dumps(content))


def _file_arguments(record: dict[str, Any], root: Root) -> dict[str, Any]:
    return record | {"path": root.path / record["path"]}


@dataclass(slots=True, kw_only=True)
class Admitter:
    """A thread that checks queued jobs, a few at a time, and writes down the verdict.

    Attributes:
        root: The queue's folder.
        store: Its store.
        config: Its settings.
        nursery: Where inspectors come from.
        planner: Knows what would fit.
        on_verdict: Told when jobs were checked, in this thread.
        on_rejected: Told the code of what was wrong with a job.
    """

    root: Root
    store: JobStore
    config: ServiceConfig
    nursery: Nursery
    planner: Planner
    on_verdict: Callable[[], None]
    on_rejected: Callable[[str], None]
    _wake: threading.Event = field(default_factory=threading.Event)
    _is_stopping: bool = False
    _deaths: Counter[str] = field(default_factory=Counter)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._work, name="admissions", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look for new jobs now; called by the ticker."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing new; what is under way is checked again another time."""
        self._is_stopping = True
        self._wake.set()

    def _work(self) -> None:
        while not self._is_stopping:
            try:
                # A row is there a moment before its folder has come to its place.
                rows = [row for row in self.store.unchecked(4 * BATCH) if self.root.spec(row.id).is_dir()][:BATCH]
                if rows:
                    self._check(rows)
                    continue
            except Exception:  # the next look may go better
                logger.exception("checking what is queued failed; it is tried again")
            self._wake.wait(timeout=30.0)
            self._wake.clear()

    def _check(self, rows: Sequence[JobRow]) -> None:
        try:
            answers = self._read(rows)
        except NurseryDiedError:
            time.sleep(RETRY_SECONDS)  # the supervisor starts a new one
            self.nursery.revive()
            return
        except WorkerDiedError as error:
            if self._is_stopping:
                return
            self._deaths.update(row.id for row in rows if len(rows) == 1)
            if len(rows) == 1 and self._deaths[rows[0].id] < MAX_DEATHS:
                return  # somebody may have killed it from outside: it is read again
            if len(rows) > 1:  # whose fault it was shows when each is read alone
                for row in rows:
                    self._check([row])
                return
            answers = [_died(rows[0], error)]
        for row, answer in zip(rows, answers, strict=True):
            self._judge(row, answer)
        self.on_verdict()

    def _read(self, rows: Sequence[JobRow]) -> list[Inspected]:
        planner = self.planner
        requests = [
            Inspect(
                folder=self.root.spec(row.id),
                cache=self.root.cache / "datasets",
                trust=self.config.trust,
                staged=False,
                device_type="cpu" if planner.is_on_cpu else "cuda",
                num_threads=1 if planner.is_on_cpu else 0,
                within_bytes=planner.capacity_bytes // 4,
                id=row.id,
                data_roots=(*self.config.data_roots, self.root.data),
            )
            for row in rows
        ]
        num_processes = max(1, (os.cpu_count() or 1) // 2)  # the rest is for those who train
        return Reader(nursery=self.nursery, num_processes=num_processes, timeout_seconds=CHECK_SECONDS).read(requests)

    def _judge(self, row: JobRow, answer: Inspected) -> None:
        submission, problems = answer.submission, answer.problems
        if submission is None or problems:
            self._reject(row, problems)
            return
        peak, capacity = submission.estimate.peak_bytes, self.planner.capacity_bytes
        if peak > capacity:
            text = (
                f"never-fits: needs about {bytes_text(peak)} at batch_size {submission.spec.batch_size}, a slot has "
                f"{bytes_text(capacity)}; lower batch_size, or use a device with more memory"
            )
            self._fail(row, text)
            self.on_rejected("E-FIT")
            return
        admission = to_json(submission, answer.step_seconds, self.root)
        self.store.admit(row.id, admission, steps_total=submission.num_steps, memory_bytes=peak)

    def _reject(self, row: JobRow, problems: Sequence[Problem]) -> None:
        codes = [problem.code for problem in problems] or ["E-READ"]
        for code in codes:
            self.on_rejected(code)
        folder = self.root.rejected / row.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = [{item.name: getattr(problem, item.name) for item in fields(problem)} for problem in problems]
            write_durably(folder / "reason.txt", "".join(f"{problem}\n" for problem in problems).encode())
            write_durably(
                folder / "reason.json", json.dumps({"schema": 1, "job": row.id, "problems": content}, indent=2).encode()
            )
        except OSError as error:
            logger.warning("%s: why it was rejected could not be written: %s", row.id, error)
        self._fail(row, "invalid: " + " | ".join(str(problem) for problem in problems))  # last: who waits for it reads the rest

    def _fail(self, row: JobRow, reason: str) -> None:
        try:
            self.store.move(row.id, JobState.FAILED, old=JobState.QUEUED, epoch=row.epoch, reason=reason, by="supervisor")
        except QueueError as error:
            logger.info("%s was checked in vain: %s", row.id, error)


def _died(row: JobRow, error: UnifiedError) -> Inspected:
    problem = Problem(
        code="E-READ",
        job=row.id,
        field="folder",
        expected="a job that can be read, and whose model takes a training step",
        given=str(error),
        remedy="check that the model runs on one batch of this data in a process of its own",
    )
    return Inspected(folder=Path(), submission=None, problems=(problem,), step_seconds=None)
