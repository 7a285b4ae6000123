"""A queue in the middle of its day, filled into a real root through the real store."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.integration.demo_jobs import JOBS, MIB, Demo, job_id
from unified.job_state import RESIDENT, JobState
from unified.queue.files import write_durably
from unified.queue.records import CheckpointRow, JobRow, NewJob, Progress
from unified.queue.root import Root
from unified.queue.store import Clock, JobStore

HOLDER = "demo:1"
WINDOW_SECONDS = 600.0  #: how far back the story goes
_S = JobState

#: Where a job goes after it was loaded, up to each state.
_PATHS: dict[JobState, tuple[JobState, ...]] = {
    _S.LOADING: (),
    _S.RUNNING: (_S.RUNNING,),
    _S.PAUSING: (_S.RUNNING, _S.PAUSING),
    _S.PAUSED: (_S.RUNNING, _S.PAUSING, _S.PAUSED),
    _S.CANCELLED: (_S.RUNNING, _S.CANCELLING, _S.CANCELLED),
    _S.RETRY_WAIT: (_S.RUNNING, _S.RETRY_WAIT),
    _S.FINISHED: (_S.RUNNING, _S.FINISHED),
    _S.FAILED: (_S.RUNNING, _S.FAILED),
    _S.DEAD: (_S.RUNNING, _S.DEAD),
}
_REASONS = {
    _S.RUNNING: "resident on its slot",
    _S.PAUSING: "asked to pause; its checkpoint is being written",
    _S.CANCELLING: "asked to end",
}


class DemoQueue:
    """Fills a root. ``now`` is the present of the story; :meth:`at` moves the store's clock."""

    def __init__(self, path: Path, *, seed: int = 7) -> None:
        self.root = Root.make(path)
        self.now = time.time()
        self._wall = self.now
        self._random = random.Random(seed)
        system = Clock.system()
        self.store = JobStore.open(
            self.root.database, clock=Clock(wall=lambda: self._wall, monotonic=system.monotonic, boot_id=system.boot_id)
        )
        self._lock: int | None = None

    def fill(self, jobs: tuple[Demo, ...] = JOBS) -> None:
        """Tell the whole story, and hold the supervisor's lock so that the queue counts as served."""
        self.tell(jobs)
        self.serve(jobs)
        self._write_timeline(jobs)

    def tell(self, jobs: Iterable[Demo]) -> None:
        """Fill the store and the folders of these jobs alone."""
        for demo in sorted(jobs, key=lambda one: -one.submitted):
            self._tell(demo)
        self._wall = self.now

    def serve(self, jobs: tuple[Demo, ...] = JOBS) -> None:
        """Look like a supervisor that runs."""
        self._lock = self.root.take_lock()
        self._write_status(jobs)

    def advance(self, seconds: float) -> None:
        """Let the story go on: on each slot another member trains for so long."""
        start, self.now = self.now, self.now + seconds
        self._wall = self.now
        running = {}
        for slot in (0, 1):
            rows = [row for row in self.store.jobs(states=(_S.RUNNING,)) if row.slot == slot]
            row = running[slot] = rows[int(self.now / 4) % len(rows)]
            self._train_on(row, seconds)
            turn = {"job": row.id, "slot": slot, "start": start, "end": self.now, "steps": 10, "user": row.user}
            _append(self.root.timeline, turn)
        self._write_status(JOBS, {slot: row.id for slot, row in running.items()})

    def _train_on(self, row: JobRow, seconds: float) -> None:
        steps = row.steps_done + round(seconds / (row.step_seconds or 1))
        loss = (row.loss or 1.0) * 0.999
        training = row.training_seconds + seconds
        progress = Progress(job=row.id, epoch=row.epoch, steps_done=steps, loss=loss, training_seconds=training)
        self.store.note([progress], holder=HOLDER)
        measured = {"time": self.now, "step": steps, "split": "train", "loss": loss * (1 + self._random.gauss(0, 0.05))}
        _append(self.root.metrics(row.id), measured)

    def _write_status(self, jobs: tuple[Demo, ...], running: dict[int, str] | None = None) -> None:
        slots = [_slot(index, [job for job in jobs if job.slot == index and job.state in RESIDENT]) for index in (0, 1)]
        for slot in slots:
            slot["running"] = (running or {}).get(slot["index"], slot["running"])
            slot["memory_bytes"] += round(self._random.uniform(-9, 9) * MIB)
        status = {
            "schema": 1, "pid": 4711, "holder": HOLDER, "started": self.now - 3600, "time": self.now, "scheduler": "fair",
            "device": "cpu", "version": "0.1.0", "slots": slots, "memory_bytes": sum(slot["memory_bytes"] for slot in slots),
            "memory_total_bytes": 4096 * MIB, "utilisation": 0.94, "queued": sum(job.state is _S.QUEUED for job in jobs),
            "ticks": {}, "is_draining": False, "disk_free_bytes": 181 << 30, "counters": {},
        }  # fmt: skip
        write_durably(self.root.status, json.dumps(status).encode())

    def log(self, job: str, text: str, *, at: float | None = None) -> None:
        """Add a line to a job's log."""
        stamp = datetime.fromtimestamp(self.now if at is None else at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self.root.log(job).open("a") as file:
            file.write(f"{stamp}  {text}\n")

    def close(self) -> None:
        """Let the store and the lock go."""
        self.store.close()
        if self._lock is not None:
            os.close(self._lock)

    def _tell(self, demo: Demo) -> None:
        self._wall = self.now - demo.submitted
        job = job_id(demo)
        self.root.spec(job).mkdir(parents=True)
        spec = {"name": demo.name, "user": demo.user, "model": "model.py", "data": {"train": "train.npz"}, "epochs": 10}
        new = NewJob(id=job, name=demo.name, user=demo.user, spec=spec, content_sha256=job_id(demo))
        (self.root.spec(job) / "job.json").write_text(json.dumps(spec))
        self.store.submit(new, by=demo.user)
        self.log(job, "accepted", at=self._wall)
        if demo.total:
            self._wall += 3
            self.store.admit(job, {"ok": True}, steps_total=demo.total, memory_bytes=demo.memory)
            self.log(job, f"checked: {demo.total} steps planned", at=self._wall)
        if demo.started:
            self._train(demo, job)
        else:
            self.store.set_reason({job: demo.reason})

    def _train(self, demo: Demo, job: str) -> None:
        self._wall = self.now - demo.started
        row = self.store.lease(
            job, holder=HOLDER, slot=demo.slot, seconds=1e6, reason=f"given to slot {demo.slot}", by="supervisor"
        )
        self.log(job, f"given to slot {demo.slot}", at=self._wall)
        if demo.steps:
            self.root.metrics(job).write_text("".join(f"{json.dumps(each)}\n" for each in self._metrics(demo)))
        for state in _PATHS[demo.state]:
            if state is not _S.RUNNING:
                self._note(demo, row)
                self._wall = self.now - demo.ended
            row = self._move(row, state, demo)
            self.log(job, f"{state}: {row.reason}", at=self._wall)
        if demo.state in {_S.RUNNING, _S.PAUSING}:
            self._note(demo, row)
        if demo.state is _S.FINISHED:
            self._publish(job)

    def _move(self, row: JobRow, state: JobState, demo: Demo) -> JobRow:
        changes: dict[str, Any] = {"started_time": self._wall} if state is _S.RUNNING else {}
        if state in {_S.FINISHED, _S.FAILED, _S.DEAD, _S.CANCELLED}:
            changes["finished_time"] = self._wall
        if state is _S.FINISHED:
            changes["result_path"] = f"results/{row.id}"
        if state is _S.RETRY_WAIT:
            changes |= {"not_before": self.now + 40, "num_job_failures": 1}
        reason = demo.reason if state is demo.state else _REASONS[state]
        by = demo.user if state in {_S.PAUSING, _S.CANCELLING} else "supervisor"
        return self.store.move(row.id, state, old=row.state, epoch=row.epoch, reason=reason, by=by, holder=HOLDER, **changes)

    def _note(self, demo: Demo, row: JobRow) -> None:
        seconds = (demo.started - demo.ended) * 0.4
        last = json.loads(self.root.metrics(row.id).read_text().splitlines()[-1])
        progress = Progress(
            job=row.id, epoch=row.epoch, steps_done=demo.steps, loss=last["loss"], metrics=last["metrics"],
            step_seconds=seconds / demo.steps, memory_bytes=demo.memory, training_seconds=seconds,
        )  # fmt: skip
        self.store.note([progress], holder=HOLDER)
        step = demo.steps - demo.steps % 100
        if step:
            checkpoint = CheckpointRow(
                job=row.id, epoch=row.epoch, step=step, path=f"jobs/{row.id}/ckpt/{step}.safetensors", sha256="5f" * 32,
                num_bytes=9 * MIB, time=self._wall,
            )  # fmt: skip
            self.store.add_checkpoint(checkpoint, holder=HOLDER)
            self.log(row.id, f"checkpoint at step {step}, 9.0 MiB in 0.08 s", at=self._wall)

    def _metrics(self, demo: Demo) -> Iterator[dict[str, Any]]:
        first, last = demo.loss
        for index in range(81 if demo.steps > 80 else 3):
            share = index / 80
            level = last + (first - last) * math.exp(-4.5 * share) if first > last else first + (last - first) * share**4
            at = self.now - demo.started + (demo.started - demo.ended) * share
            for split in ("train", "test") if index % 8 == 0 and index else ("train",):
                noise = self._random.gauss(0, 0.06 if split == "train" else 0.015)
                loss = level * (1 + noise) * (1.12 if split == "test" else 1.0)
                yield {
                    "time": at, "step": round(demo.steps * share), "epoch": int(share * 10), "split": split, "loss": loss,
                    "metrics": {"accuracy": max(0.0, 1 - loss / max(first, last))}, "lr": 1e-3 * (1 - share * 0.8),
                    "step_seconds": 0.02, "samples_per_second": 3200, "memory_bytes": demo.memory, "slot": demo.slot,
                }  # fmt: skip

    def _write_timeline(self, jobs: tuple[Demo, ...]) -> None:
        turns = sorted((turn for slot in (0, 1) for turn in self._turns(slot, jobs)), key=lambda turn: turn["end"])
        self.root.timeline.write_text("".join(f"{json.dumps(turn)}\n" for turn in turns))

    def _turns(self, slot: int, jobs: tuple[Demo, ...]) -> Iterator[dict[str, Any]]:
        """The residents take turns of a few seconds, in order, with a gap now and then."""
        at, count = self.now - WINDOW_SECONDS, 0
        while at < self.now:
            ago = self.now - at
            here = [job for job in jobs if job.slot == slot and job.started > ago > job.ended and job.steps]
            length = self._random.uniform(2, 9)
            if here:
                job = here[count % len(here)]
                end = min(at + length, self.now - job.ended)
                yield {"job": job_id(job), "slot": slot, "start": at, "end": end, "steps": 40, "user": job.user}
                at = end
                count += 1
            at += 0.15 if here and self._random.random() < 0.9 else 1.5

    def _publish(self, job: str) -> None:
        folder = self.root.result(job)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(177_000))
        (folder / "state_dict.pt").write_bytes(bytes(180_000))
        (folder / "result.json").write_text('{"state": "finished"}\n')


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(f"{json.dumps(row)}\n")


def _slot(index: int, members: list[Demo]) -> dict[str, Any]:
    running = next((job_id(job) for job in members if job.state is _S.RUNNING), None)
    size = sum(job.memory or 0 for job in members) + 190 * MIB
    return {
        "index": index, "device": "cpu", "threads": 1, "pid": 5000 + index, "state": "training" if running else "idle",
        "running": running, "residents": [job_id(job) for job in members], "memory_bytes": size,
    }  # fmt: skip
