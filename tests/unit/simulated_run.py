"""A host on a virtual clock: drives a scheduler over jobs of one second a step, in whole seconds, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from schedulers.base import (
    Epochs,
    Event,
    Finished,
    Grant,
    JobView,
    Observes,
    Resumed,
    Scheduler,
    SlotView,
    Steps,
    Submitted,
    TurnCut,
    TurnDone,
    WorkerLost,
)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of ``unit``, as it was when the turn began; ``cut`` is what ended it early, if anything did."""

    unit: JobView
    slot_id: int
    began: int
    ended: int
    cut: type[Event] | None

    @property
    def unit_after(self) -> JobView:
        lost = self.cut is WorkerLost
        steps = self.unit.steps_done + (0 if lost else self.ended - self.began)
        return replace(self.unit, steps_done=steps, has_begun=True, slot_id=self.slot_id)


@dataclass(kw_only=True)
class SimulatedRun:
    """One run of ``units``, each from its submit time on; ``cuts`` maps a turn's number to what cuts it."""

    scheduler: Scheduler
    units: Sequence[JobView]
    num_slots: int = 1
    cuts: Mapping[int, type[Event]] = field(default_factory=dict)
    now: int = 0
    sequence: int = 0
    ready: list[JobView] = field(default_factory=list)
    running: dict[int, Turn] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    def to_the_end(self) -> list[Turn]:
        """Return every turn, in the order in which they began."""
        arriving = sorted(self.units, key=lambda unit: (unit.submit_time, unit.id))
        while arriving or self.ready or self.running:
            while arriving and arriving[0].submit_time <= self.now:
                self.ready.append(arriving.pop(0))
                self.tell(Submitted, self.ready[-1].id)
            self.decide()
            self.now = min([turn.ended for turn in self.running.values()] + [u.submit_time for u in arriving[:1]])
            for turn in [turn for turn in self.running.values() if turn.ended == self.now]:
                self.end(turn)
        return self.turns

    def decide(self) -> None:
        busy = {slot_id: turn.unit.id for slot_id, turn in self.running.items()}
        slots = [SlotView(id=slot_id, running=(busy[slot_id],) if slot_id in busy else ()) for slot_id in range(self.num_slots)]
        for grant in self.scheduler.select(self.now, tuple(self.ready), slots):
            self.begin(grant)

    def begin(self, grant: Grant) -> None:
        [unit] = [unit for unit in self.ready if unit.id == grant.unit_id]
        self.ready.remove(unit)
        cut = self.cuts.get(len(self.turns))
        steps = steps_granted(unit, grant)
        ended = self.now + (steps if cut is None else max(1, steps // 2))
        turn = Turn(unit=unit, slot_id=grant.slot_id, began=self.now, ended=ended, cut=cut)
        self.turns.append(turn)
        self.running[grant.slot_id] = turn

    def end(self, turn: Turn) -> None:
        del self.running[turn.slot_id]
        unit = turn.unit_after
        self.tell(turn.cut or TurnDone, unit.id)
        if unit.steps_done == unit.steps_total:
            self.tell(Finished, unit.id)
            return
        if turn.cut is not None:
            self.tell(Resumed, unit.id)
        self.ready.append(unit)

    def tell(self, kind: type[Event], unit_id: str) -> None:
        self.sequence += 1
        if isinstance(self.scheduler, Observes):
            self.scheduler.on_event(an_event(kind, unit_id, self.sequence))


def an_event(kind: type[Event], unit_id: str, sequence: int) -> Event:
    extra = {"steps": 1, "seconds": 1.0} if kind in {TurnDone, TurnCut} else {}
    return kind(unit_id=unit_id, sequence=sequence, **extra)


def steps_granted(unit: JobView, grant: Grant) -> int:
    left = unit.steps_total - unit.steps_done
    if isinstance(grant.quantum, Steps):
        return min(left, grant.quantum.count)
    if isinstance(grant.quantum, Epochs):
        return min(left, grant.quantum.count * unit.steps_per_epoch - unit.steps_done % unit.steps_per_epoch)
    return left
