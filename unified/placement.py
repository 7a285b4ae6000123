"""The slots of the moment and who is on them, as the packer sees them: frozen records out of the ledger. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import inf

from unified.ledger import JobRecord, Ledger
from unified.packing import stack_demand
from unified.slots import Slot
from unified.tenancy import Berth, Load, Resident, Tenant, load_of, loads_of, obstacle

STAY_SECONDS = 2.0  #: so long a job stays at least, once it came to a slot: it costs a checkpoint to send it away


class Placement:
    """A snapshot of slots and residents.

    Args:
        ledger: The jobs.
        slots: The slots.
        capacity_bytes: What jobs may take: together on a CPU host, on each slot with GPUs.
        bans: Pairs of jobs that must not be resident beside each other.
        now: The time on the ledger's clock.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        slots: Sequence[Slot],
        capacity_bytes: int,
        bans: AbstractSet[frozenset[str]],
        now: float = inf,
    ) -> None:
        self.capacity_bytes, self.bans = capacity_bytes, frozenset(bans)
        self.berths = tuple(berth_of(slot) for slot in slots)
        there: dict[int, list[JobRecord]] = {slot.index: [] for slot in slots}
        for record in ledger.all():
            if record.slot is not None:
                there[record.slot].append(record)
        self.residents = tuple(each for slot in slots for each in _residents(there[slot.index], slot, now))
        self.loads: Mapping[int, Load] = loads_of(self.berths, self.residents)
        total: dict[int, int] = {}
        for berth in self.berths:
            total[berth.pool] = total.get(berth.pool, 0) + self.loads[berth.id].bytes
        self._free = {berth.id: capacity_bytes - total[berth.pool] + self.loads[berth.id].bytes for berth in self.berths}

    def free_bytes(self, slot: int) -> int:
        """Return what the jobs on a slot may take in all."""
        return self._free[slot]

    def fits(self, record: JobRecord, slot: Slot, companions: Sequence[JobRecord] = ()) -> bool:
        """Whether a job, with companions if it is to step as one with them, may join those that are resident on ``slot``."""
        berth = self.berths[slot.index]
        unit = tenant_of([record, *companions])
        load = self.loads[slot.index]
        if not load.names.isdisjoint(unit.members):
            load = load_of(each.tenant for each in self._without(unit.members) if each.slot == slot.index)
        return obstacle(unit, berth, load, self._free[slot.index], self.bans) is None

    def _without(self, members: Sequence[str]) -> list[Resident]:
        """Return the residents without some jobs; what is left of a stack that has a turn needs what the stack did."""
        return [each for each in self.residents if not set(each.tenant.members) <= set(members)]


def tenant_of(records: Sequence[JobRecord]) -> Tenant:
    """Return a unit as the packer sees it: a job, or a stack, which needs the memory of all its steps at once."""
    if len(records) == 1:
        return records[0].tenant
    tenants = [record.tenant for record in records]
    return replace(
        tenants[0],
        demand=stack_demand([tenant.demand for tenant in tenants]),
        members=tuple(tenant.id for tenant in tenants),
        users=frozenset().union(*(tenant.users for tenant in tenants)),
        keeps_to_its_user=any(tenant.keeps_to_its_user for tenant in tenants),
        needs_own_slot=any(tenant.needs_own_slot for tenant in tenants),
        kind=f"{tenants[0].kind} x{len(tenants)}",
    )


def berth_of(slot: Slot) -> Berth:
    """Return a slot as the packer sees it: those of a CPU host share its memory."""
    pool = 0 if slot.device == "cpu" else slot.index
    return Berth(
        id=slot.index,
        device=slot.device,
        pool=pool,
        is_busy=slot.running is not None,
        users=slot.users,
        is_one_users=slot.is_one_users,
    )


def _residents(records: Sequence[JobRecord], slot: Slot, now: float) -> list[Resident]:
    """Return who is on a slot; jobs that have a turn as one are one unit."""
    running = [record for record in records if record.name in slot.turn]
    parked = [record for record in records if record.name not in slot.turn]
    return [_resident(unit, slot, now) for unit in ([running] if running else []) + [[record] for record in parked]]


def _resident(records: Sequence[JobRecord], slot: Slot, now: float) -> Resident:
    first = records[0]
    lengths = [record.view().remaining_seconds for record in records]
    return Resident(
        tenant=tenant_of(records),
        slot=slot.index,
        is_running=first.name in slot.turn,
        is_leaving=all(record.leaving is not None or record.is_returning for record in records),
        may_leave=first.is_ready and not first.checkpoint_failed and now - first.resident_since >= STAY_SECONDS,
        seconds_left=max((inf if seconds is None else seconds for seconds in lengths), default=inf),
        submit_time=min(record.submit_time for record in records),
    )
