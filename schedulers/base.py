"""What a scheduler is shown, what it answers and what it is told: frozen records, and the interface itself.

A scheduler decides; it never acts. It is asked when a slot is idle, over the units that could run now, and
answers with grants. Times are seconds on one clock, the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

#: A value that json.dumps takes. Not spelled out: a recursive alias could not be narrowed on the way back in.
JSON: TypeAlias = Any


class SchedulerConfigError(ValueError):
    """A scheduler was spelled wrongly, or cannot be built as spelled; the message says what is accepted."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Train for ``count`` steps, then ask again."""

    count: int

    def __post_init__(self) -> None:
        _check_positive(self.count, "steps")


@dataclass(frozen=True, slots=True)
class Epochs:
    """Train to the ``count``-th epoch boundary from here, then ask again."""

    count: int

    def __post_init__(self) -> None:
        _check_positive(self.count, "epochs")


@dataclass(frozen=True, slots=True)
class Seconds:
    """Train to the first step boundary ``count`` seconds from now or later, then ask again."""

    count: float

    def __post_init__(self) -> None:
        _check_positive(self.count, "seconds")


@dataclass(frozen=True, slots=True)
class UntilDone:
    """Train to the end of the unit: the slot is its own until then."""


Quantum: TypeAlias = Steps | Epochs | Seconds | UntilDone


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What a scheduler may know of one unit: a job, or a stack of jobs that step together.

    Attributes:
        id: Name of the unit, never used again for another one.
        submit_time: When it was handed in; stays as it was however often it is paused or starts again.
        priority: Lower runs earlier.
        num_parameters: Size of its model, each tied parameter counted once.
        num_epochs: Planned epochs.
        steps_per_epoch: Optimizer steps in one epoch.
        steps_total: Planned steps.
        steps_done: Steps taken so far.
        has_begun: It has been granted a turn before, even if nothing is left of it.
        slot_id: The slot where it is resident, or None while it may still go to any slot that accepts it.
    """

    id: str
    submit_time: float
    priority: int = 0
    num_parameters: int = 0
    num_epochs: int = 1
    steps_per_epoch: int = 1
    steps_total: int = 1
    steps_done: int = 0
    has_begun: bool = False
    slot_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """What a scheduler may know of one slot.

    Attributes:
        id: Number of the slot.
        running: The unit that has its turn there, or None if the slot is idle.
        accepts: The not yet placed units that may go there (thread count and memory fit), or None for all.
    """

    id: int
    running: str | None = None
    accepts: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The decision that a unit has the next turn on a slot, for a quantum."""

    unit_id: str
    slot_id: int
    quantum: Quantum


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a unit.

    Attributes:
        unit_id: The unit.
        sequence: Number of the event; rises from event to event of one unit, even over a restart.
    """

    unit_id: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """The unit now waits for its first turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDone(Event):
    """A turn lasted as long as was granted. One cut short is a ``Paused`` or ``WorkerLost`` instead."""

    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """The unit is not ready until it is resumed; its turn, if it had one, was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """The unit is ready again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """The worker died where the unit was resident; its turn, if it had one, was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """The unit is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The unit failed and is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Event):
    """The unit was cancelled and is gone."""


@runtime_checkable
class Scheduler(Protocol):
    """The one method a scheduler must have, and the fields of ``JobView`` that it decides by."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the fields of ``JobView``, beyond id and submit time, without which it cannot decide."""
        ...

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Decide who runs next: pure, so that asking twice gives the same answer.

        Args:
            now: The time, in seconds.
            ready: The units that could begin a turn, in any order.
            slots: All slots, idle or not.

        Returns:
            At most one grant for each idle slot, each for another unit of ``ready``, on the slot where that
            unit is resident or may be placed. A slot stays idle only if no unit that could run there is left.
        """
        ...


@runtime_checkable
class Observes(Protocol):
    """A scheduler with a memory; it changes here only."""

    def on_event(self, event: Event) -> None:
        """Take note of an event. One that is repeated or late (by its sequence number) is ignored."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A scheduler whose memory survives a restart."""

    def state_dict(self) -> dict[str, JSON]:
        """Return its memory as values that ``json.dumps`` takes, as a copy."""
        ...

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over such a memory. Units that it does not know count as new."""
        ...


def _check_positive(count: float, unit: str) -> None:
    if not 0 < count < float("inf"):
        raise SchedulerConfigError(f"a quantum lasts a positive number of {unit}, got {count!r}")
