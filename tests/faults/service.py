"""A whole service as its users have it: ``unified serve`` in processes of its own, jobs, and what must hold of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import nn

from tests.faults.models import Net
from tests.integration.batches import TEST, TRAIN
from tests.integration.command_line import environment, is_alive
from tests.plain import train_alone
from unified.job_state import ENDED, LEGAL_MOVES, JobState
from unified.queue.records import JobRow
from unified.queue.verbs import Queue

T = TypeVar("T")

PATIENCE_SECONDS = 90.0  #: for what must happen; a busy machine is slow, and a hang must end
ME = "somebody"

#: Everything happens a hundred times as often as in a real service.
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "stacking": False,  # these tests compare bits; what happens to a stack is in tests/integration/test_stacking.py
    "slots": 1,
    "threads": 1,
    "trust": True,
    "sandbox": "off",  # models of these tests leave marks beside the root; tests/faults/test_sandboxed.py is about the ring
    "scheduler": "round-robin:quantum=5steps",
    "lease_seconds": 2.0,
    "heartbeat_seconds": 0.3,
    "stall_seconds": 30.0,
    "checkpoint_seconds": 0.3,
    "tick_seconds": 0.1,
    "retry_seconds": 0.1,
    "settle_seconds": 0.0,
    "grace_seconds": 30.0,
    "max_infra_failures": 1000,
}

JOB = {"loss": "CrossEntropyLoss", "batch_size": 8, "seed": 3, "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}}


def until(condition: Callable[[], T], what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.02)
    return found


class Served:
    """One ``unified serve`` process and all below it."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, held: Path) -> None:
        self.process = process
        self.held = held  #: is there while a thread of it is held at a point
        self._output = output

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self._output.read_text(errors="replace")

    def until_said(self, text: str) -> None:
        """Wait until it has written something."""
        until(lambda: text in self.said or self.process.poll() is not None, f"{text!r} in: {self.said}")
        assert text in self.said, self.said

    def family(self) -> list[psutil.Process]:
        """Return all processes below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def _children(self, module: str) -> list[psutil.Process]:
        found = []
        for child in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in child.cmdline() and child.ppid() == self.process.pid:
                    found.append(child)
        return found

    def nursery(self) -> list[psutil.Process]:
        """Return the process that forks workers, if it is there."""
        return self._children("unified.nursery")

    def http(self) -> list[psutil.Process]:
        """Return the process that answers HTTP, if it is there."""
        return self._children("unified.service.http_process")

    def forked(self) -> list[psutil.Process]:
        """Return the living workers and inspectors."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for parent in self.nursery() for child in parent.children() if is_alive(child)]
        return []

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of it and of all below, and return the exit code."""
        below = self.family()
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        until(lambda: not any(map(is_alive, below)), "everything below a supervisor ends with it")
        return code

    def clean_up(self) -> None:
        """End what is left, whatever state it is in."""
        for process in [*self.family(), psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=PATIENCE_SECONDS)


class Service:
    """A queue in a folder, those who serve it one after another or at once, and its jobs."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.toml").write_text(toml(SETTINGS | settings))
        self.queue = Queue.open(path, make=True)
        self.served: list[Served] = []
        self._sources = path.with_name(f"{path.name}-sources")

    def close(self) -> None:
        """End everything."""
        for served in self.served:
            served.clean_up()
        self.queue.close()

    def start(self, *, fault: str = "", host: str = "", has_lock: bool = True, http: bool = False) -> Served:
        """Start a supervisor and wait until it serves; ``fault`` is as ``UNIFIED_FAULT``."""
        held = self.path.with_name(f"{self.path.name}-{len(self.served)}.held")
        variables = {
            "UNIFIED_FAULT_HELD": str(held),
            "UNIFIED_FAULT": fault,
            "UNIFIED_NO_LOCK": "" if has_lock else "1",
            "UNIFIED_HOST_ID": host,
        }
        output = self.path.with_name(f"{self.path.name}-{len(self.served)}.log")
        command = [sys.executable, "-m", "unified", "serve", "--root", str(self.path)]
        if http:
            command += ["--http", f"127.0.0.1:{free_port()}"]
        with output.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(**variables), cwd=self.path)
        served = Served(process, output, held)
        self.served.append(served)
        return served

    def begin(self, **how: Any) -> Served:
        """Start a supervisor and wait until it serves."""
        served = self.start(**how)
        served.until_said("serves")
        return served

    def source(self, name: str, model: nn.Module | None = None, *, steps: int, **job: Any) -> Path:
        """Write a job folder."""
        folder = self._sources / name
        folder.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(seeded(Net) if model is None else model, folder / "model.pt")
        torch.save(TRAIN, folder / "train.pt")
        torch.save(TEST, folder / "test.pt")
        described = JOB | {"name": name, "model": "model.pt", "max_steps": steps} | job
        described["data"] = {"train": "train.pt", "test": "test.pt"}
        (folder / "job.json").write_text(json.dumps(described))
        return folder

    def submit(self, name: str, make: Callable[..., nn.Module] = Net, *, steps: int, job: Any = (), **model: Any) -> str:
        """Submit a job whose model begins with the same weights as all others, and return its id."""
        folder = self.source(name, seeded(make, **model), steps=steps, **dict(job))
        return self.queue.submit(folder, by=ME).job.id

    def row(self, job: str) -> JobRow:
        """Return what the store says of a job."""
        return self.queue.store.get(job)

    def until_state(self, job: str, *states: JobState) -> JobRow:
        """Wait until a job is in one of some states."""
        said = "".join(served.said for served in self.served[-2:])
        until(lambda: self.row(job).state in states, f"{job}: {states}; it is {self.row(job).state}; {said}")
        return self.row(job)

    def until_step(self, job: str, step: int) -> JobRow:
        """Wait until a job has come as far as that, or has ended."""
        until(lambda: self.row(job).steps_done >= step or self.row(job).state in ENDED, f"{job} comes to step {step}")
        return self.row(job)

    def until_saved(self, job: str, count: int = 1) -> None:
        """Wait until a job has so many checkpoints."""
        until(lambda: len(self.queue.store.checkpoints(job)) >= count, f"{job} has {count} checkpoints")

    def is_out(self, job: str) -> bool:
        """Whether a finished job's result is where its owner looks for it, which it is a moment after the commit."""
        return self.row(job).state is not JobState.FINISHED or self.queue.root.result(job).is_dir()

    def until_ended(self, *jobs: str) -> list[JobRow]:
        """Wait until jobs have ended, in whatever way, while the last supervisor lives."""

        def have_ended() -> bool:
            assert self.served[-1].process.poll() is None, self.served[-1].said
            return all(self.row(job).state in ENDED and self.is_out(job) for job in jobs)

        try:
            until(have_ended, "jobs end")
        except AssertionError as error:
            left = {job: (str(self.row(job).state), self.row(job).reason) for job in jobs if self.row(job).state not in ENDED}
            raise AssertionError(f"{left}\n{self.served[-1].said}") from error
        return [self.row(job) for job in jobs]

    def log(self, job: str) -> str:
        """Return a job's log."""
        path = self.queue.root.log(job)
        return path.read_text() if path.exists() else ""

    def states(self, job: str) -> list[JobState]:
        """Return the states that a job has gone through."""
        return [transition.new for transition in self.queue.store.transitions(job)]

    def check_story(self, job: str) -> None:
        """Check that a job went a legal way, in epochs that only grow, and ended once."""
        steps = self.queue.store.transitions(job)
        assert (steps[0].old, steps[0].new) == (None, JobState.QUEUED)
        for before, after in itertools.pairwise(steps):
            assert after.old is before.new, (before, after)
            assert after.new in LEGAL_MOVES[before.new], (before, after)
            assert after.epoch == before.epoch + (after.new is JobState.LOADING), (before, after)
            assert after.reason.strip(), after
        assert [step.new in ENDED for step in steps] == [False] * (len(steps) - 1) + [True], self.states(job)

    def check_finished(self, *jobs: str) -> None:
        """Check that jobs ended well, once, and with the weights of a plain loop that nobody disturbed."""
        for job in jobs:
            row = self.row(job)
            assert row.state is JobState.FINISHED, (job, row.state, row.reason, self.log(job))
            self.check_story(job)
            folder = self.queue.root.result(job)
            until((folder / "result.json").exists, f"{job} is in results/")
            assert row.result_path == self.queue.root.relative(folder)
            assert json.loads((folder / "result.json").read_text())["steps"] == row.steps_total
            found = torch.load(folder / "state_dict.pt", weights_only=True)
            assert_equal(found, undisturbed(row.steps_total or 0), job)
            until(lambda job=job: not any(self.queue.root.job(job).glob("result-*")), f"{job} leaves nothing behind")


def toml(settings: dict[str, Any]) -> str:
    """Return settings as config.toml has them; a dict is a table, and stands behind the others."""
    plain = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if not isinstance(value, dict))
    return plain + "".join(f"[{name}]\n{toml(value)}" for name, value in settings.items() if isinstance(value, dict))


_undisturbed: dict[int, dict[str, torch.Tensor]] = {}


def undisturbed(steps: int, **model: Any) -> dict[str, torch.Tensor]:
    """Return what a plain loop makes of the jobs here in so many steps."""
    key = steps, *sorted(model.items())
    if key not in _undisturbed:
        _undisturbed[key] = train_alone(seeded(Net, **model), JOB | {"max_steps": steps}, TRAIN, TEST)[0]
    return _undisturbed[key]


def seeded(make: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """Return a model with the weights that all have here."""
    torch.manual_seed(5)
    return make(**arguments)


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], job: str) -> None:
    """Check weights, bit for bit."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), (job, name)


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def kill(processes: Iterable[psutil.Process], number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to processes of ours that are still there; return to how many."""
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, number)
            count += 1
    return count
