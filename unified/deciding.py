"""Asks the scheduler, and checks its answers: it may be a plug-in. Pure but for what it counts, free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from schedulers import base
from schedulers.checks import wrong_grant, wrong_victims
from schedulers.fcfs import FirstComeFirstServed
from schedulers.needs import check_needs
from unified.packer import Placements
from unified.slots import Slot
from unified.units import Unit

#: What is known of every unit; of utilisation nothing is.
SUPPLIED = frozenset(item.name for item in fields(base.JobView)) - {"utilisation"}

logger = logging.getLogger(__name__)


def check_supplied(scheduler: base.Scheduler, name: str) -> None:
    """Check that a scheduler decides by what the engine knows of units.

    Raises:
        SchedulerConfigError: If it does not, or does not say what it decides by, or is a class and no scheduler yet.
    """
    if isinstance(scheduler, type):
        wanted = f"{scheduler.__name__}()"
        raise base.SchedulerConfigError(f"scheduler: expected a spelling or a scheduler, got a class; write {wanted}")
    needs = getattr(scheduler, "needs", None)  # a plug-in may lack it
    if not isinstance(needs, frozenset):
        raise base.SchedulerConfigError(
            f"scheduler {name!r}: expected needs, a frozenset of fields of JobView, got {needs!r}; add it"
        )
    check_needs(name, needs, SUPPLIED, "a job here")


@dataclass(slots=True, kw_only=True)
class Decider:
    """Turns the engine's records into what a scheduler may see, and its answers into what may be carried out.

    Attributes:
        scheduler: Who decides.
        name: What it is called.
        clock: Seconds since the run began.
        num_wrong: How many of its answers could not be carried out: those turns were granted by first come, first served, and
            nobody's turn was ended for them.
    """

    scheduler: base.Scheduler
    name: str
    clock: Callable[[], float]
    num_wrong: int = 0
    _last_wrong: str = ""
    _wanted: frozenset[str] = frozenset()

    def select(self, ready: Sequence[Unit], placements: Placements, slots: Sequence[Slot]) -> list[base.Grant]:
        """Ask who runs next among the units that could begin a turn."""
        units = tuple(unit.view() for unit in ready)  # no lists: a plug-in could change them
        views = _slot_views(placements, slots)
        now = self.clock()
        try:
            grants = self.scheduler.select(now, units, views)
            wrong = wrong_grant(grants, units, views)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            grants, wrong = [], f"{type(error).__name__}: {error}"
        if wrong is None:
            return grants
        self._note_wrong(wrong, "this decision is taken by fcfs")
        return FirstComeFirstServed().select(now, units, views)

    def victims(
        self, left: Sequence[Unit], running: Callable[[], Sequence[Unit]], placements: Placements, slots: Sequence[Slot]
    ) -> list[str]:
        """Ask whose turns are to end early for the sake of units that found no room; none unless one of these is new.

        To be called after every :meth:`select`, also if nobody is left. The units that have turns are asked for only then.
        """
        wanted = frozenset(unit.leader.name for unit in left)
        is_news, self._wanted = not wanted <= self._wanted, wanted
        if not (is_news and isinstance(self.scheduler, base.Preempts)):
            return []
        now = self.clock()
        views = [_view_in_turn(unit, slots, now) for unit in running()]
        if not views:
            return []
        try:
            waiting = [unit.view() for unit in left]
            victims = self.scheduler.victims(now, views, waiting, _slot_views(placements, slots))
            wrong = wrong_victims(victims, views, waiting)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            victims, wrong = [], f"{type(error).__name__}: {error}"
        if wrong is None:
            return victims
        self._note_wrong(wrong, "nobody's turn is ended")
        return []

    def refusal(self, unit: base.JobView, accepted: Sequence[base.JobView], slots: Sequence[base.SlotView]) -> str | None:
        """Ask why a unit cannot be accepted beside those that were; None if it can, or nobody minds."""
        if not isinstance(self.scheduler, base.Admits):
            return None
        try:
            refusal = self.scheduler.refusal(self.clock(), unit, accepted, slots)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            self._note_wrong(f"{type(error).__name__}: {error}", f"{unit.id} is accepted")
            return None
        if refusal is not None and not isinstance(refusal, str):
            self._note_wrong(f"gave {refusal!r} as the reason to refuse a unit", f"{unit.id} is accepted")
            return None
        return refusal

    def explain(self, unit: base.JobView) -> str:
        """Return a line that says why a unit stands where it stands in the scheduler's order."""
        if not isinstance(self.scheduler, base.Explains):
            return self.name
        try:
            text = self.scheduler.explain(unit, self.clock())
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            self._note_wrong(f"{type(error).__name__}: {error}", "nothing is explained")
            return self.name
        return f"{self.name}: {' '.join(str(text).split())}"

    def reasons(self, units: Sequence[Unit]) -> dict[str, str]:
        """Return for each job of these units why its unit stands where it stands."""
        return {record.name: why for unit in units for why in [self.explain(unit.view())] for record in unit.records}

    def _note_wrong(self, wrong: str, instead: str) -> None:
        self.num_wrong += 1
        if wrong != self._last_wrong:
            self._last_wrong = wrong
            logger.warning("scheduler %s: %s; %s", self.name, wrong, instead)


def _view_in_turn(unit: Unit, slots: Sequence[Slot], now: float) -> base.JobView:
    """Return the view of a unit that has a turn, with what it had of the slot in this turn."""
    view = unit.view()
    assert view.slot_id is not None, "who has a turn is on a slot"
    part = view.num_members / slots[view.slot_id].num_in_turn
    return replace(view, attained_seconds=view.attained_seconds + part * view.wait_seconds(now))


def _slot_views(placements: Placements, slots: Sequence[Slot]) -> tuple[base.SlotView, ...]:
    return tuple(
        base.SlotView(
            id=slot.index,
            device=slot.device,
            running=() if slot.running is None else (slot.running,),
            accepts=placements.accepted(slot.index),
            prefers=placements.preferring(slot.index),
        )
        for slot in slots
    )
