"""Asks the scheduler, and checks its answers: it may be a plug-in. Pure but for what it counts, free of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schedulers import base
from schedulers.fcfs import FirstComeFirstServed
from unified.packer import Placements
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

    def select(self, ready: Sequence[Unit], placements: Placements, slots: Sequence[Slot]) -> list[base.Grant]:
        """Ask who runs next among the units that could begin a turn."""
        units = [unit.view() for unit in ready]
        views = _slot_views(placements, slots)
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


def _slot_views(placements: Placements, slots: Sequence[Slot]) -> list[base.SlotView]:
    return [
        base.SlotView(
            id=slot.index,
            device=slot.device,
            running=() if slot.running is None else (slot.running,),
            accepts=placements.accepted(slot.index),
            prefers=placements.preferring(slot.index),
        )
        for slot in slots
    ]


def wrong_grant(grants: Sequence[base.Grant], ready: Sequence[base.JobView], slots: Sequence[base.SlotView]) -> str | None:
    """Say what is wrong with a scheduler's answer, or None: it may be a plug-in."""
    units, free = {view.id: view for view in ready}, {view.id: view for view in slots}
    room = {view.id: view.room for view in slots}
    used: set[str] = set()
    for grant in grants:
        unit, slot = units.get(grant.unit_id), free.get(grant.slot_id)
        if unit is None or slot is None or not slot.room:
            return f"granted {grant.unit_id!r} on slot {grant.slot_id}, which are not both free"
        if grant.unit_id in used or room[slot.id] == 0:
            return f"granted {grant.unit_id!r} or slot {grant.slot_id} twice"
        accepted = slot.accepts is None or unit.id in slot.accepts
        if unit.slot_id != slot.id and (unit.slot_id is not None or not accepted):
            return f"granted {grant.unit_id!r} on slot {grant.slot_id}, where it cannot run"
        used.add(grant.unit_id)
        room[slot.id] -= 1
    return None
