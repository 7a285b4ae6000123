"""What a run writes down so that ``--resume`` can go on: its jobs, their threads, and how far they came."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.admission import Submission
from unified.errors import UnifiedError
from unified.results import write_json

logger = logging.getLogger(__name__)

VERSION = 1
RESERVED = frozenset({"summary.json", "timeline.png"})  #: what a run writes beside the jobs' folders
SWEEP_TABLES = (".sweep.json", ".sweep.csv")  #: behind the name of a sweep, likewise


def newest_step(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint in a job's folder of them, 0 without one, going by names alone."""
    return max((int(seal.stem.rpartition("-")[2]) for seal in checkpoints.glob("*-*.json")), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The folder of a run: results of each job, and ``.state`` with what is needed to go on."""

    path: Path

    @property
    def state(self) -> Path:
        """Where checkpoints, converted datasets and the run's own record are."""
        return self.path / ".state"

    def results(self, job: str) -> Path:
        """Where the job's result goes."""
        return self.path / job

    def checkpoints(self, job: str) -> Path:
        """Where the job's checkpoints go."""
        return self.state / "checkpoints" / job

    def is_finished(self, job: str) -> bool:
        """Whether the job's result is there, complete and verified."""
        return (self.results(job) / "result.json").is_file()

    def open(self, *, resume: bool) -> int:
        """Make the folder and take it for this process; return the descriptor of its lock, to be closed at the end.

        Raises:
            UnifiedError: If another run has it, or it holds an earlier run that is not to be taken up again.
        """
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.state / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            why = error.strerror or str(error)
            raise UnifiedError(f"{self.path} cannot be a folder for results: {why}; choose another --out folder") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_taken = False
        except OSError:
            is_taken = True
        if is_taken or ((self.state / "run.json").exists() and not resume):
            os.close(lock)
            what = "another run is writing to it now" if is_taken else "it holds an earlier run"
            raise UnifiedError(f"{self.path}: {what}; choose another --out folder, or --resume to go on with what it holds")
        if resume and not (self.state / "run.json").exists():
            logger.warning("%s holds no run to go on with; it begins from the beginning", self.path)
        return lock

    def save_plan(self, num_threads: dict[str, int | None]) -> None:
        """Write down each job's number of threads, which must not change when the run is taken up again."""
        self.state.mkdir(parents=True, exist_ok=True)
        write_json(self.state / "run.json", {"version": VERSION, "threads": num_threads})

    def load_plan(self) -> dict[str, int | None]:
        """Return what :meth:`save_plan` wrote, empty for a new run.

        Raises:
            UnifiedError: If the record is damaged or of another version.
        """
        path = self.state / "run.json"
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_bytes())
            version, threads = content["version"], dict(content["threads"])
        except (ValueError, KeyError, TypeError) as error:
            raise UnifiedError(f"{path} is damaged ({error}); choose another --out folder") from error
        if version != VERSION:
            raise UnifiedError(f"{path} was written by another version of unified ({version}, not {VERSION})")
        return threads

    def save_memory(self, memory: dict[str, Any]) -> None:
        """Write down what the scheduler knows of the run's jobs."""
        write_json(self._memory, {"version": VERSION} | memory)

    def load_memory(self) -> dict[str, Any]:
        """Return what :meth:`save_memory` wrote, empty without it; a damaged one costs order alone, and is left out."""
        try:
            content = json.loads(self._memory.read_bytes())
            return content if content["version"] == VERSION else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("%s is damaged (%s): the scheduler begins anew", self._memory, error)
            return {}

    @property
    def _memory(self) -> Path:
        return self.state / "scheduler.json"

    def check_may_start(self, job: str, *, resume: bool) -> None:
        """Refuse to write over what an earlier run left.

        Raises:
            UnifiedError: If there is a result or a checkpoint of that name and the run is not taken up again, or if it
                is the name of one of the run's own files.
        """
        if job in RESERVED or job.endswith(SWEEP_TABLES):
            raise UnifiedError(f"a job cannot be named {job!r}: a file of the run has that name; rename it")
        if (self.results(job) / "job.json").exists():
            raise UnifiedError(f"{self.results(job)} is a job folder, not a place for results; choose another --out folder")
        if resume:
            return
        if self.results(job).exists() or self.checkpoints(job).exists():
            raise UnifiedError(
                f"{self.path} holds an earlier run of job {job!r}; choose another --out folder, or --resume to go on with it"
            )

    def finished_job(self, job: str, submission: Submission) -> dict[str, Any]:
        """Return the content of a finished job's ``result.json``.

        Raises:
            UnifiedError: If that result was of a job with another description.
        """
        content = json.loads((self.results(job) / "result.json").read_bytes())
        if content.get("fingerprint") != submission.fingerprint():
            raise UnifiedError(
                f"{self.results(job)} is the result of a job named {job!r} with other hyper-parameters, model or data; "
                "choose another --out folder"
            )
        return content
