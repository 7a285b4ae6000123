"""Who may be resident where: memory, jobs that need a slot of their own, pairs that must not meet. Pure, free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from schedulers import base
from unified.ledger import JobRecord, Ledger
from unified.packing import admits
from unified.slots import Slot


class Placement:
    """The slots of the moment and who is resident on them.

    Args:
        ledger: The jobs.
        slots: The slots.
        capacity_bytes: What jobs may take: together on a CPU host, on each slot with GPUs.
        bans: Pairs of jobs that must not be resident beside each other.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        slots: Sequence[Slot],
        capacity_bytes: int,
        bans: AbstractSet[frozenset[str]],
    ) -> None:
        self._slots = slots
        self._bans = bans
        self._capacity_bytes = capacity_bytes
        self._residents: dict[int, list[JobRecord]] = {slot.index: [] for slot in slots}
        for record in ledger.all():  # once: there may be hundreds of jobs, and each is tried on each slot
            if record.slot is not None:
                self._residents[record.slot].append(record)
        self._demands = {index: _total_demand(records) for index, records in self._residents.items()}

    def accepted(self, slot: Slot, ready: Sequence[JobRecord]) -> frozenset[str]:
        """Return the names of the unplaced jobs that may go to ``slot``."""
        lonely = self.first_lonely(ready)
        if lonely is not None and slot is self.reserved_for(lonely):
            ready = [lonely]
        unplaced = [record for record in ready if record.slot is None]
        return frozenset(record.name for record in unplaced if self.fits(record, slot))

    def fits(self, record: JobRecord, slot: Slot) -> bool:
        """Whether a job may join those that are resident on ``slot``."""
        resident = [other for other in self._residents[slot.index] if other is not record]
        if resident and (record.needs_own_slot or any(other.needs_own_slot for other in resident)):
            return False
        if any(frozenset({record.name, other.name}) in self._bans for other in resident):
            return False
        capacity = self._capacity_bytes
        if slot.device == "cpu":
            capacity -= sum(self._demands.values()) - self._demands[slot.index]
        return admits(record.demand, [other.demand for other in resident], capacity)

    def first_lonely(self, ready: Sequence[JobRecord]) -> JobRecord | None:
        """Return the first job that waits for a slot of its own."""
        lonely = [record for record in ready if record.slot is None and record.needs_own_slot]
        return min(lonely, key=lambda record: record.submit_time, default=None)

    def reserved_for(self, lonely: JobRecord) -> Slot:
        """Return the slot that is kept free for a job that needs its own: the emptiest that could ever hold it."""
        return min(self._slots, key=lambda slot: (len(self._residents[slot.index]), slot.index))

    def parked_on(self, slot: Slot) -> list[JobRecord]:
        """Return the resident jobs of ``slot`` that could leave at once."""
        return [record for record in self._residents[slot.index] if record.is_ready]


def _total_demand(records: Sequence[JobRecord]) -> int:
    demands = [record.demand for record in records]
    extra = max((demand.peak_bytes - demand.resident_bytes for demand in demands), default=0)
    return sum(demand.resident_bytes for demand in demands) + extra


def wrong_grant(grants: Sequence[base.Grant], ready: Sequence[base.JobView], slots: Sequence[base.SlotView]) -> str | None:
    """Say what is wrong with a scheduler's answer, or None: it may be a plug-in."""
    units, idle = {view.id: view for view in ready}, {view.id: view for view in slots if view.running is None}
    used: set[str | int] = set()
    for grant in grants:
        unit, slot = units.get(grant.unit_id), idle.get(grant.slot_id)
        if unit is None or slot is None:
            return f"granted {grant.unit_id!r} on slot {grant.slot_id}, which are not both free"
        if grant.unit_id in used or grant.slot_id in used:
            return f"granted {grant.unit_id!r} or slot {grant.slot_id} twice"
        accepted = slot.accepts is None or unit.id in slot.accepts
        if unit.slot_id != slot.id and (unit.slot_id is not None or not accepted):
            return f"granted {grant.unit_id!r} on slot {grant.slot_id}, where it cannot run"
        used |= {grant.unit_id, grant.slot_id}
    return None
