"""From an order among units to grants: written once, for every policy that only orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schedulers.base import Grant, JobView, Quantum, SlotView


def by_key(
    ready: Sequence[JobView],
    slots: Sequence[SlotView],
    *,
    key: Callable[[JobView], tuple[float, ...]],
    quantum: Quantum,
) -> list[Grant]:
    """Grant the idle slots to the units with the least ``key``; ties go by submit time, then by id.

    The units are gone through from the least key on. One is passed over only where every slot that it could
    have is taken by a unit before it that cannot move: a unit that may go anywhere makes room for one that is
    bound to a slot. So as many slots as possible are busy.

    >>> from schedulers.base import UntilDone
    >>> ready = [JobView(id="free", submit_time=0), JobView(id="bound", submit_time=1, slot_id=0)]
    >>> slots = [SlotView(id=0), SlotView(id=1)]
    >>> grants = by_key(ready, slots, key=lambda unit: (), quantum=UntilDone())
    >>> [(grant.slot_id, grant.unit_id) for grant in grants]
    [(0, 'bound'), (1, 'free')]
    """
    idle = [slot for slot in slots if slot.running is None]
    taken: dict[int, JobView] = {}
    for unit in sorted(ready, key=lambda unit: (*key(unit), unit.submit_time, unit.id)):
        if len(taken) == len(idle):
            break
        _seat(unit, idle, taken, visited=set())
    busy = [slot.id for slot in idle if slot.id in taken]
    return [Grant(unit_id=taken[slot_id].id, slot_id=slot_id, quantum=quantum) for slot_id in busy]


def can_run(unit: JobView, slot: SlotView) -> bool:
    """Say whether ``unit`` is resident on ``slot``, or may be placed there."""
    if unit.slot_id is not None:
        return unit.slot_id == slot.id
    return slot.accepts is None or unit.id in slot.accepts


def _seat(unit: JobView, idle: list[SlotView], taken: dict[int, JobView], visited: set[int]) -> bool:
    """Find a slot for ``unit``, moving those seated if need be: an augmenting path of bipartite matching."""
    possible = [slot.id for slot in idle if can_run(unit, slot)]
    # the sort is stable: free ones first, in the given order
    for slot_id in sorted(possible, key=lambda slot_id: slot_id in taken):
        if slot_id in visited:
            continue
        visited.add(slot_id)
        if slot_id not in taken or _seat(taken[slot_id], idle, taken, visited):
            taken[slot_id] = unit
            return True
    return False
