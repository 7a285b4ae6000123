"""Which of thousands of waiting jobs the scheduler chooses among: those that come first in its own order. Free of torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schedulers.base import JobView, Orders, Scheduler
from unified.placing import policy_order
from unified.queue.records import WaitingRow
from unified.queue.store import JobStore

LEAST_SECONDS = 2.0  #: between two rankings of more jobs than the window takes
MOST_NEW = 1000  #: jobs that are read at one look: training goes on between two
COST_SHARE = 0.05  #: of the supervisor's time may go into ranking; with more jobs it ranks them less often


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A job that waits: the epoch it waits in, and what the scheduler may know of it."""

    epoch: int
    view: JobView


@dataclass(slots=True, kw_only=True)
class Shortlist:
    """Ranks the waiting jobs by the policy's key, or by submit time and priority if it has none.

    What a job's row says of it does not change while it waits in one epoch, so each is read once. While there are no more than
    the window takes, each look reads them all; then the order does not matter, and is not asked for.

    Attributes:
        store: Where the jobs are.
        scheduler: Whose order counts.
        window: How many jobs the scheduler chooses among.
        started: When the run's clock was 0, in seconds since 1970.
    """

    store: JobStore
    scheduler: Scheduler
    window: int
    started: float
    waiting: Mapping[str, Listed] = field(default_factory=dict)
    _chosen: Mapping[str, Listed] = field(default_factory=dict)
    _rank_again: float = 0.0

    def look(self) -> Mapping[str, Listed]:
        """Return the jobs to choose among; as they were at the last look, if it is too soon for another one."""
        began = time.monotonic()
        if len(self.waiting) > self.window and began < self._rank_again:
            return self._chosen
        epochs = self.store.waiting_epochs()
        known = {job: listed for job, listed in self.waiting.items() if epochs.get(job) == listed.epoch}
        new = [job for job in epochs if job not in known]
        rows = sorted(self.store.waiting_rows(new[:MOST_NEW]), key=lambda row: (row.submit_time, row.id))
        self.waiting = known | {row.id: _listed(row, self.started) for row in rows}
        self._chosen = self._first()
        least = LEAST_SECONDS if len(new) <= MOST_NEW else 0.0
        self._rank_again = began + max(least, (time.monotonic() - began) / COST_SHARE)
        return self._chosen

    def _first(self) -> Mapping[str, Listed]:
        if len(self.waiting) <= self.window:
            return self.waiting
        views = [listed.view for listed in self.waiting.values()]
        now = time.time() - self.started
        if isinstance(self.scheduler, Orders):
            chosen = policy_order(self.scheduler, views, now)[: self.window]
        else:
            chosen = _by_time_and_priority(views, self.window)
        return {view.id: self.waiting[view.id] for view in chosen}


def _by_time_and_priority(views: Sequence[JobView], count: int) -> list[JobView]:
    """Return the most urgent, and the longest waiting: nothing is known of what the policy goes by."""
    urgent = sorted(views, key=lambda view: (view.priority, view.submit_time, view.id))[: count - count // 2]
    chosen = {view.id for view in urgent}
    first = sorted((view for view in views if view.id not in chosen), key=lambda view: (view.submit_time, view.id))
    return [*urgent, *first[: count // 2]]


def _listed(row: WaitingRow, started: float) -> Listed:
    """Return what the scheduler may know of a job before it is in the ledger: what ``JobRecord.view`` would say."""
    found, spec = json.loads(row.admission), json.loads(row.spec)
    estimate, batch_size = found["estimate"], max(1, spec.get("batch_size") or 1)
    full, rest = divmod(found["train"]["num_samples"], batch_size)
    steps_per_epoch = max(1, full + (1 if rest and not spec.get("drop_last") else 0))
    steps_total = row.steps_total or 1
    submit_time = row.submit_time - started
    view = JobView(
        id=row.id,
        submit_time=submit_time,
        user_shares=((row.user, 1.0),),
        priority=row.priority,
        weight=row.weight,
        deadline=None if row.deadline_seconds is None else submit_time + row.deadline_seconds,
        is_deadline_soft=spec.get("deadline_kind") == "soft",
        num_parameters=estimate["num_parameters"],
        num_epochs=-(-steps_total // steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        steps_total=steps_total,
        steps_done=row.steps_done,
        step_seconds=row.step_seconds or found.get("step_seconds") or None,
        attained_seconds=row.training_seconds,
        memory_resident_bytes=estimate["resident_bytes"],
        memory_peak_bytes=estimate["peak_bytes"],
        has_begun=row.started_time is not None,
    )
    return Listed(epoch=row.epoch, view=view)
