"""What follows when a job fails: a pure decision over its two budgets, its own and the infrastructure's. Free of torch.

A job pays for what it does itself. What others do to it costs it nothing but a place in a count that is capped, so that nothing
goes on for ever. Whoever may have killed a worker runs alone until it is known.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import StrEnum

from unified.job_state import JobState

MAX_DELAY_SECONDS = 900.0  #: the longest wait before a retry, but for its jitter


#: What a disk says that is full, or fails: not the fault of whoever writes to it.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})


def is_of_disk(error: BaseException) -> bool:
    """Whether the disk is to blame for an error."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


class Fault(StrEnum):
    """What went wrong, by whose fault it is."""

    INVALID = "invalid"  #: it can never train: a class is missing, a hash or a shape is wrong
    RUN_TIME = "run-time"  #: it trained for longer than its ``max_run_seconds``
    OWN = "own"  #: an exception in its turn, or a loss that is no number
    OUT_OF_MEMORY = "out-of-memory"  #: an allocation failed in its turn
    CRASH = "crash"  #: the worker died by itself while this job had its turn
    STALL = "stall"  #: the worker finished no step for too long while this job had its turn
    KILLED = "killed"  #: the worker was killed from outside
    NEIGHBOUR = "neighbour"  #: the worker died while another job had its turn
    HOST = "host"  #: the lease ran out, or the supervisor or the host went down
    DISK = "disk"  #: the disk took no result; a queue has the job wait for room instead


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A failure and what the job had on its account before it.

    Attributes:
        fault: What went wrong.
        signature: Kind and step as text, to recognise the same failure again.
        was_alone: No other job was resident on the slot.
        is_alone: It has to run alone already.
        num_job_failures: As in the store, before this failure; so are the next two.
        num_infra_failures: See above.
        num_blames: See above.
        last_fault: Signature of the job's last failure of its own, or None.
        is_shared: It was one of several suspects, that stepped as one: nobody knows which of them it was.
    """

    fault: Fault
    signature: str
    was_alone: bool
    is_alone: bool = False
    num_job_failures: int = 0
    num_infra_failures: int = 0
    num_blames: int = 0
    last_fault: str | None = None
    is_shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job may use up.

    Attributes:
        max_retries: Failures of its own after which it is still tried again.
        max_infra_failures: Failures of workers and hosts, without progress in between, that it may meet.
        max_blames: So many deaths of workers by its fault put it in quarantine.
        retry_seconds: First wait; doubled each time, 15 minutes at most.
        is_batch: In a batch run somebody waits: failures of its own are final, and there is no DEAD.
    """

    max_retries: int
    max_infra_failures: int
    max_blames: int = 2
    retry_seconds: float = 10.0
    is_batch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows: the next state, why in words for the owner, and the account after the failure.

    ``delay_seconds`` is 0 unless the state is RETRY_WAIT. ``is_alone`` says whether the job must have a slot to itself.
    """

    state: JobState
    why: str
    delay_seconds: float = 0.0
    is_alone: bool
    num_job_failures: int
    num_infra_failures: int
    num_blames: int
    last_fault: str | None


def decide(situation: Situation, limits: Limits, *, jitter: float) -> Verdict:
    """Return what follows a failure.

    Args:
        situation: The failure and the account before it.
        limits: What the job may use up.
        jitter: Random, from 0 up to but not including 1: stretches a wait by up to a quarter, so that jobs that failed
            together do not come back together.

    Example:
        >>> failed = Situation(fault=Fault.OWN, signature="ValueError at step 7", was_alone=True)
        >>> verdict = decide(failed, Limits(max_retries=2, max_infra_failures=10), jitter=0.0)
        >>> str(verdict.state), verdict.why, verdict.delay_seconds
        ('retry-wait', 'retry 1 of 2', 10.0)
    """
    match situation.fault:
        case Fault.INVALID:
            return _move(situation, JobState.FAILED, "invalid")
        case Fault.RUN_TIME:
            return _move(situation, JobState.FAILED, "max_run_seconds is over")
        case Fault.OUT_OF_MEMORY:
            return _after_out_of_memory(situation)
        case Fault.OWN | Fault.DISK:
            return _after_own_failure(situation, limits, jitter)
        case Fault.CRASH | Fault.STALL:
            return _after_death(situation, limits, jitter)
        case _:
            return _after_infra_failure(situation, limits)


def _move(situation: Situation, state: JobState, why: str) -> Verdict:
    """Return a verdict that counts nothing."""
    return Verdict(
        state=state,
        why=why,
        is_alone=situation.is_alone,
        num_job_failures=situation.num_job_failures,
        num_infra_failures=situation.num_infra_failures,
        num_blames=situation.num_blames,
        last_fault=situation.last_fault,
    )


def _after_out_of_memory(situation: Situation) -> Verdict:
    if situation.is_shared:
        return _move(situation, JobState.QUEUED, "out of memory in a stack; steps by itself next")
    if situation.was_alone:
        return _move(situation, JobState.FAILED, "out-of-memory")
    return replace(_move(situation, JobState.QUEUED, "out of memory beside others; runs alone next"), is_alone=True)


def _after_own_failure(situation: Situation, limits: Limits, jitter: float) -> Verdict:
    if limits.is_batch:
        return _burnt(situation, JobState.FAILED, "failed")
    if situation.signature == situation.last_fault and limits.max_retries:
        return _burnt(situation, JobState.DEAD, "the same failure twice in a row")
    return _retry_or_end(situation, limits, jitter)


def _after_death(situation: Situation, limits: Limits, jitter: float) -> Verdict:
    if situation.is_shared or (not situation.was_alone and not limits.is_batch):
        return replace(_move(situation, JobState.QUEUED, "its worker died; runs alone next, on probation"), is_alone=True)
    num_blames = situation.num_blames + 1
    if num_blames >= limits.max_blames:
        told = f"its worker died {num_blames} times while it ran"
        verdict = _burnt(situation, _last(limits), told if limits.is_batch else f"quarantined: {told}")
    elif limits.is_batch:
        verdict = _burnt(situation, JobState.QUEUED, "its worker died; runs alone next, once more")
    else:
        verdict = _retry_or_end(situation, limits, jitter)
    return replace(verdict, is_alone=True, num_blames=num_blames)


def _after_infra_failure(situation: Situation, limits: Limits) -> Verdict:
    number = situation.num_infra_failures + 1
    if number > limits.max_infra_failures:
        verdict = _move(situation, _last(limits), f"{number} failures of workers or hosts without any progress in between")
    else:
        verdict = _move(situation, JobState.QUEUED, f"not its fault, {number} of {limits.max_infra_failures}")
    return replace(verdict, num_infra_failures=number)


def _retry_or_end(situation: Situation, limits: Limits, jitter: float) -> Verdict:
    """Burn one retry, and wait for the next or end."""
    number = situation.num_job_failures + 1
    if not limits.max_retries:
        return _burnt(situation, JobState.FAILED, "failed; max_retries is 0")
    if number > limits.max_retries:
        return _burnt(situation, JobState.DEAD, f"failed {number} times, max_retries is {limits.max_retries}")
    verdict = _burnt(situation, JobState.RETRY_WAIT, f"retry {number} of {limits.max_retries}")
    return replace(verdict, delay_seconds=_delay(number, limits.retry_seconds, jitter))


def _burnt(situation: Situation, state: JobState, why: str) -> Verdict:
    """Return a verdict that counts a failure of the job's own."""
    verdict = _move(situation, state, why)
    return replace(verdict, num_job_failures=situation.num_job_failures + 1, last_fault=situation.signature)


def _last(limits: Limits) -> JobState:
    return JobState.FAILED if limits.is_batch else JobState.DEAD


def _delay(number: int, retry_seconds: float, jitter: float) -> float:
    doublings = min(number - 1, 40)  # more would only overflow: the cap is reached long before
    return min(MAX_DELAY_SECONDS, retry_seconds * 2**doublings) * (1 + jitter / 4)
