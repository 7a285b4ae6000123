"""When a job that fits nowhere will fit, and who may pass it until then: EASY backfilling. Pure, free of torch.

References:
    Lifka, "The ANL/IBM SP scheduling system" (1995): a job may pass the first one that waits if that one's start does not move.
    We reserve memory rather than processors, and slots are shared by turns; so what comes to a slot delays who is there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf

from unified.tenancy import Berth, Load, Resident, Tenant, load_of, obstacle

_UNKNOWN = 1e11  #: seconds of a resident whose length is not known: it ends, after all those that are known


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A slot that is kept for a unit which fits nowhere now.

    Attributes:
        unit: The unit.
        slot: The slot where it would fit first.
        seconds: How long from now until it fits there, by what is known of the residents; infinite if nobody can tell.
        awaited: The resident whose end it waits for; None if those in its way are leaving.
        is_promoted: It has waited over its policy's longest wait: nobody passes it on that slot.
    """

    unit: Tenant
    slot: int
    seconds: float
    awaited: Tenant | None = None
    is_promoted: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """The residents of a slot in the order in which they end; ``loads[k]`` is what is there once the first k are gone."""

    residents: tuple[Resident, ...]
    ends: tuple[float, ...]
    loads: tuple[Load, ...]

    def load_at(self, seconds: float) -> Load:
        return self.loads[bisect_right(self.ends, seconds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is on each slot at any time to come, as one waiting unit has to reckon with.

    Attributes:
        berths: The slots.
        capacity_bytes: Of each pool.
        bans: Pairs of jobs that must not meet.
        rows: Who is on each slot.
    """

    berths: Sequence[Berth]
    capacity_bytes: int
    bans: AbstractSet[frozenset[str]]
    rows: Mapping[int, _Row]

    def reserve(self, unit: Tenant, taken: AbstractSet[int], *, is_promoted: bool = False) -> Reservation | None:
        """Return where and when a unit will fit first; None if it fits on no slot that is left over, not even an empty one."""
        best: Reservation | None = None
        for berth in self.berths:
            if berth.id in taken:
                continue
            found = self._first_fit(unit, berth)
            if found is not None and (best is None or found[0] < best.seconds):
                best = Reservation(unit=unit, slot=berth.id, seconds=found[0], awaited=found[1], is_promoted=is_promoted)
        return best

    def _first_fit(self, unit: Tenant, berth: Berth) -> tuple[float, Tenant | None] | None:
        moments: list[tuple[float, Tenant | None]] = [(0.0, None)]
        for other in self.berths:
            if other.pool == berth.pool:
                row = self.rows[other.id]
                moments += [(end, each.tenant) for end, each in zip(row.ends, row.residents, strict=True) if end > 0]
        moments.sort(key=lambda moment: moment[0])
        low, high = 0, len(moments)  # who fits at one moment fits at all later ones: memory and company only grow less
        while low < high:
            middle = (low + high) // 2
            if self._fits(unit, berth, moments[middle][0]):
                high = middle
            else:
                low = middle + 1
        return moments[low] if low < len(moments) else None

    def _fits(self, unit: Tenant, berth: Berth, seconds: float, changed: Mapping[int, Load] | None = None) -> bool:
        loads = {other.id: self.rows[other.id].load_at(seconds) for other in self.berths if other.pool == berth.pool}
        loads |= changed or {}
        others = sum(load.bytes for slot, load in loads.items() if slot != berth.id)
        return obstacle(unit, berth, loads[berth.id], self.capacity_bytes - others, self.bans) is None

    def may_pass(self, unit: Tenant, seconds_left: float, berth: Berth, held: Reservation) -> bool:
        """Whether a later unit may go to a slot now: the reservation must not move, as far as anybody can tell.

        Args:
            unit: The later unit, which fits there now.
            seconds_left: Slot time that it needs; infinite if unknown.
            berth: The slot.
            held: What is reserved for a unit before it.
        """
        by_id = {each.id: each for each in self.berths}
        home = by_id[held.slot]
        if berth.id == held.slot and held.is_promoted:
            return False
        if berth.pool != home.pool:
            return True
        if held.seconds == inf:
            return False
        row, is_still_there = self.rows[berth.id], seconds_left > held.seconds
        # it has the slot's turns first, so those who are there, and stay, end so much later
        left = max(bisect_right(row.ends, 0.0), bisect_right(row.ends, held.seconds - seconds_left))
        rest = [each.tenant for each in row.residents[left:]]
        load = _joined(row.loads[left], load_of([unit])) if is_still_there else row.loads[left]
        there = replace(home, users=home.users | unit.users) if berth.id == held.slot and rest else home
        return self._fits(held.unit, there, held.seconds, {berth.id: load})


def forecast(
    berths: Sequence[Berth],
    residents: Sequence[Resident],
    *,
    capacity_bytes: int,
    bans: AbstractSet[frozenset[str]],
    submit_time: float,
) -> Forecast:
    """Foresee who is where, for a unit that was handed in at ``submit_time``.

    On each slot who is leaving goes at once; then who has a turn ends first, and of the others the shortest. One whose length
    is not known ends after those; and never, if it came later than the unit that waits: it may have passed that one, and the
    next one like it would, and so on.
    """
    rows = {}
    for berth in berths:
        there = [each for each in residents if each.slot == berth.id]
        lengths = {each.tenant.id: _seconds_of(each, submit_time) for each in there}
        there.sort(key=lambda each: (not each.is_leaving, not each.is_running, lengths[each.tenant.id], each.tenant.id))
        loads = list(accumulate((load_of([each.tenant]) for each in reversed(there)), _joined, initial=Load()))
        ends = tuple(accumulate(lengths[each.tenant.id] for each in there))
        rows[berth.id] = _Row(tuple(there), ends, tuple(reversed(loads)))
    return Forecast(berths=berths, capacity_bytes=capacity_bytes, bans=bans, rows=rows)


def _seconds_of(resident: Resident, submit_time: float) -> float:
    if resident.is_leaving:
        return 0.0
    if resident.seconds_left < inf:
        return resident.seconds_left
    return inf if resident.submit_time > submit_time else _UNKNOWN


def _joined(one: Load, other: Load) -> Load:
    return Load(
        one.resident_bytes + other.resident_bytes,
        max(one.step_bytes, other.step_bytes),
        one.count + other.count,
        one.names | other.names,
        one.users | other.users,
        one.is_one_users or other.is_one_users,
        one.is_private or other.is_private,
    )
