"""What a scheduler is shown, what it answers and what it is told: frozen records, and the interface itself.

A scheduler decides; it never acts. It is asked when a slot has room, over the units that could run now, and
answers with grants. Times are seconds on one clock, the engine's or a simulation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

#: A value that json.dumps takes. Not spelled out: a recursive alias could not be narrowed on the way back in.
JSON: TypeAlias = Any

OVERRUN = 0.3  #: what a unit is expected to need still, by what it has had, once that nears or passes its estimate
MOST_OF_A_QUANTUM = 1e15  #: steps, epochs or seconds: no unit has as many, and with more the sums of policies overflow


class SchedulerConfigError(ValueError):
    """A scheduler was spelled wrongly, or cannot be built as spelled; the message says what is accepted."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Train for ``count`` steps, then ask again."""

    count: int

    def __post_init__(self) -> None:
        _check_count(self.count, "steps", int)


@dataclass(frozen=True, slots=True)
class Epochs:
    """Train to the ``count``-th epoch boundary from here, then ask again."""

    count: int

    def __post_init__(self) -> None:
        _check_count(self.count, "epochs", int)


@dataclass(frozen=True, slots=True)
class Seconds:
    """Train to the first step boundary ``count`` seconds from now or later, then ask again."""

    count: float

    def __post_init__(self) -> None:
        _check_count(self.count, "seconds", (int, float))


@dataclass(frozen=True, slots=True)
class UntilDone:
    """Train to the end of the unit: the slot is its own until then."""


