"""How jobs come in: folders and Python objects become records, read by inspectors, refused with all their problems.

Free of torch, but for what the Python API's own objects bring along.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unified.admission import DatasetRef, Submission
from unified.errors import DoesNotFitError, InvalidSubmission, Problem, UnifiedError, WorkerDiedError
from unified.job import JobSpec
from unified.job_state import JobState
from unified.ledger import JobRecord
from unified.messages import Inspect, Inspected
from unified.nursery import Nursery
from unified.planning import Planner
from unified.quantities import bytes_text
from unified.run_state import RunFolder, newest_step
from unified.slots import Reader
from unified.staging import stage
from unified.step_kind import step_kind
from unified.validation import Stage, StageOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Reads what is handed in.

    Attributes:
        nursery: Where inspectors come from.
        folder: The run's folder.
        planner: Knows devices and capacity.
        trust: Whether forms that run code are accepted.
        resume: Whether the run in ``folder`` is taken up again.
    """

    nursery: Nursery
    folder: RunFolder
    planner: Planner
    trust: bool
    resume: bool

    @property
    def _cache(self) -> Path:
        return self.folder.state / "datasets"

    def read_folders(self, folders: Sequence[Path]) -> list[JobRecord]:
        """Return the jobs of ``folders``, each a job folder or a folder of them.

        Raises:
            InvalidSubmission: With all problems of all of them.
            DoesNotFitError: If no slot could ever hold one of them.
            UnifiedError: If an earlier run is in the way.
        """
        found = [job for folder in folders for job in job_folders(folder)]
        return self._records(self._read([job.resolve() for job in found], staged=False))

    def read_specs(self, specs: Sequence[JobSpec]) -> list[JobRecord]:
        """Return jobs made in Python; raises as :meth:`read_folders` does."""
        for name, count in Counter(member.name for spec in specs for member in spec.members()).items():
            if count > 1:
                raise UnifiedError(f"there are two jobs named {name!r} in this run; give each its own name")
        staging = self.folder.state / "staged"
        staging.mkdir(parents=True, exist_ok=True)
        # A folder of its own for each attempt: one that is refused must not touch what a job of that name is made of.
        folders = [Path(tempfile.mkdtemp(prefix=f"{spec.name}-", dir=staging)) for spec in specs]
        staged = [stage(spec, folder, self._cache) for spec, folder in zip(specs, folders, strict=True)]
        return self._records(self._read(staged, staged=True))

    def inspect(self, folder: Path) -> tuple[Inspected, ...]:
        """Read one job folder, time its steps, and see whether it fits; each member's if it is a sweep.

        Raises:
            InvalidSubmission: If it is no job folder.
        """
        _check_is_job(folder)
        answers = self._read([folder.resolve()], staged=False, always_time=True)[0]
        return tuple(_admitted(answer, self.planner.capacity_bytes) for answer in answers)

    def time_steps(self, records: Sequence[JobRecord], num_threads: int) -> None:
        """Time trial steps of these jobs with ``num_threads`` and note them in the records; of jobs that step alike, one's.

        Raises:
            WorkerDiedError: If the process that timed them died.
        """
        alike: dict[tuple[str, ...], list[JobRecord]] = {}
        for record in records:
            alike.setdefault(_step_key(record.submission), []).append(record)
        timed = self._reader.time([same[0].submission for same in alike.values()], num_threads)
        for same, answer in zip(alike.values(), timed, strict=True):
            for record in same:
                # A step that fails, fails at any number of threads; the job's own turn will tell its owner.
                record.trial_seconds[num_threads] = answer.step_seconds or 0.0

    @property
    def _reader(self) -> Reader:
        return Reader(nursery=self.nursery, num_processes=self.planner.num_cores)

    def _read(self, folders: Sequence[Path], *, staged: bool, always_time: bool = False) -> list[tuple[Inspected, ...]]:
        planner = self.planner
        if planner.is_on_cpu and planner.times_steps and not (always_time or planner.chooses_threads):
            try:
                return self._ask(folders, staged=staged, num_threads=planner.trial_threads)
            except WorkerDiedError:
                pass  # perhaps of a trial step, which nobody insists on: such a job may still fail alone
        is_timed = planner.is_on_cpu and (always_time or planner.chooses_threads)
        return self._ask(folders, staged=staged, num_threads=1 if is_timed else 0)

    def _ask(self, folders: Sequence[Path], *, staged: bool, num_threads: int) -> list[tuple[Inspected, ...]]:
        """Have folders read, and steps timed with so many threads, if any."""
        planner = self.planner
        requests = [
            Inspect(
                folder=folder,
                cache=self._cache,
                trust=self.trust,
                staged=staged,
                device_type="cpu" if planner.is_on_cpu else "cuda",
                num_threads=num_threads,
                within_bytes=planner.capacity_bytes // 4,
                # whose code may run, may read what it likes, as it may in training
                sandbox="off" if staged or self.trust else "auto",
            )
            for folder in folders
        ]
        reader = Reader(nursery=self.nursery, num_processes=max(1, planner.num_cores // max(1, num_threads)))
        return reader.read(requests, num_threads=max(1, num_threads))

    def _records(self, found: Sequence[tuple[Inspected, ...]]) -> list[JobRecord]:
        answers = [answer for members in found for answer in members]
        problems = [problem for answer in answers if answer.submission is None for problem in answer.problems]
        if problems:
            raise InvalidSubmission(problems)
        threads = self.folder.load_plan() if self.resume else {}
        records = [self._record(answer, threads) for answer in _with_common_files(answers)]
        self._check_fit(records)
        return records

    def _record(self, answer: Inspected, threads: dict[str, int | None]) -> JobRecord:
        submission = answer.submission
        assert submission is not None, "refused ones are told before"
        name = submission.name
        _warn_of_options_without_effect(submission)
        self.folder.check_may_start(name, resume=self.resume)
        record = JobRecord(
            submission=submission,
            results=self.folder.results(name),
            checkpoints=self.folder.checkpoints(name),
            submit_time=0.0,
            num_threads=threads.get(name),
            trial_seconds={} if answer.step_seconds is None else {self.planner.trial_threads: answer.step_seconds},
            peak_bytes=submission.estimate.peak_bytes,
            step=newest_step(self.folder.checkpoints(name)) if self.resume else 0,
        )
        if self.resume and self.folder.is_finished(name):
            content = self.folder.finished_job(name, submission)
            record.state, record.step = JobState.FINISHED, submission.num_steps
            metrics = content["metrics"].items()
            record.metrics = {key: math.nan if value is None else value for key, value in metrics}
            record.training_seconds = float(content["training_seconds"])
            record.first_start, record.end_time = float(content["waiting_seconds"]), float(content["completion_seconds"])
        return record

    def _check_fit(self, records: Sequence[JobRecord]) -> None:
        capacity = self.planner.capacity_bytes
        too_big = [record for record in records if record.demand.peak_bytes > capacity]
        if too_big:
            lines = [
                f"[E-FIT] job {record.name!r}: needs about {bytes_text(record.demand.peak_bytes)} at batch_size "
                f"{record.submission.spec.batch_size}, a slot has {bytes_text(capacity)}; "
                "lower batch_size, or use a device with more memory"
                for record in too_big
            ]
            raise DoesNotFitError("\n".join(lines))


def _with_common_files(answers: Sequence[Inspected]) -> list[Inspected]:
    """Let jobs of equal data map one file: each was read where the others' folders could not be opened."""
    files: dict[str, Path] = {}

    def common(data: DatasetRef | None) -> DatasetRef | None:
        return None if data is None else replace(data, path=files.setdefault(data.key, data.path))

    found = []
    for answer in answers:
        job = answer.submission
        if job is not None:
            train = common(job.train)
            assert train is not None, "a job has training data"
            job = replace(job, train=train, test=common(job.test))
        found.append(replace(answer, submission=job))
    return found


def _admitted(answer: Inspected, capacity_bytes: int) -> Inspected:
    """Complete what an inspector found by whether a slot could hold the job."""
    submission = answer.submission
    if submission is None or answer.problems:
        return answer
    peak, room = submission.estimate.peak_bytes, bytes_text(capacity_bytes)
    stages = {outcome.stage: outcome for outcome in answer.stages}
    if peak <= capacity_bytes:
        stages[Stage.ADMISSION] = StageOutcome(stage=Stage.ADMISSION, passed=True, found=f"fits a slot, which has {room}")
        return replace(answer, stages=tuple(stages.values()))
    problem = Problem(
        code="E-FIT",
        job=submission.name,
        field="batch_size",
        expected=f"a job that a slot could hold, which has {room}",
        given=f"one that needs about {bytes_text(peak)} at batch_size {submission.spec.batch_size}",
        remedy="lower batch_size, or use a device with more memory",
    )
    stages[Stage.MEMORY] = replace(stages[Stage.MEMORY], passed=False, found="")
    return replace(answer, problems=(problem,), stages=tuple(stages.values()))


def _step_key(submission: Submission) -> tuple[str, ...]:
    return submission.model.sha256, submission.train.key, step_kind(submission.spec)


def _warn_of_options_without_effect(submission: Submission) -> None:
    spec = submission.spec
    if spec.metrics and submission.test is None:
        logger.warning("job %r: metrics have no effect without data.test", spec.name)


def job_folders(folder: Path) -> list[Path]:
    """Return ``folder`` if it is a job folder, else the job folders in it, by name.

    Raises:
        InvalidSubmission: If it is neither.
    """
    if (folder / "job.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/job.json")) if folder.is_dir() else []
    for model in sorted(folder.glob("*/*.umodel")) if found else []:
        if model.parent not in found:
            logger.warning("%s holds a model but no job.json: it is no job and is left out", model.parent)
    if not found:
        _check_is_job(folder)
    return found


def _check_is_job(folder: Path) -> None:
    if (folder / "job.json").is_file():
        return
    given = "an existing folder without job.json" if folder.is_dir() else "a file" if folder.exists() else "nothing there"
    raise InvalidSubmission(
        [
            Problem(
                code="E-FOLDER",
                job=folder.name,
                field=str(folder),
                expected="a folder with job.json in it, or a folder of such folders",
                given=given,
                remedy="check the path; docs/job.md describes a job folder",
            )
        ]
    )
