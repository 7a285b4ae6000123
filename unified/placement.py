"""Who may be resident where: memory, users and pairs that must not meet, slots of one's own. Pure, free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from unified.ledger import JobRecord, Ledger
from unified.packing import Demand, admits, stack_demand
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
        self._shut_out: dict[tuple[str, bool], bool] = {}
        self._turns = {slot.index: frozenset(slot.turn) for slot in slots}
        self._demands = {index: _needed_bytes(self._demands_on(index)) for index in self._residents}

    def accepted(
        self, slot: Slot, ready: Sequence[JobRecord], companions: Mapping[str, Sequence[JobRecord]] | None = None
    ) -> frozenset[str]:
        """Return the names of the unplaced jobs that may go to ``slot``, each with its ``companions`` if it leads a stack."""
        lonely = self.first_lonely(ready)
        if lonely is not None and slot is self.reserved_for(lonely):
            ready = [record for record in ready if record is lonely or self._goes_before(record, lonely)]
        unplaced = [record for record in ready if record.slot is None]
        beside = companions or {}
        return frozenset(record.name for record in unplaced if self.fits(record, slot, beside.get(record.name, ())))

    def fits(self, record: JobRecord, slot: Slot, companions: Sequence[JobRecord] = ()) -> bool:
        """Whether a job, with companions if it is to step as one with them, may join those that are resident on ``slot``."""
        members = [record, *companions]
        names = {member.name for member in members}
        resident = [other for other in self._residents[slot.index] if other.name not in names]
        if not self._may_share(members, slot):
            return False
        if resident and any(other.needs_own_slot for other in (*members, *resident)):
            return False
        if any(frozenset({member.name, other.name}) in self._bans for member in members for other in resident):
            return False
        capacity = self._capacity_bytes
        if slot.device == "cpu":
            capacity -= sum(self._demands.values()) - self._demands[slot.index]
        demand = stack_demand([member.demand for member in members]) if companions else record.demand
        return admits(demand, self._demands_on(slot.index, without=names), capacity)

    def _demands_on(self, index: int, without: AbstractSet[str] = frozenset()) -> list[Demand]:
        """Return what the residents of a slot need; those that have a turn as one need it together."""
        residents = [record for record in self._residents[index] if record.name not in without]
        stack = [record.demand for record in residents if record.name in self._turns[index]]
        others = [record.demand for record in residents if record.name not in self._turns[index]]
        return [stack_demand(stack), *others] if len(stack) > 1 else [*stack, *others]

    def _may_share(self, members: Sequence[JobRecord], slot: Slot) -> bool:
        """Whether jobs may be in one process with each other and whoever was in the slot's; an empty slot gets a new one."""
        return slot.suits(members, is_fresh=not self._residents[slot.index])

    def is_shut_out(self, record: JobRecord) -> bool:
        """Whether a job waits because every slot's process is, or has been, that of users it may not be together with."""
        if record.slot is not None:
            return False
        kind = record.user, record.keeps_to_its_user  # all that counts here, and hundreds of jobs may be asked about
        if kind not in self._shut_out:
            self._shut_out[kind] = not any(self._may_share([record], slot) for slot in self._slots)
        return self._shut_out[kind]

    def first_lonely(self, ready: Sequence[JobRecord]) -> JobRecord | None:
        """Return the first job that waits for a slot which others must leave."""
        lonely = [record for record in ready if record.slot is None and (record.needs_own_slot or self.is_shut_out(record))]
        return min(lonely, key=lambda record: record.submit_time, default=None)

    def reserved_for(self, lonely: JobRecord) -> Slot:
        """Return the slot that is kept free for a job that others must make way for: the emptiest that could ever hold it."""
        return min(self._slots, key=lambda slot: (len(self._residents[slot.index]), slot.index))

    def in_the_way_of(self, lonely: JobRecord) -> list[JobRecord]:
        """Return the residents of the slot kept for ``lonely`` that are to leave now."""
        parked = [record for record in self._residents[self.reserved_for(lonely).index] if record.is_ready]
        return [record for record in parked if not self._goes_before(record, lonely)]

    @staticmethod
    def _goes_before(record: JobRecord, lonely: JobRecord) -> bool:
        """Whether a job may be on the slot that is kept for ``lonely``.

        By those that came before it a job is merely shut out, and waits for their end: otherwise two users would drive each
        other out by turns. Those that come after it wait, so it does not wait for ever.
        """
        return not lonely.needs_own_slot and record.submit_time < lonely.submit_time


def _needed_bytes(demands: Sequence[Demand]) -> int:
    return sum(demand.resident_bytes for demand in demands) + max((demand.step_bytes for demand in demands), default=0)
