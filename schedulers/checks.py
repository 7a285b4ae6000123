"""What a scheduler may not answer: checked wherever one is asked, as it may be a plug-in."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.base import Epochs, Grant, JobView, Seconds, SlotView, Steps, UntilDone
from schedulers.ordering import can_run


def wrong_grant(grants: Sequence[Grant], ready: Sequence[JobView], slots: Sequence[SlotView]) -> str | None:
    """Say what is wrong with an answer of ``select``, or None."""
    if not isinstance(grants, list | tuple):
        return f"answered {grants!r:.200}, which is no list of grants"
    if not grants:
        return _idle(ready, slots)
    named = {grant.unit_id for grant in grants}
    units, free = {view.id: view for view in ready if view.id in named}, {view.id: view for view in slots}
    room = {view.id: view.room for view in slots}
    used: set[str] = set()
    for grant in grants:
        if not isinstance(grant.quantum, Steps | Epochs | Seconds | UntilDone):
            return f"granted {grant.unit_id!r} {grant.quantum!r:.200}, which is no quantum"
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


def wrong_victims(victims: Sequence[str], running: Sequence[JobView], wanted: Sequence[JobView]) -> str | None:
    """Say what is wrong with an answer of ``victims``, or None."""
    if not isinstance(victims, list | tuple):
        return f"named as victims {victims!r:.200}, which is no list"
    strangers = [victim for victim in victims if all(victim != view.id for view in running)]
    if strangers:
        return f"named {strangers[0]!r} as a victim, which is not running"
    if len(set(victims)) < len(victims):
        return "named a victim twice"
    if len(victims) > len(wanted):
        return f"named {len(victims)} victims for {len(wanted)} waiting units"
    return None


def _idle(ready: Sequence[JobView], slots: Sequence[SlotView]) -> str | None:
    """Say that nobody would run at all, though somebody could: a run that stands still never ends."""
    if any(slot.running for slot in slots) or not any(can_run(unit, slot) for slot in slots for unit in ready):
        return None
    return "granted nothing although every slot is idle and units are ready"