Quantum: TypeAlias = Steps | Epochs | Seconds | UntilDone


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What a scheduler may know of one unit: a job, or a stack of jobs that step together.

    It holds nothing that changes by the mere passing of time: for how long a unit waits is ``wait_seconds(now)``.
    Of a stack, priority, submit time and deadline are the least of its members', weight, sizes and attained
    seconds their sum, and steps those of the longest.

    Attributes:
        id: Name of the unit, never used again for another one.
        submit_time: When it was handed in; stays as it was however often it is paused or starts again.
        waiting_since: When it last ended a turn; its ``submit_time`` before the first. While it runs: when the turn began.
        num_members: Number of jobs in it.
        user_shares: Whose it is: names of users, and the part of it that is theirs; the parts sum to 1.
        priority: Lower runs earlier.
        weight: Share that it is to have against others of weight 1; positive.
        deadline: When it should be done, on the same clock; None if that does not matter.
        is_deadline_soft: The deadline is a wish: nothing is refused for its sake.
        num_parameters: Size of its model, each tied parameter counted once.
        num_epochs: Planned epochs.
        steps_per_epoch: Optimizer steps in one epoch.
        steps_total: Planned steps.
        steps_done: Steps taken so far.
        step_seconds: Measured seconds of a step, alone on its slot; None until measured.
        estimate_seconds: A mere estimate of the slot time that it needs from its first step to its last, if there is one.
        attained_seconds: Slot time that it has had, in seconds of a slot of its own.
        num_preemptions: How often a turn of its was ended early for the sake of another unit.
        memory_resident_bytes: What it holds while it is on a slot.
        memory_peak_bytes: The most that a step of its needs, ``memory_resident_bytes`` included.
        utilisation: Part of its slot's device that it keeps busy, in [0, 1]; None if unknown.
        can_corun: It may run beside another unit on one slot.
        has_begun: It has been granted a turn before, even if nothing is left of it.
        slot_id: The slot where it is resident, or None while it may still go to any slot that accepts it.
    """

    id: str
    submit_time: float
    waiting_since: float | None = None
    num_members: int = 1
    user_shares: tuple[tuple[str, float], ...] = (("", 1.0),)
    priority: int = 0
    weight: float = 1.0
    deadline: float | None = None
    is_deadline_soft: bool = False
    num_parameters: int = 0
    num_epochs: int = 1
    steps_per_epoch: int = 1
    steps_total: int = 1
    steps_done: int = 0
    step_seconds: float | None = None
    estimate_seconds: float | None = None
    attained_seconds: float = 0.0
    num_preemptions: int = 0
    memory_resident_bytes: int = 0
    memory_peak_bytes: int = 0
    utilisation: float | None = None
    can_corun: bool = True
    has_begun: bool = False
    slot_id: int | None = None

    def wait_seconds(self, now: float) -> float:
        """Return for how long it has had no turn."""
        since = self.submit_time if self.waiting_since is None else self.waiting_since
        return max(0.0, now - since)

    def age_seconds(self, now: float) -> float:
        """Return how long ago it was handed in."""
        return max(0.0, now - self.submit_time)

    @property
    def whole_seconds(self) -> float | None:
        """Slot time from its first step to its last: by measured steps, else as estimated; None if neither is known."""
        if self.step_seconds is not None:
            return self.steps_total * self.step_seconds
        return self.estimate_seconds

    @property
    def remaining_seconds(self) -> float | None:
        """Slot time that is left; None if nothing is known.

        By measured steps it is exact. A mere estimate of the whole may turn out too low; the longer a unit has gone on, the
        longer it should be expected to go on, so at least ``OVERRUN`` times what it has had is left of it. (With a constant
        floor, a tenth of the estimate, one that overruns would count as short for as long as it lasts; docs/benchmarks.md has
        the difference in numbers.)
        """
        if self.step_seconds is not None:
            return max(0, self.steps_total - self.steps_done) * self.step_seconds
        if self.estimate_seconds is not None:
            return max(self.estimate_seconds - self.attained_seconds, OVERRUN * self.attained_seconds)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """What a scheduler may know of one slot.

    Attributes:
        id: Number of the slot.
        device: ``"cpu"`` or ``"cuda:N"``.
        running: The units that have their turns there; empty if the slot is idle.
        corun_limit: The most units that may run there at the same time.
        accepts: The not yet placed units that may go there (threads, memory, users fit), or None for all.
        prefers: Those of them that are better placed here than on another slot that is just as free.
    """

    id: int
    device: str = "cpu"
    running: tuple[str, ...] = ()
    corun_limit: int = 1
    accepts: frozenset[str] | None = None
    prefers: frozenset[str] = frozenset()

    @property
    def room(self) -> int:
        """How many more units may run there."""
        return max(0, self.corun_limit - len(self.running))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The decision that a unit has the next turn on a slot, for a quantum. Two that name one slot let their units co-run."""

    unit_id: str
    slot_id: int
    quantum: Quantum


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a unit.

    Attributes:
        unit_id: The unit.
        sequence: Number of the event; rises from event to event of one unit, even over a restart.
        user_shares: Whose the unit is, as in :class:`JobView`.
        weight: Its share, as in :class:`JobView`.
    """

    unit_id: str
    sequence: int
    user_shares: tuple[tuple[str, float], ...] = (("", 1.0),)
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    """The unit now waits for its first turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDone(Event):
    """A turn lasted as long as was granted: so many steps, so many seconds of slot time."""

    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCut(Event):
    """A turn was ended early, for the sake of another unit or because of what the next event says; the unit keeps its place."""

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
class Preempts(Protocol):
    """A scheduler that may end a turn before its quantum is used up."""

    def victims(
        self, now: float, running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView]
    ) -> list[str]:
        """Name the units that are to stop at their next step boundary, as somebody more urgent waits; pure as ``select``.

        Asked when a unit has become ready and found no room.

        Args:
            now: The time, in seconds.
            running: The units that have a turn, each with the slot it has it on.
            wanted: The ready units that found no room.
            slots: All slots.

        Returns:
            Ids out of ``running``, each once, and at most one for each unit of ``wanted``.
        """
        ...


@runtime_checkable
class Orders(Protocol):
    """A scheduler that orders units by a key of each: what waits for memory is ranked by it, too."""

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return what the unit is ordered by, least first: a tuple of numbers, as long for every unit. Pure."""
        ...


@runtime_checkable
class Promotes(Protocol):
    """A scheduler that lets nobody wait for longer than it says."""

    def is_promoted(self, unit: JobView, now: float) -> bool:
        """Whether the unit has waited for so long that it comes before all others. Pure."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A scheduler that can say why a unit stands where it stands."""

    def explain(self, unit: JobView, now: float) -> str:
        """Return one line that names what decides about the unit, e.g. ``"312 s are left of it (shortest first)"``."""
        ...


@runtime_checkable
class Admits(Protocol):
    """A scheduler that makes promises, and refuses what it could not keep."""

    def refusal(self, now: float, unit: JobView, accepted: Sequence[JobView], slots: Sequence[SlotView]) -> str | None:
        """Say why ``unit`` cannot be accepted beside the units that were, and what could be; None if it can. Pure."""
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


def _check_count(count: float, unit: str, kind: type | tuple[type, ...]) -> None:
    if not (isinstance(count, kind) and 0 < count <= MOST_OF_A_QUANTUM):
        shown = f"{count!r:.40}"
        raise SchedulerConfigError(f"a quantum lasts a positive number of {unit}, got {shown} (at most {MOST_OF_A_QUANTUM:g})")
