"""The thread that runs batches on the device, one at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from serving.runtime.batching import Batcher, Waiting
from serving.runtime.running import Inputs, Ran, run_batch


@dataclass(slots=True, eq=False, kw_only=True)
class Call(Waiting):
    """A call with what it takes to run it.

    Attributes:
        variant: Id.
        module: Of the variant, on the device for as long as the call is not done.
        inputs: On the CPU, rows first.
        done: Gets what became of it.
        loading: Seconds that it took until its variant was on the device, before it came to wait.
        started: Seconds of the clock when its batch started.
        seconds: That its batch took.
        batch_rows: Samples of its batch.
    """

    variant: str
    module: nn.Module
    inputs: Inputs
    done: asyncio.Future[Ran]
    loading: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    batch_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """A batch that has run, and what became of each call."""

    calls: list[Call]
    ran: list[Ran]


class Executor:
    """Takes the next batch by itself when one is done, so that the device never waits for the event loop.

    Everything but the thread's own loop is called in the event loop's thread; ``deliver`` is too.
    """

    def __init__(
        self, batcher: Batcher[Call], *, device: torch.device, threads: int, deliver: Callable[[Finished], None]
    ) -> None:
        self._batcher = batcher
        self._device = device
        self._threads = threads
        self._deliver = deliver
        self._changed = threading.Condition()  # guards the batcher and the flag
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="serving-executor", daemon=True)

    def start(self) -> None:
        """Start the thread; results are delivered to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, call: Call) -> None:
        """Let a call wait for the device; raises QueueFull if too many rows do."""
        with self._changed:
            self._batcher.add(call)
            self._changed.notify()

    def discard(self, call: Call) -> bool:
        """Drop a call that nobody wants any more; return False if its batch has started, and so will be delivered."""
        with self._changed:
            return self._batcher.discard(call)

    def wait_seconds(self, order: tuple[int, float]) -> float:
        """See :meth:`Batcher.wait_seconds`."""
        with self._changed:
            return self._batcher.wait_seconds(time.monotonic(), order)

    @property
    def waiting_rows(self) -> int:
        """Rows that wait."""
        return self._batcher.waiting_rows

    def stop(self) -> list[Call]:
        """End the thread after the batch that runs now; return the calls that still waited."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
            waited = self._batcher.clear()
        if self._thread.ident is not None:
            self._thread.join()
        return waited

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # holds for the thread that calls it
        while calls := self._next():
            self._run_calls(calls)

    def _next(self) -> list[Call]:
        """Wait for the next batch; return none when it is time to stop."""
        with self._changed:
            while not self._is_stopping:
                calls = self._batcher.take(time.monotonic())
                if calls:
                    return calls
                wait = self._batcher.next_due() - time.monotonic()
                self._changed.wait(None if wait == float("inf") else max(0.0, wait))
        return []

    def _run_calls(self, calls: list[Call]) -> None:
        started = time.monotonic()
        rows = sum(call.rows for call in calls)
        for call in calls:
            call.started, call.batch_rows = started, rows
        try:
            ran = run_batch(calls[0].module, [call.inputs for call in calls], self._device)
        except torch.OutOfMemoryError as error:
            ran = [Ran(error=error)] * len(calls)
        with self._changed:  # before anybody hears of it and asks how long the device is busy
            self._batcher.finished()
        seconds = time.monotonic() - started
        for call in calls:
            call.seconds = seconds
        finished = Finished(calls=calls, ran=ran)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, finished)
