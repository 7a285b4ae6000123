"""A host on a virtual clock, small enough to be seen to be right: drives a scheduler over units, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from schedulers.base import (
    Epochs,
    Event,
    Finished,
    Grant,
    JobView,
    Observes,
    Preempts,
    Resumed,
    Scheduler,
    Seconds,
    SlotView,
    Stateful,
    Steps,
    Submitted,
    TurnCut,
    TurnDone,
)


@dataclass(kw_only=True, eq=False)
class Turn:
    """A turn of ``unit``, as it was when the turn began; ``cut`` is what ended it early, if anything did."""

    unit: JobView
    slot_id: int
    began: float
    steps: int
    step_seconds: float
    cut: type[Event] | None = None

    @property
    def ended(self) -> float:
        return self.began + self.steps * self.step_seconds

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds

    def at(self, now: float) -> JobView:
        """The unit as it is at ``now``, in the middle of the turn."""
        steps = int((now - self.began) / self.step_seconds) if self.step_seconds else 0
        had = self.unit.attained_seconds + steps * self.step_seconds
        return replace(
            self.unit,
            steps_done=self.unit.steps_done + steps,
            attained_seconds=had,
            waiting_since=self.began,
            has_begun=True,
            slot_id=self.slot_id,
        )

    @property
    def unit_after(self) -> JobView:
        return replace(
            self.at(self.began),
            steps_done=self.unit.steps_done + self.steps,
            attained_seconds=self.unit.attained_seconds + self.seconds,
            waiting_since=self.ended,
            step_seconds=self.step_seconds,
        )


@dataclass(kw_only=True)
class SimulatedRun:
    """One run of ``units``, each from its submit time on; a step takes ``step_seconds`` of its unit, or a second.

    A unit without steps, or whose steps take no time, is done at the instant when it is granted a turn.

    Attributes:
        scheduler: Who decides.
        units: Who is to run; without ``step_seconds``, a unit is measured by its first turn.
        num_slots: So many.
        corun_limit: Of each slot. Units that co-run do not slow each other down.
        moves: A unit may go on on any slot.
        cuts: What cuts a turn, by the turn's number.
        deaf_to: Numbers of events that the scheduler is not told of.
        restarts: Numbers of decisions before which the scheduler is replaced by what ``fresh`` makes, with its memory.
        fresh: Makes such a scheduler.
    """

    scheduler: Scheduler
    units: Sequence[JobView]
    num_slots: int = 1
    corun_limit: int = 1
    moves: bool = False
    cuts: Mapping[int, type[Event]] = field(default_factory=dict)
    deaf_to: frozenset[int] = frozenset()
    restarts: frozenset[int] = frozenset()
    fresh: Callable[[], Scheduler] | None = None
    now: float = 0
    sequence: int = 0
    num_decisions: int = 0
    ready: list[JobView] = field(default_factory=list)
    running: list[Turn] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def to_the_end(self) -> list[Turn]:
        """Return every turn, in the order in which they began."""
        arriving = sorted(self.units, key=lambda unit: (unit.submit_time, unit.id))
        while arriving or self.ready or self.running:
            news = False
            while arriving and arriving[0].submit_time <= self.now:
                self.ready.append(arriving.pop(0))
                self.tell(Submitted, self.ready[-1])
                news = True
            self.decide()
            if news:
                self.preempt()
            self.now = min([turn.ended for turn in self.running] + [unit.submit_time for unit in arriving[:1]])
            for turn in [turn for turn in self.running if turn.ended == self.now]:
                self.end(turn)
        return self.turns

    def slots(self) -> list[SlotView]:
        at = {slot_id: [turn for turn in self.running if turn.slot_id == slot_id] for slot_id in range(self.num_slots)}
        return [
            SlotView(
                id=slot_id,
                running=tuple(turn.unit.id for turn in turns),
                corun_limit=self.corun_limit if all(turn.unit.can_corun for turn in turns) else 1,
            )
            for slot_id, turns in at.items()
        ]

    def decide(self) -> None:
        if self.num_decisions in self.restarts and self.fresh is not None:
            self.scheduler = restarted(self.scheduler, self.fresh())
        self.num_decisions += 1
        grants = self.scheduler.select(self.now, tuple(self.ready), self.slots())
        assert grants or self.running or not self.ready, "somebody is ready, all slots are idle, and nobody is granted one"
        for grant in grants:
            self.begin(grant)

    def begin(self, grant: Grant) -> None:
        [unit] = [unit for unit in self.ready if unit.id == grant.unit_id]
        self.ready.remove(unit)
        step_seconds = 1 if unit.step_seconds is None else unit.step_seconds
        turn = Turn(
            unit=unit,
            slot_id=grant.slot_id,
            began=self.now,
            steps=steps_granted(unit, grant, step_seconds),
            step_seconds=step_seconds,
            cut=self.cuts.get(len(self.turns)),
        )
        if turn.cut is not None:
            turn.steps = min(turn.steps, max(1, turn.steps // 2))
        self.turns.append(turn)
        self.running.append(turn)

    def preempt(self) -> None:
        """Ask whom to stop for those who came and found no room, and stop them at their next step boundary."""
        if not self.ready or not isinstance(self.scheduler, Preempts):
            return
        views = [turn.at(self.now) for turn in self.running]
        victims = self.scheduler.victims(self.now, views, tuple(self.ready), self.slots())
        for turn in [turn for turn in self.running if turn.unit.id in victims]:
            steps = max(1, ceil((self.now - turn.began) / turn.step_seconds)) if turn.step_seconds else turn.steps
            if steps < turn.steps:
                turn.steps, turn.cut = steps, TurnCut
        for turn in [turn for turn in self.running if turn.ended == self.now]:
            self.end(turn)
        if any(slot.room for slot in self.slots()):
            self.decide()

    def end(self, turn: Turn) -> None:
        self.running.remove(turn)
        unit = turn.unit_after
        self.tell(TurnDone if turn.cut is None else TurnCut, unit, steps=turn.steps, seconds=float(turn.seconds))
        if unit.steps_done == unit.steps_total:
            self.tell(Finished, unit)
            return
        if turn.cut not in {None, TurnCut}:
            self.tell(turn.cut, unit)
            self.tell(Resumed, unit)
        self.ready.append(replace(unit, slot_id=None) if self.moves else unit)

    def tell(self, kind: type[Event], unit: JobView, **more: float) -> None:
        self.sequence += 1
        if isinstance(self.scheduler, Observes) and self.sequence not in self.deaf_to:
            event = kind(unit_id=unit.id, sequence=self.sequence, user_shares=unit.user_shares, weight=unit.weight, **more)
            self.scheduler.on_event(event)


def restarted(scheduler: Scheduler, fresh: Scheduler) -> Scheduler:
    """Give ``fresh`` the memory of ``scheduler``, by way of JSON."""
    if isinstance(scheduler, Stateful) and isinstance(fresh, Stateful):
        fresh.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    return fresh


def an_event(kind: type[Event], unit_id: str, sequence: int) -> Event:
    if issubclass(kind, TurnDone | TurnCut):
        return kind(unit_id=unit_id, sequence=sequence, steps=1, seconds=1.0)
    return kind(unit_id=unit_id, sequence=sequence)


def steps_granted(unit: JobView, grant: Grant, step_seconds: float) -> int:
    left = unit.steps_total - unit.steps_done
    if isinstance(grant.quantum, Steps):
        return min(left, grant.quantum.count)
    if isinstance(grant.quantum, Epochs):
        return min(left, grant.quantum.count * unit.steps_per_epoch - unit.steps_done % unit.steps_per_epoch)
    if isinstance(grant.quantum, Seconds):
        return min(left, ceil(grant.quantum.count / step_seconds)) if step_seconds else left
    return left


def completions(turns: Sequence[Turn]) -> dict[str, float]:
    """Return when each unit was done."""
    return {turn.unit.id: turn.ended for turn in turns}
