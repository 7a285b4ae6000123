"""The deep check of what is queued: inspectors read each job once, and what they found is kept with it. Free of torch."""

from __future__ import annotations

import hashlib
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
from unified.errors import NurseryDiedError, Problem, ReadTimeoutError, SpawnError, UnifiedError, WorkerDiedError
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
from unified.queue.vetting import trust_in
from unified.slots import Reader

VERSION = 1
QUICK_SECONDS = 30.0  #: what reading a job may take before it is left to the thread for slow ones
CHECK_SECONDS = 1800.0  #: and what it may take there
BARE_SECONDS = 60.0  #: for which a job's folder may be missing
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
        "stack_key": submission.stack_key,
        "checked_time": time.time(),  # from then on the scheduler may see it
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
        stack_key=found.get("stack_key"),
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
    """Threads that check queued jobs, a few at a time, and write down the verdict.

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
    _wakes: tuple[threading.Event, threading.Event] = field(default_factory=lambda: (threading.Event(), threading.Event()))
    _is_stopping: bool = False
    _slow: set[str] = field(default_factory=set)
    _bare: dict[str, float] = field(default_factory=dict)
    _deaths: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """Begin."""
        for is_slow in (False, True):
            threading.Thread(target=self._work, args=(is_slow,), name="admissions", daemon=True).start()

    def look(self) -> None:
        """Look for new jobs now; called by the ticker."""
        for wake in self._wakes:
            wake.set()

    def stop(self) -> None:
        """Begin nothing new; what is under way is checked again another time."""
        self._is_stopping = True
        self.look()

    def _work(self, is_slow: bool) -> None:
        """Check jobs until the end; those that took long once have a thread of their own, so that nobody waits for them."""
        wake = self._wakes[is_slow]
        while not self._is_stopping:
            try:
                rows = self._next(is_slow=is_slow)
                if rows:
                    self._check(rows, is_slow=is_slow)
                    continue
            except Exception:  # the next look may go better
                logger.exception("checking what is queued failed; it is tried again")
                time.sleep(RETRY_SECONDS)
            wake.wait(timeout=30.0)
            wake.clear()

    def _next(self, *, is_slow: bool) -> list[JobRow]:
        found = self.store.unchecked(4 * BATCH + len(self._slow) + len(self._bare))
        rows = [row for row in found if (row.id in self._slow) is is_slow]
        return [row for row in rows if is_slow or self._has_folder(row)][: 1 if is_slow else BATCH]

    def _has_folder(self, row: JobRow) -> bool:
        """Whether the job's folder is there: a row is a moment earlier; one without a folder for long has lost it."""
        if self.root.spec(row.id).is_dir():
            self._bare.pop(row.id, None)
            return True
        since = self._bare.setdefault(row.id, time.monotonic())
        if time.monotonic() - since > BARE_SECONDS:
            del self._bare[row.id]
            self._fail(row, "spec-missing: the folder that was submitted is gone; submit it anew")
        return False

    def _check(self, rows: Sequence[JobRow], *, is_slow: bool) -> None:
        try:
            answers = self._read(rows, timeout_seconds=CHECK_SECONDS if is_slow else QUICK_SECONDS)
        except (NurseryDiedError, SpawnError):
            time.sleep(RETRY_SECONDS)
            self.nursery.revive()  # a new one, if this one is gone
            return
        except WorkerDiedError as error:
            self._settle_death(rows, error, is_slow=is_slow)
            return
        for row, answer in zip(rows, answers, strict=True):
            self._judge(row, answer)
        self._slow -= {row.id for row in rows}
        self.on_verdict()

    def _settle_death(self, rows: Sequence[JobRow], error: WorkerDiedError, *, is_slow: bool) -> None:
        if self._is_stopping:
            return
        if len(rows) > 1:  # whose fault it was shows when each is read alone
            for row in rows:
                self._check([row], is_slow=is_slow)
            return
        [row] = rows
        if isinstance(error, ReadTimeoutError) and not is_slow:
            self._slow.add(row.id)
            self._wakes[True].set()
            return
        self._deaths[row.id] += 1
        if self._deaths[row.id] < MAX_DEATHS and not isinstance(error, ReadTimeoutError):
            return  # somebody may have killed it from outside: it is read again
        self._judge(row, _died(row, error))
        self._slow.discard(row.id)
        self.on_verdict()

    def _read(self, rows: Sequence[JobRow], *, timeout_seconds: float) -> list[Inspected]:
        planner = self.planner
        trusts = {row.id: trust_in(self.root.spec(row.id), row, self.config) for row in rows}
        requests = [
            Inspect(
                folder=self.root.spec(row.id),
                cache=self._cache(row, trusts[row.id]),
                trust=trusts[row.id],
                staged=False,
                device_type="cpu" if planner.is_on_cpu else "cuda",
                num_threads=self.config.threads if planner.is_on_cpu else 0,
                within_bytes=planner.capacity_bytes // 4,
                id=row.id,
                data_roots=(*self.config.data_roots, self.root.data),
                sandbox=self.config.sandbox,
            )
            for row in rows
        ]
        num_processes = max(1, (os.cpu_count() or 1) // 2)  # the rest is for those who train
        reader = Reader(nursery=self.nursery, num_processes=num_processes, timeout_seconds=timeout_seconds)
        num_threads = self.config.threads if planner.is_on_cpu else 1
        return [
            answers[0] for answers in reader.read(requests, num_threads=num_threads)
        ]  # what is accepted is one job: sweeps were expanded before

    def _cache(self, row: JobRow, trust: bool | str) -> Path:
        """Return where converted data goes: code that one user has signed must not reach what is known of others' data."""
        shared = self.root.cache / "datasets"
        if isinstance(trust, bool):
            return shared
        return shared.with_name("datasets-of-signers") / hashlib.sha256(row.user.encode()).hexdigest()[:16]

    def _judge(self, row: JobRow, answer: Inspected) -> None:
        submission, problems = answer.submission, answer.problems
        if submission is None or problems:
            self.reject(row, problems)
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
        if self.store.admit(row.id, admission, steps_total=submission.num_steps, memory_bytes=peak):
            self.store.set_reason({row.id: "waits for a slot"})

    def reject(self, row: JobRow, problems: Sequence[Problem]) -> None:
        """End a queued job for what is wrong with it, which its owner finds in ``rejected/``, too."""
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
