"""Asks the scheduler, and checks its answers: it may be a plug-in. Pure but for what it counts, free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from schedulers import base
from schedulers.checks import wrong_grant, wrong_victims
from schedulers.fcfs import FirstComeFirstServed
from unified.placement import Placement
from unified.slots import Slot
from unified.units import Unit

logger = logging.getLogger(__name__)


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

    def select(self, ready: Sequence[Unit], placement: Placement, slots: Sequence[Slot]) -> list[base.Grant]:
        """Ask who runs next among the units that could begin a turn."""
        units = [unit.view() for unit in ready]
        views = _slot_views(ready, placement, slots)
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

    def victims(self, left: Sequence[Unit], running: Sequence[Unit], placement: Placement, slots: Sequence[Slot]) -> list[str]:
        """Ask whose turns are to end early for the sake of units that found no room; none unless one of these is new.

        To be called after every :meth:`select`, also if nobody is left.
        """
        wanted = frozenset(unit.leader.name for unit in left)
        is_news, self._wanted = not wanted <= self._wanted, wanted
        if not (is_news and running and isinstance(self.scheduler, base.Preempts)):
            return []
        now = self.clock()
        views = [_view_in_turn(unit, slots, now) for unit in running]
        try:
            waiting = [unit.view() for unit in left]
            victims = self.scheduler.victims(now, views, waiting, _slot_views(left, placement, slots))
            wrong = wrong_victims(victims, views, waiting)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            victims, wrong = [], f"{type(error).__name__}: {error}"
        if wrong is None:
            return victims
        self._note_wrong(wrong, "nobody's turn is ended")
        return []

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


def _slot_views(ready: Sequence[Unit], placement: Placement, slots: Sequence[Slot]) -> list[base.SlotView]:
    leaders = [unit.leader for unit in ready if unit.slot is None]
    beside = {unit.leader.name: unit.companions for unit in ready}
    return [
        base.SlotView(
            id=slot.index,
            device=slot.device,
            running=() if slot.running is None else (slot.running,),
            accepts=placement.accepted(slot, leaders, beside),
        )
        for slot in slots
    ]
