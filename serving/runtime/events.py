"""What happens in the service, told to whoever counts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serving.queries import Reason


class Outcome(StrEnum):
    """How a request ended. Each ends once; mishits and late answers are never one number."""

    OK = "ok"  #: answered, within its limit if it had one
    LATE = "late"  #: promised in time, answered later than its limit
    MISHIT_REJECTED = "mishit_rejected"  #: nothing satisfied it
    MISHIT_BEST_EFFORT = "mishit_best_effort"  #: nothing satisfied it, and it took the nearest
    FAILED = "failed"  #: accepted and not answered
    REFUSED = "refused"  #: not accepted: too much waited, or the service was not serving
    CANCELLED = "cancelled"  #: the client went away


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded:
    """One request of a known family and known tasks has ended.

    Attributes:
        family: Its family.
        tasks: In the family's order.
        outcome: How.
        seconds: From received to ended.
        queue_seconds: Of that, waiting for the device; None without an answer.
        variants: Ids of those that answered, empty without an answer.
        reason: Set on a mishit.
        prediction_ratio: Measured over predicted latency; None without an answer.
    """

    family: str
    tasks: tuple[str, ...]
    outcome: Outcome
    seconds: float
    queue_seconds: float | None = None
    variants: tuple[str, ...] = ()
    reason: Reason | None = None
    prediction_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """One batch has run on the device."""

    variant: str
    rows: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A variant is on the device now; ``warm`` if it came from host memory."""

    variant: str
    seconds: float
    warm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """A variant has left the device to make room."""

    variant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A variant is out of service until the store's content changes; ``problem`` says why."""

    variant: str
    problem: str


Event = RequestEnded | BatchRun | Loaded | Evicted | Quarantined

#: Called in the event loop's thread, for each event, in order; must be quick and must not raise.
Listener = Callable[[Event], None]
