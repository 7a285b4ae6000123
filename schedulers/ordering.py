"""From an order among units to decisions: written once, for every policy that only orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from schedulers.base import Grant, JobView, Quantum, SlotView

Key: TypeAlias = Callable[[JobView], tuple[float, ...]]
Seats: TypeAlias = dict[int, JobView]


def by_key(
    ready: Sequence[JobView],
    slots: Sequence[SlotView],
    *,
    key: Key,
    quantum: Quantum | Callable[[JobView], Quantum],
) -> list[Grant]:
    """Grant the slots that have room to the units with the least ``key``; ties go by submit time, then by id.

    The units are gone through from the least key on. One is passed over only where every slot that it could
    have is taken by a unit before it that cannot move: a unit that may go anywhere makes room for one that is
    bound to a slot. So as many slots as possible are busy. Where slots co-run units, a slot gets its second
    unit after every other slot has got its first.

    >>> from schedulers.base import UntilDone
    >>> ready = [JobView(id="free", submit_time=0), JobView(id="bound", submit_time=1, slot_id=0)]
    >>> slots = [SlotView(id=0), SlotView(id=1)]
    >>> grants = by_key(ready, slots, key=lambda unit: (), quantum=UntilDone())
    >>> [(grant.slot_id, grant.unit_id) for grant in grants]
    [(0, 'bound'), (1, 'free')]
    """
    roomy = [slot for slot in slots if slot.room]
    order = in_order(_possible(ready, roomy), key)
    grants: list[Grant] = []
    loads = {slot.id: len(slot.running) for slot in roomy}
    while order and roomy:
        least = min(loads[slot.id] for slot in roomy)
        level = [slot for slot in roomy if loads[slot.id] == least]
        taken = _seated(order if least == 0 else [unit for unit in order if unit.can_corun], level)
        for slot in level:
            unit = taken.get(slot.id)
            if unit is not None:
                length = quantum(unit) if callable(quantum) else quantum
                grants.append(Grant(unit_id=unit.id, slot_id=slot.id, quantum=length))
            loads[slot.id] += 1
        seated = {unit.id for unit in taken.values()}
        order = [unit for unit in order if unit.id not in seated]
        # a slot that nobody could have at this level gets nobody at the next, nor does one whose unit shares with none
        shut = {slot.id for slot in level if slot.id not in taken or not taken[slot.id].can_corun}
        roomy = [slot for slot in roomy if loads[slot.id] < slot.corun_limit and slot.id not in shut]
    return sorted(grants, key=lambda grant: grant.slot_id)


def victims_by_key(running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView], *, key: Key) -> list[str]:
    """Name the running units that must stop for ``wanted`` ones with a smaller ``key``.

    Each wanted unit, from the least key on, takes the place of the one with the greatest key among those that run where it
    could run, if that key is greater than its own. Ties are no reason to stop anybody.
    """
    left = {unit.id: (tuple(key(unit)), unit) for unit in running}
    by_id = {slot.id: slot for slot in slots}
    victims: list[str] = []
    for unit in in_order(wanted, key):
        own = tuple(key(unit))
        there = [
            (other_key, other.submit_time, other.id)
            for other_key, other in left.values()
            if other_key > own and other.slot_id in by_id and can_run(unit, by_id[other.slot_id])
        ]
        if there:
            victims.append(max(there)[-1])
            del left[victims[-1]]
    return victims


def in_order(units: Sequence[JobView], key: Key) -> list[JobView]:
    """Return the units from the least key on; ties go by submit time, then by id: the order is total."""
    ranked = [(*key(unit), unit.submit_time, unit.id, index) for index, unit in enumerate(units)]
    ranked.sort()
    return [units[row[-1]] for row in ranked]


def can_run(unit: JobView, slot: SlotView) -> bool:
    """Say whether ``unit`` is resident on ``slot``, or may be placed there."""
    if unit.slot_id is not None:
        return unit.slot_id == slot.id
    return slot.accepts is None or unit.id in slot.accepts


def _possible(ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[JobView]:
    """Leave out the units that could run on none of the slots, before a key is computed for each."""
    ids = {slot.id for slot in slots}
    takes_all = any(slot.accepts is None for slot in slots)
    accepted = frozenset().union(*(slot.accepts for slot in slots if slot.accepts is not None))
    return [unit for unit in ready if (unit.slot_id in ids if unit.slot_id is not None else takes_all or unit.id in accepted)]


def _seated(order: Sequence[JobView], slots: Sequence[SlotView]) -> Seats:
    """Give each slot one unit, as many as can be, those before others in ``order`` first."""
    taken: Seats = {}
    open_to_bound = {slot.id for slot in slots}
    for unit in order:
        if len(taken) == len(slots):
            break
        if unit.slot_id is not None and unit.slot_id not in open_to_bound:
            continue
        if not _seat(unit, slots, taken, visited=set()) and unit.slot_id is not None:
            open_to_bound.discard(unit.slot_id)  # nobody else who is bound to it will find a seat either
    return taken


def _seat(unit: JobView, slots: Sequence[SlotView], taken: Seats, visited: set[int]) -> bool:
    """Find a slot for ``unit``, moving those seated if need be: an augmenting path of bipartite matching."""
    possible = [slot for slot in slots if slot.id not in visited and can_run(unit, slot)]
    # the sort is stable: free ones first, of these the better ones, then in the given order
    for slot in sorted(possible, key=lambda slot: (slot.id in taken, unit.id not in slot.prefers)):
        if slot.id in visited:
            continue
        visited.add(slot.id)
        if slot.id not in taken or _seat(taken[slot.id], slots, taken, visited):
            taken[slot.id] = unit
            return True
    return False
