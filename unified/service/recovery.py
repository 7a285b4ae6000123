"""Jobs that were left on a slot whose supervisor is gone: freed, with what their last checkpoints hold. Free of torch."""

from __future__ import annotations

import contextlib
import logging

from unified.budgets import Fault, Limits, Situation, decide
from unified.job_state import JobState
from unified.queue.config import ServiceConfig
from unified.queue.errors import QueueError, RootError
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.service.journal import publish_files

logger = logging.getLogger(__name__)


def release(store: JobStore, row: JobRow, reason: str, limits: Limits) -> bool:
    """Free a resident job whose holder is gone; False if somebody else did, or the holder came back."""
    changes: dict[str, int] = {}
    if row.state is JobState.PAUSING:
        to = JobState.PAUSED
    elif row.state is JobState.CANCELLING:
        to = JobState.CANCELLED
    else:
        situation = Situation(
            fault=Fault.HOST,
            signature=reason,
            was_alone=row.is_alone,
            is_alone=row.is_alone,
            num_job_failures=row.num_job_failures,
            num_infra_failures=row.num_infra_failures,
            num_blames=row.num_blames,
            last_fault=row.last_fault,
        )
        verdict = decide(situation, limits, jitter=0.0)
        to, changes = verdict.state, {"num_infra_failures": verdict.num_infra_failures}
        reason = f"{reason}; {verdict.why}"
    try:
        store.move(row.id, to, old=row.state, epoch=row.epoch, holder=row.holder, reason=reason, by="supervisor", **changes)
    except QueueError as error:
        logger.info("%s", error)
        return False
    return True


def release_dead(store: JobStore, limits: Limits, *, mine: str, host: str) -> int:
    """Free what an earlier supervisor of this host held; return how many jobs that were.

    Only for whoever has the root's lock: then no other supervisor of this host can be alive.
    """
    count = 0
    for holder in store.holders():
        if holder != mine and holder.startswith(f"{host}/"):
            for row in store.held_by(holder):
                count += release(store, row, "its supervisor ended", limits)
    return count


def release_expired(store: JobStore, limits: Limits, *, mine: str) -> int:
    """Free the jobs of supervisors that have not renewed their leases; return how many."""
    rows = [row for row in store.expired() if row.holder != mine]
    return sum(release(store, row, "its supervisor stopped renewing its lease", limits) for row in rows)


def finish_publishing(store: JobStore, root: Root) -> None:
    """Move results that were committed but not moved when a supervisor died."""
    for row in store.jobs(states=[JobState.FINISHED]):
        if not root.result(row.id).exists() and root.working_result(row.id, row.epoch).exists():
            with contextlib.suppress(OSError):
                publish_files(root, row.id, row.epoch)


def count_begun(store: JobStore) -> int:
    """Return how many waiting jobs have begun before, and go on from where they were."""
    return sum(row.steps_done > 0 for row in store.jobs(states=[JobState.QUEUED, JobState.RETRY_WAIT]))


def check_threads(store: JobStore, config: ServiceConfig) -> None:
    """Refuse to go on with another number of threads than jobs have begun with: they would round otherwise.

    Raises:
        RootError: If there are such jobs.
    """
    begun = store.jobs(states=[JobState.QUEUED, JobState.RETRY_WAIT, JobState.PAUSED])
    other = [row for row in begun if row.num_threads not in {None, config.threads} and row.steps_done > 0]
    if other:
        row = other[0]
        raise RootError(
            f"{len(other)} unfinished jobs, such as {row.id!r}, began with {row.num_threads} threads and would not end with "
            f"the same weights with {config.threads}; serve with --threads {row.num_threads}, or cancel them"
        )
