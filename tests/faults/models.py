"""Models that behave badly at a step, and the small one that they are otherwise. Loaded by path in the service's workers."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A small network whose steps can be made to last.

    Args:
        step_seconds: What a training step takes at least; the arithmetic is the same.
        load_seconds: What reading it from its file takes at least.
        width: Of its hidden layer, which makes checkpoints large.
    """

    def __init__(self, step_seconds: float = 0.0, load_seconds: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.step_seconds, self.load_seconds = step_seconds, load_seconds
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
        self.norm = nn.BatchNorm1d(width)
        self.tail = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        time.sleep(self.load_seconds)

    def forward(self, x: Tensor) -> Tensor:
        count = self.norm.num_batches_tracked
        if self.training and type(count) is Tensor:  # not when its memory is estimated
            time.sleep(self.step_seconds)
            self.act(int(count) + 1)
        return self.tail(self.norm(self.body(x)))

    def act(self, step: int) -> None:
        """Called in each training step, the first being 1."""


class Faulty(Net):
    """Does something bad at one training step.

    Args:
        kind: What, a name of :data:`ACTS`.
        step: When.
        once: Only if this file is not there; it is made.
        **net: As for :class:`Net`.
    """

    def __init__(self, kind: str, step: int, once: Path | None = None, **net: float) -> None:
        super().__init__(**net)
        self.kind, self.step, self.once = kind, step, once

    def act(self, step: int) -> None:
        if step != self.step or (self.once is not None and self.once.exists()):
            return
        if self.once is not None:
            self.once.touch()
        ACTS[self.kind](self)


class Prying(Net):
    """Reaches for what is not its own at one training step.

    Args:
        what: How, a name of :data:`REACHES`.
        target: For what.
        step: When.
    """

    def __init__(self, what: str, target: object, step: int) -> None:
        super().__init__()
        self.what, self.target, self.step = what, target, step

    def act(self, step: int) -> None:
        if step == self.step:
            REACHES[self.what](self.target)


class Patient(Net):
    """Takes its time until a file is there, so that it is still about when something happens.

    Args:
        until: The file.
        wait_seconds: What a training step takes at least while it is missing.
        **net: As for :class:`Net`.
    """

    def __init__(self, until: Path, wait_seconds: float = 0.05, **net: float) -> None:
        super().__init__(**net)
        self.until, self.wait_seconds = until, wait_seconds

    def act(self, step: int) -> None:
        if not self.until.exists():
            time.sleep(self.wait_seconds)


class Tracing(Net):
    """Writes the time of each training step's end to a file."""

    def __init__(self, trace: Path, **net: float) -> None:
        super().__init__(**net)
        self.trace = trace

    def act(self, step: int) -> None:
        with self.trace.open("a") as file:
            file.write(f"{time.monotonic()}\n")


def hold_interpreter(seconds: float) -> None:
    """Keep the interpreter's lock for so long, in one call of C code."""
    began = time.perf_counter()
    sum(range(10**6))
    sum(range(int(10**6 * seconds / (time.perf_counter() - began))))


def _raise(model: Faulty) -> None:
    raise ValueError("this model does not like that step")


def _make_nan(model: Faulty) -> None:
    with torch.no_grad():
        model.tail[2].bias.fill_(math.nan)


def _loop(model: Faulty) -> None:
    while True:
        pass


def _hog(model: Faulty) -> None:
    """Take memory until there is none, with a limit that spares the machine."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limit[1]))
    taken = []
    try:
        while True:
            taken.append(torch.zeros(16 << 20, dtype=torch.uint8))
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, limit)


def _allocate(model: Faulty) -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def _assert_on_device(model: Faulty) -> None:
    """Read out of bounds on the GPU: a device-side assert, after which its CUDA context is of no use to anybody."""
    device = model.norm.weight.device
    torch.arange(2, device=device)[torch.tensor([1 << 20], device=device)]
    torch.cuda.synchronize(device)


def _take_device(model: Faulty) -> None:
    """Allocate more than any GPU has."""
    torch.empty(1 << 44, dtype=torch.uint8, device=model.norm.weight.device)


ACTS: dict[str, Callable[[Faulty], None]] = {
    "exception": _raise,
    "nan": _make_nan,
    "exit": lambda model: os._exit(3),
    "segfault": lambda model: ctypes.string_at(0),
    "abort": lambda model: os.abort(),
    "loop": _loop,
    "hog": _hog,
    "allocate": _allocate,
    "hold": lambda model: hold_interpreter(3.0),
    "device-assert": _assert_on_device,
    "device-memory": _take_device,
}


REACHES: dict[str, Callable[[Any], object]] = {
    "read": lambda path: path.read_bytes(),
    "write": lambda path: path.write_bytes(b""),
    "connect": socket.create_connection,
    "program": lambda path: subprocess.run([path], check=True),
    "signal": lambda pid: os.kill(pid, signal.SIGKILL),
}
