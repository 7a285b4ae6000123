"""The parts of the fusion benchmark as jobs for processes with cores of their own, and what they have found so far."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from benchmarks import fusion_coverage as coverage
from benchmarks.fusion_coverage_targets import Target
from benchmarks.fusion_coverage_targets import targets as coverage_targets
from benchmarks.fusion_latency import measure
from benchmarks.fusion_passes import measure_passes
from benchmarks.fusion_records import Audit, Kill, Passes, Unit
from benchmarks.fusion_resume import measure_kills

NOT_COVERED = coverage.Findings(rows=(), training=(), boundaries=None, tree=None, files=(), is_quick=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A part of the benchmark.

    Attributes:
        title: For those who wait.
        kind: Name of the list of :class:`Findings` that the result goes to.
        function: Of a module, with one argument.
        argument: For it.
        is_alone: Whether nothing may run beside it.
    """

    title: str
    kind: str
    function: Callable[[Any], Any]
    argument: Any
    is_alone: bool = False


@dataclass(slots=True, kw_only=True)
class Findings:
    """What has been found so far."""

    units: list[Unit] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    passes: list[Passes] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    latency: dict[str, Any] | None = None
    coverage: coverage.Findings = NOT_COVERED
    failures: list[str] = field(default_factory=list)

    def add(self, job: Job, result: Callable[[], Any]) -> None:
        """Take note of what a job returns, or of what broke it: the others go on."""
        try:
            found = result()
        except Exception:  # noqa: BLE001  whatever it is
            self.failures.append(f"{job.title}: {traceback.format_exc()}")
            return
        if job.kind in ("latency", "coverage"):
            setattr(self, job.kind, found)
        else:
            getattr(self, job.kind).extend(found if isinstance(found, tuple) else [found])

    def covered(self, name: str) -> list[Target]:
        """Return the targets of the zoo with an id, and those of the models beyond its core."""
        return [target for target in coverage_targets(self.coverage) if target.id.rstrip("+") == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPlan:
    """Arguments of :func:`benchmarks.fusion_latency.measure`."""

    seed: int
    width: int
    batch_sizes: tuple[int, ...]
    candidates: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CountPlan:
    """How often something is done with a seed."""

    seed: int
    count: int
    threads: int


def run_latency(plan: LatencyPlan) -> dict[str, Any]:
    """Measure T5 and keep its lines for the end."""
    with contextlib.redirect_stdout(io.StringIO()):
        return measure(
            plan.seed,
            width=plan.width,
            batch_sizes=plan.batch_sizes,
            num_candidates=plan.candidates,
            max_seconds=plan.seconds,
        )


def run_passes(plan: CountPlan) -> tuple[Passes, ...]:
    """Measure T7."""
    torch.set_num_threads(plan.threads)
    return measure_passes(plan.seed, num_passes=plan.count)


def run_kills(plan: CountPlan) -> tuple[Kill, ...]:
    """Measure T9."""
    with tempfile.TemporaryDirectory(prefix="unified-fusion-") as folder:
        return measure_kills(plan.seed, plan.count, Path(folder), threads=plan.threads)


def run_coverage(is_quick: bool) -> coverage.Findings:
    """Measure C1 to C7."""
    return coverage.measure(None, is_quick=is_quick)


def results_of(jobs: Sequence[Job], found: Findings, *, workers: int, threads: int) -> Iterator[Job]:
    """Do all jobs, add what they return, and yield each when it is done.

    Args:
        jobs: In this order; those that must be alone come last.
        found: Is added to.
        workers: Processes side by side; with one, everything is done in this process.
        threads: Of each; as many cores are its own.
    """
    beside = [job for job in jobs if not job.is_alone]
    if workers > 1 and len(beside) > 1:
        context = multiprocessing.get_context("spawn")
        cores: Queue[set[int]] = context.Queue()
        mine = sorted(os.sched_getaffinity(0))
        for first in range(0, workers * threads, threads):
            cores.put({mine[(first + place) % len(mine)] for place in range(threads)})
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(cores,)) as pool:
            running = {pool.submit(job.function, job.argument): job for job in beside}
            for future in as_completed(running):
                found.add(running[future], future.result)
                yield running[future]
        beside = []
    for job in [*beside, *(job for job in jobs if job.is_alone)]:
        found.add(job, partial(job.function, job.argument))
        yield job


def _settle(cores: Queue[set[int]]) -> None:
    """Take cores for this process alone: two processes on one of two cores would both be slow."""
    os.sched_setaffinity(0, cores.get())
