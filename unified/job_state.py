"""The states that a job goes through, and the one table of legal moves between them. Free of torch."""

from __future__ import annotations

from enum import StrEnum

from unified.errors import UnifiedError


class IllegalMoveError(UnifiedError):
    """A job was asked to go to a state that its present one does not lead to; nothing was changed."""


class JobState(StrEnum):
    """Where a job stands. It changes only along :data:`LEGAL_MOVES`."""

    QUEUED = "queued"  #: waits for a slot: for the first time, or again after a pause, a move or a lost worker
    LOADING = "loading"  #: a worker is taking it in
    RUNNING = "running"  #: resident on a slot, has its turn or is parked between two
    PAUSING = "pausing"  #: asked to leave its slot; its checkpoint is being written
    PAUSED = "paused"  #: set aside, its state in a checkpoint, its memory free
    CANCELLING = "cancelling"  #: asked to end; still on its slot
    RETRY_WAIT = "retry-wait"  #: failed for a reason of its own; is tried again after a while
    FINISHED = "finished"  #: trained, verified and returned
    FAILED = "failed"  #: ended for a reason of its own
    DEAD = "dead"  #: given up after its retries, or as a danger to others; ``requeue`` brings it back
    CANCELLED = "cancelled"  #: ended on request


_S = JobState

#: From -> to. A requeue (the last three rows) is a move of its own kind: nothing else leaves an end.
LEGAL_MOVES: dict[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.LOADING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.LOADING: frozenset({_S.RUNNING, _S.QUEUED, _S.RETRY_WAIT, _S.PAUSING, _S.CANCELLING, _S.FAILED, _S.DEAD}),
    _S.RUNNING: frozenset({_S.QUEUED, _S.RETRY_WAIT, _S.PAUSING, _S.CANCELLING, _S.FINISHED, _S.FAILED, _S.DEAD}),
    _S.PAUSING: frozenset({_S.PAUSED, _S.RUNNING, _S.CANCELLING, _S.FINISHED, _S.FAILED, _S.DEAD}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.RETRY_WAIT: frozenset({_S.QUEUED, _S.PAUSED, _S.CANCELLED}),
    _S.FINISHED: frozenset(),
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.DEAD: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
}

#: Nothing more happens to a job in one of these, unless it is queued again on request.
ENDED = frozenset({_S.FINISHED, _S.FAILED, _S.DEAD, _S.CANCELLED})

#: In these a job may hold memory of a slot, so it has a lease.
RESIDENT = frozenset({_S.LOADING, _S.RUNNING, _S.PAUSING, _S.CANCELLING})


def check_move(old: JobState, new: JobState, *, job: str = "?") -> None:
    """Raise :class:`IllegalMoveError` unless a job may go from ``old`` to ``new``."""
    if new not in LEGAL_MOVES[old]:
        allowed = ", ".join(sorted(LEGAL_MOVES[old])) or "nothing: it has ended"
        raise IllegalMoveError(f"job {job!r}: cannot go from {old} to {new}; from {old} it may go to {allowed}")
