"""The figures of a run, as they stand in the JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.modes import FinishedJob, FinishedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """How one job came out of a run; ``completion_seconds`` from launch, which is its submission, to its last file.

    Attributes:
        name: The job's name.
        completion_seconds: Since submission; at least that if the run was stopped before the job's end.
        threads: The intra-op threads that it trained with.
        metrics: Its final metrics, by the names of whoever trained it.
        is_equal: Whether its weights equal those of the sequential run with as many threads, bit for bit; None: stopped.
    """

    name: str
    completion_seconds: float
    threads: int
    metrics: dict[str, float]
    is_equal: bool | None

    @classmethod
    def of(cls, job: FinishedJob, *, is_equal: bool | None) -> JobOutcome:
        """Return how ``job`` came out."""
        return cls(
            name=job.name,
            completion_seconds=job.completion_seconds,
            threads=job.threads,
            metrics=job.metrics,
            is_equal=is_equal,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The figures of one run: times in seconds since launch, memory in bytes.

    Attributes:
        mix: Name of the mix.
        mode: Name of the mode.
        repeat: Number of the repeat, from 0.
        makespan: Until all results were on disk, start-up included.
        span: The makespan without the start-up.
        exit_seconds: Until the last process had ended.
        startup: Until the first job began to train.
        mean_completion: Of the jobs, since submission.
        p95_completion: The same, 95th percentile, interpolated.
        steps_per_second: Steps of all jobs over the makespan.
        peak_bytes: Highest sum of PSS over all processes.
        num_samples: How often memory was read.
        load_before: Load average of the machine before the run.
        is_stopped: The run took too long and was stopped: its times are lower bounds, its speed an upper one.
        jobs: How each job came out.
    """

    mix: str
    mode: str
    repeat: int
    makespan: float
    span: float
    exit_seconds: float
    startup: float
    mean_completion: float
    p95_completion: float
    steps_per_second: float
    peak_bytes: int
    num_samples: int
    load_before: float
    is_stopped: bool
    jobs: tuple[JobOutcome, ...]

    @property
    def is_equal(self) -> bool:
        """Whether the weights of every job that came to its end equal those of training alone."""
        return all(job.is_equal is not False for job in self.jobs)


def record(mix: str, repeat: int, run: FinishedRun, *, num_steps: int, equal: Mapping[Path, bool]) -> RunRecord:
    """Return the figures of ``run``.

    Args:
        mix: Name of the mix.
        repeat: Number of the repeat.
        run: The run.
        num_steps: Steps of all its jobs together.
        equal: Whether weights are equal, by the folder of the result.
    """
    completions = [job.completion_seconds for job in run.jobs]
    startup = min(job.began_seconds for job in run.jobs)
    watched = run.measured.watched
    return RunRecord(
        mix=mix,
        mode=run.mode.name,
        repeat=repeat,
        makespan=max(completions),
        span=max(completions) - startup,
        exit_seconds=run.measured.exit_seconds,
        startup=startup,
        mean_completion=float(np.mean(completions)),
        p95_completion=float(np.percentile(completions, 95)),
        steps_per_second=num_steps / max(completions),
        peak_bytes=watched.peak_bytes,
        num_samples=len(watched.samples),
        load_before=run.measured.load_before,
        is_stopped=watched.is_stopped,
        jobs=tuple(JobOutcome.of(job, is_equal=equal.get(job.folder)) for job in run.jobs),
    )
