"""The storm: a service whose workers, supervisor, HTTP process and submitters are killed at random while jobs come in.

One thread does it all: it starts whatever it finds dead, keeps a few jobs waiting, and kills. A killed submitter is run again
with the same orders until it comes to its end. Then nothing more is killed, and every job may end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.service_process import Service, ServiceError, free_port, is_alive, serving, wait_until
from benchmarks.storm_watch import Residency, Seen, Watch
from unified.job_state import ENDED, JobState
from unified.queue.records import JobRow, Transition, WorkerRow
from unified.queue.verbs import Queue

MIX = {"worker": 0.90, "submitter": 0.05, "supervisor": 0.03, "http": 0.02}
"""Shares of the kills. A worker is forked anew in milliseconds; a supervisor takes seconds to come back."""

BATCH = 6  #: orders of a submitter
LOW = 6  #: so few unfinished jobs bring the next submitter
TEND_SECONDS = 0.05
MAX_TRIES = 3  #: for each kill
READY_SECONDS = 60.0
TARGET_SECONDS = 30.0  #: how long to wait for a target that is just being started
MAX_SUBMIT_SECONDS = 0.08  #: after its start, a submitter is killed within this


@dataclass(frozen=True, slots=True, kw_only=True)
class StormPlan:
    """What is to happen.

    Attributes:
        kills: How many SIGKILLs.
        jobs: At most so many jobs; None: as many as keep the slots busy until the last kill.
        seed: Of targets and times.
        slots: Workers.
        gap_seconds: Mean time between two kills.
        checkpoint_seconds: Interval between checkpoints.
        patience_seconds: How long jobs may take to end after the last kill.
    """

    kills: int
    jobs: int | None
    seed: int
    slots: int = 2
    gap_seconds: float = 0.9
    checkpoint_seconds: float = 1.0
    patience_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A SIGKILL that was delivered at ``time`` (wall clock) to process ``pid``, of ``slot`` if it was a worker."""

    target: str
    time: float
    pid: int
    slot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job as the queue has it at the end, with its transitions."""

    row: JobRow
    transitions: tuple[Transition, ...]


@dataclass(slots=True, kw_only=True)
class Storm:
    """What happened.

    Attributes:
        orders: The folder of each job that a submitter was told to hand in, by id.
        promised: Ids that submitters were told were accepted, each once per answer.
        kills: In order.
        jobs: Every job in the store at the end.
        workers: Every worker that was started.
        residencies: What was seen of each from outside.
        unasked_ends: Exits of the supervisor that no kill explains, and of submitters that failed.
        starts: When the supervisor was started, wall clock.
        began: Wall clock.
        ended: When the last job had ended, or patience had.
        exit_code: Of the service, ended in order after all.
    """

    orders: dict[str, Path] = field(default_factory=dict)
    promised: list[str] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    jobs: list[Ended] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    residencies: dict[Residency, Seen] = field(default_factory=dict)
    unasked_ends: list[str] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    exit_code: int | None = None


@dataclass(slots=True, kw_only=True)
class Submitter:
    """A submitter's orders and the process that carries them out."""

    way: str
    orders: Path
    output: Path
    process: subprocess.Popen[bytes] | None = None
    num_deaths: int = 0

    def start(self, where: str) -> None:
        """Carry the orders out, or go on with them."""
        command = [sys.executable, "-m", "benchmarks.storm_submitter", where, str(self.orders)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    @property
    def lines(self) -> list[str]:
        """What it has said in all its lives."""
        return self.output.read_text(errors="replace").splitlines() if self.output.exists() else []


class StormRun:
    """Carries out a plan.

    Args:
        plan: What is to happen.
        specs: Job folders, submitted again and again under new ids.
        work: Folder for the queue and everything else.
    """

    def __init__(self, plan: StormPlan, specs: Sequence[Path], work: Path) -> None:
        self.plan, self.specs, self.work = plan, specs, work
        self.storm = Storm()
        self._random, self._chooser = random.Random(plan.seed), random.Random(f"{plan.seed} jobs")
        self._service = storm_service(plan, work / "root", work / "serve.log", port=free_port())
        self._submitter: Submitter | None = None
        self._num_batches = 0
        self._was_killed = False

    def run(self) -> Storm:
        """Let it happen."""
        work, storm = self.work, self.storm
        work.mkdir(parents=True, exist_ok=True)
        storm.began = time.time()
        self._start_service()
        self._service.wait_ready()
        try:
            with Queue.open(work / "root") as queue, Watch(work / "root") as watch:
                self._strike_all(queue)
                self._calm_down(queue)
                storm.exit_code = self._stop_service()
                storm.workers = queue.store.workers()
                storm.jobs = [Ended(row=row, transitions=tuple(queue.store.transitions(row.id))) for row in queue.store.jobs()]
            storm.residencies = watch.residencies
        finally:
            self._end_processes()
        return storm

    def _strike_all(self, queue: Queue) -> None:
        """Deliver every kill; one that missed is tried again at the end."""
        targets, tries = self._targets(), 0
        while targets and tries < MAX_TRIES * self.plan.kills:
            tries += 1
            self._rest(queue, self._random.uniform(0.3, 1.7) * self.plan.gap_seconds)
            if self._is_out_of_jobs(queue):
                return
            target = targets.pop(0)
            if not self._kill(queue, target):
                targets.append(target)

    def _targets(self) -> list[str]:
        counts = {name: round(share * self.plan.kills) for name, share in MIX.items() if name != "worker"}
        if self.plan.kills >= len(MIX):
            counts = {name: max(1, count) for name, count in counts.items()}  # each at least once
        targets = [name for name, count in counts.items() for _ in range(count)][: self.plan.kills]
        targets += ["worker"] * (self.plan.kills - len(targets))
        self._random.shuffle(targets)
        return targets

    # What keeps it going

    def _start_service(self) -> None:
        self.storm.starts.append(time.time())
        self._service.start()

    def _rest(self, queue: Queue, seconds: float) -> None:
        """Let time pass and tend to what lives."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._tend(queue)
            time.sleep(min(left, TEND_SECONDS))

    def _tend(self, queue: Queue) -> None:
        """Start the service if it is dead, and a submitter if too little waits."""
        process = self._service.process
        if process is not None and process.poll() is not None:
            if not self._was_killed:
                self.storm.unasked_ends.append(f"supervisor, exit code {process.returncode}: {self._service.tail()}")
            self._was_killed = False
            self._start_service()
        self._reap_submitter()
        if self._submitter is None and self._has_more() and _num_unfinished(queue) < LOW:
            self._next_submitter()

    def _has_more(self) -> bool:
        return self.plan.jobs is None or len(self.storm.orders) < self.plan.jobs

    def _is_out_of_jobs(self, queue: Queue) -> bool:
        return not self._has_more() and self._submitter is None and _num_unfinished(queue) == 0

    def _next_submitter(self) -> Submitter:
        self._num_batches += 1
        more = BATCH if self.plan.jobs is None else min(BATCH, self.plan.jobs - len(self.storm.orders))
        orders = []
        for _ in range(more):
            number, spec = len(self.storm.orders), self._chooser.choice(self.specs)
            job = f"{spec.name}-{number:05d}"
            self.storm.orders[job] = spec
            orders.append({"id": job, "token": f"token-{number}", "folder": str(spec)})
        path = self.work / f"orders-{self._num_batches}.json"
        path.write_text(json.dumps(orders))
        way = "http" if self._num_batches % 2 == 0 else "folder"
        self._submitter = Submitter(way=way, orders=path, output=path.with_suffix(".out"))
        self._start_submitter(self._submitter)
        return self._submitter

    def _start_submitter(self, submitter: Submitter) -> None:
        where = str(self._service.root) if submitter.way == "folder" else f"http://127.0.0.1:{self._service.port}"
        submitter.start(where)

    def _reap_submitter(self) -> None:
        submitter = self._submitter
        if submitter is None or submitter.process is None or submitter.process.poll() is None:
            return
        if submitter.process.returncode == 0:
            self.storm.promised += [line.split()[1] for line in submitter.lines if line.startswith("accepted ")]
            self._submitter = None
            return
        if submitter.process.returncode != -signal.SIGKILL:
            self.storm.unasked_ends.append(f"submitter ({submitter.way}): {' | '.join(submitter.lines[-5:])}")
        self._start_submitter(submitter)  # with the same orders

    # What kills

    def _kill(self, queue: Queue, target: str) -> bool:
        """Kill one; False if there was none in time."""
        if target == "submitter":
            return self._kill_submitter()
        deadline = time.monotonic() + TARGET_SECONDS
        while (found := self._find(queue, target)) is None and time.monotonic() < deadline:
            self._rest(queue, TEND_SECONDS)
        if found is None:
            return False
        pid, slot = found
        if target == "supervisor":
            self._was_killed = True
        return self._strike(target, pid, slot)

    def _strike(self, target: str, pid: int, slot: int | None = None) -> bool:
        at = time.time()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.storm.kills.append(Kill(target=target, time=at, pid=pid, slot=slot))
        return True

    def _find(self, queue: Queue, target: str) -> tuple[int, int | None] | None:
        """Return the process to kill, and its slot, if it lives."""
        process = self._service.process
        if process is None or process.poll() is not None:
            return None
        if target == "http":
            pid = self._service.http_pid()
            return None if pid is None else (pid, None)
        if target == "supervisor":  # only one that serves; what it does first, it does on every start
            status = queue.root.read_status()
            return (process.pid, None) if status is not None and status["pid"] == process.pid else None
        last = {worker.slot: worker for worker in queue.store.workers()}
        living = [worker for worker in last.values() if worker.ended is None and is_alive(worker.pid)]
        if not living:
            return None
        worker = self._random.choice(living)
        return worker.pid, worker.slot

    def _kill_submitter(self) -> bool:
        """Let a submitter begin, and kill it soon after; False if it had come to its end by then."""
        submitter = self._submitter or (self._next_submitter() if self._has_more() else None)
        if submitter is None or submitter.process is None:
            return False
        process = submitter.process
        deadline = time.monotonic() + READY_SECONDS
        while submitter.lines.count("ready") <= submitter.num_deaths and process.poll() is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        time.sleep(self._random.uniform(0.0, MAX_SUBMIT_SECONDS))
        if process.poll() is not None or not self._strike("submitter", process.pid):
            return False
        process.wait()
        submitter.num_deaths = submitter.lines.count("ready")
        return True

    # How it ends

    def _calm_down(self, queue: Queue) -> None:
        """Kill nothing more; wait until every order was accepted and every job has ended, as long as patience lasts."""
        deadline = time.monotonic() + self.plan.patience_seconds
        self.plan = replace(self.plan, jobs=len(self.storm.orders))  # no more
        while time.monotonic() < deadline and not self._is_out_of_jobs(queue):
            self._rest(queue, 0.2)
        self.storm.ended = time.time()

    def _stop_service(self) -> int | None:
        """End the service in order; what has been seen is worth telling even if it does not."""
        try:
            return self._service.stop()
        except ServiceError as error:
            self.storm.unasked_ends.append(str(error))
            return None

    def _end_processes(self) -> None:
        submitter = self._submitter.process if self._submitter is not None else None
        for process in (submitter, self._service.process):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def storm_service(plan: StormPlan, root: Path, log: Path, *, port: int | None) -> Service:
    """Return the service that a storm strikes, and the undisturbed one that it is compared with."""
    options = {"slots": plan.slots, "checkpoint-seconds": plan.checkpoint_seconds}
    return Service(root=root, log=log, options=options, settings={"tick_seconds": 0.2}, port=port)


def train_undisturbed(plan: StormPlan, specs: Sequence[Path], work: Path) -> dict[str, Path]:
    """Train every spec once while nothing is killed; return the folders of the results by the spec's name."""
    service = storm_service(plan, work / "root", work / "serve.log", port=None)
    work.mkdir(parents=True)
    with serving(service) as queue:
        ids = {spec.name: queue.submit(spec, by="storm").job.id for spec in specs}
        wait_until(lambda: _num_unfinished(queue) == 0, plan.patience_seconds, "the undisturbed jobs did not end")
        for name, job in ids.items():
            assert queue.get(job).state is JobState.FINISHED, f"{name} undisturbed: {queue.get(job).reason}"
    return {name: service.root / "results" / job for name, job in ids.items()}


def _num_unfinished(queue: Queue) -> int:
    return sum(count for state, count in queue.store.counts().items() if state not in ENDED)
