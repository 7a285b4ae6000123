"""Asks the scheduler, and checks its answers: it may be a plug-in. Pure but for what it counts, free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedulers import base
from schedulers.checks import wrong_grant
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
        num_wrong: How many of its answers could not be carried out; those decisions were taken by first come, first served.
    """

    scheduler: base.Scheduler
    name: str
    clock: Callable[[], float]
    num_wrong: int = 0
    _last_wrong: str = ""

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
        self.num_wrong += 1
        if wrong != self._last_wrong:
            self._last_wrong = wrong
            logger.warning("scheduler %s: %s; this decision is taken by fcfs", self.name, wrong)
        return FirstComeFirstServed().select(now, units, views)


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
