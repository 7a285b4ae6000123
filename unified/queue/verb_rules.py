"""What each verb does in each state of a job: at once, through the supervisor, nothing more, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unified.job_state import JobState

_S = JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """How a verb goes in each state; in a state that is in none of the three it is impossible.

    Attributes:
        past: What was done, for reasons and messages.
        moves: Where a job that is on no slot goes at once.
        asked: On a slot: the supervisor must do it.
        already: Nothing is left to do.
    """

    name: str
    past: str
    moves: Mapping[JobState, JobState]
    asked: frozenset[JobState]
    already: frozenset[JobState]


PAUSE = Verb(
    name="pause",
    past="paused",
    moves={_S.QUEUED: _S.PAUSED, _S.RETRY_WAIT: _S.PAUSED},
    asked=frozenset({_S.LOADING, _S.RUNNING, _S.PAUSING}),
    already=frozenset({_S.PAUSED}),
)
RESUME = Verb(
    name="resume",
    past="resumed",
    moves={_S.PAUSED: _S.QUEUED},
    asked=frozenset({_S.PAUSING}),
    already=frozenset({_S.QUEUED, _S.LOADING, _S.RUNNING, _S.RETRY_WAIT}),
)
CANCEL = Verb(
    name="cancel",
    past="cancelled",
    moves={_S.QUEUED: _S.CANCELLED, _S.RETRY_WAIT: _S.CANCELLED, _S.PAUSED: _S.CANCELLED},
    asked=frozenset({_S.LOADING, _S.RUNNING, _S.PAUSING, _S.CANCELLING}),
    already=frozenset({_S.CANCELLED}),
)
CHECKPOINT = Verb(
    name="checkpoint",
    past="checkpointed",
    moves={},
    asked=frozenset({_S.LOADING, _S.RUNNING, _S.PAUSING}),
    already=frozenset(),
)
REQUEUE = Verb(
    name="requeue",
    past="queued again",
    moves={_S.FAILED: _S.QUEUED, _S.DEAD: _S.QUEUED, _S.CANCELLED: _S.QUEUED},
    asked=frozenset(),
    already=frozenset({_S.QUEUED, _S.LOADING, _S.RUNNING, _S.RETRY_WAIT}),
)

#: All of them by name.
VERBS: dict[str, Verb] = {verb.name: verb for verb in (PAUSE, RESUME, CANCEL, CHECKPOINT, REQUEUE)}

#: What a job that is queued again begins anew.
FRESH: dict[str, Any] = {
    "num_job_failures": 0,
    "num_infra_failures": 0,
    "num_blames": 0,
    "is_alone": False,
    "last_fault": None,
    "result_path": None,
}
FROM_SCRATCH: dict[str, Any] = {"steps_done": 0, "loss": None, "metrics": {}}


def way_out(verb: Verb, state: JobState) -> str:
    """Return what to do instead, to be put behind the state."""
    if state is _S.PAUSED and verb is REQUEUE:
        return "; resume it"
    if state in REQUEUE.moves and verb is RESUME:
        return "; requeue it"
    return ""
