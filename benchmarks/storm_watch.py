"""Looks at a queue from outside, many times a second: how far each residency of a job came, and what it went on from."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from unified.job_state import RESIDENT, JobState
from unified.queue.records import JobRow
from unified.queue.store import JobStore

LOOK_SECONDS = 0.05
_S = JobState

Residency = tuple[str, int]  #: a job and its epoch


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was seen of one residency of a job.

    Attributes:
        steps: When a number of steps was first seen, and that number, in order.
        last_step: The last step that was reported, also by what was said after its end.
        resumed_step: Step of the checkpoint from which the next residency went on; None if it has none.
        resumed_time: When that checkpoint was made, wall clock; None without a checkpoint.
        resumed_epoch: The residency that made it.
    """

    steps: list[tuple[float, int]] = field(default_factory=list)
    last_step: int | None = None
    resumed_step: int | None = None
    resumed_time: float | None = None
    resumed_epoch: int | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """Its pace, where enough was seen of it."""
        if len(self.steps) < 3:  # the first interval holds the start
            return None
        (start, first), (end, last) = self.steps[1], self.steps[-1]
        return (end - start) / (last - first) if last > first else None


class Watch:
    """Watches the queue in ``root`` in a thread of its own, between ``with`` and its end."""

    def __init__(self, root: Path) -> None:
        self.residencies: dict[Residency, Seen] = {}
        self._root = root
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with JobStore.open(self._root / "store.db") as store:
            while not self._is_over.wait(LOOK_SECONDS):
                for row in store.jobs(states=[*RESIDENT, _S.QUEUED, _S.RETRY_WAIT]):
                    if row.epoch:
                        self._look(store, row)

    def _look(self, store: JobStore, row: JobRow) -> None:
        if row.state is _S.RUNNING:
            seen = self._of(row.id, row.epoch)
            if not seen.steps or seen.steps[-1][1] != row.steps_done:
                seen.steps.append((time.time(), row.steps_done))
                seen.last_step = row.steps_done
            before = self.residencies.get((row.id, row.epoch - 1))
        else:
            before = self._of(row.id, row.epoch - (row.state is _S.LOADING))
            before.last_step = row.steps_done
        if before is not None and before.resumed_step is None:
            self._note_resumption(store, row, before)

    def _note_resumption(self, store: JobStore, row: JobRow, before: Seen) -> None:
        """Note what a job goes on from: its checkpoints are those of before until the next interval is over."""
        saved = store.checkpoints(row.id)
        before.resumed_step = saved[0].step if saved else 0
        if saved:
            before.resumed_time, before.resumed_epoch = saved[0].time, saved[0].epoch

    def _of(self, job: str, epoch: int) -> Seen:
        return self.residencies.setdefault((job, epoch), Seen())
