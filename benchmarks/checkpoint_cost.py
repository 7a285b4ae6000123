"""What checkpoints cost: the same jobs with and without them, in turns, and the seconds that the service itself counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.service_process import Service, serving, wait_until
from unified.job_state import ENDED, JobState

NEVER_SECONDS = 1e6
PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRun:
    """One run of the jobs.

    Attributes:
        repeat: Which one.
        interval_seconds: Between checkpoints; None: none were written.
        training_seconds: Of each job, by its spec's name: the sum of its turns.
        checkpoints: How many were written.
        checkpoint_seconds: What the service counts for them, from the copy of the state until it was on disk; other training
            goes on during most of it.
    """

    repeat: int
    interval_seconds: float | None
    training_seconds: Mapping[str, float]
    checkpoints: int
    checkpoint_seconds: float

    @property
    def total_seconds(self) -> float:
        """Training of all jobs."""
        return sum(self.training_seconds.values())


def measure_costs(specs: Sequence[Path], work: Path, *, interval_seconds: float, repeats: int) -> Iterator[CostRun]:
    """Run the jobs side by side on a slot each, ``repeats`` times with checkpoints and as often without; yield each run."""
    for repeat in range(repeats):
        order = (None, interval_seconds) if repeat % 2 == 0 else (interval_seconds, None)  # none is always the first
        for interval in order:
            name = f"{repeat}-{'without' if interval is None else 'with'}"
            yield _run(specs, work / name, repeat, interval)


def cost_ratios(runs: Sequence[CostRun]) -> list[float]:
    """Return, per repeat, the training time with checkpoints over that without."""
    totals = {(run.repeat, run.interval_seconds is not None): run.total_seconds for run in runs}
    return [totals[repeat, True] / totals[repeat, False] for repeat, has in totals if has and (repeat, False) in totals]


def _run(specs: Sequence[Path], work: Path, repeat: int, interval: float | None) -> CostRun:
    work.mkdir(parents=True)
    options = {"slots": len(specs), "checkpoint-seconds": NEVER_SECONDS if interval is None else interval}
    service = Service(root=work / "root", log=work / "serve.log", options=options)
    with serving(service) as queue:
        ids = {spec.name: queue.submit(spec, by="bench").job.id for spec in specs}
        wait_until(lambda: all(queue.get(job).state in ENDED for job in ids.values()), PATIENCE_SECONDS, "the jobs did not end")
        rows = {name: queue.get(job) for name, job in ids.items()}
    for name, row in rows.items():
        assert row.state is JobState.FINISHED, f"{name}: {row.reason}"
    counters = (queue.root.read_status() or {})["counters"]  # as the service left them when it ended
    return CostRun(
        repeat=repeat,
        interval_seconds=interval,
        training_seconds={name: row.training_seconds for name, row in rows.items()},
        checkpoints=counters["checkpoints"],
        checkpoint_seconds=counters["checkpoint_seconds"],
    )
