"""Why each job that could have a turn has none, in a line: the packer's word, and the scheduler's. Pure, free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from unified.deciding import Decider
from unified.packer import Place, Placements
from unified.placement import Placement
from unified.placing import Placer, policy_order
from unified.quantities import bytes_text, seconds_text
from unified.queue.records import UNDER
from unified.reservations import Reservation
from unified.tenancy import Berth, Tenant

#: What keeps a unit from all slots, the first of these that there is.
_GRAVEST = ("reserved", "memory", "parted", "ban", "alone", "trust")


def why_waiting(placer: Placer, decider: Decider) -> dict[str, str]:
    """Return why jobs that could begin a turn do not, in the policy's order: one line for each.

    It names other jobs to their own user only.
    """
    placement = placer.placement()
    units = placer.units(placement).of(placer.ready())
    placements = placer.plan(units, placement)
    by_name = {unit.leader.name: unit for unit in units}
    texts: dict[str, str] = {}
    num_before = 0
    for view in policy_order(placer.scheduler, [unit.view() for unit in units], decider.clock()):
        unit, place = by_name[view.id], placements.places.get(view.id)
        if place is None:
            text = f"parked on slot {unit.slot}"
        elif place.slots:
            text = f"slots: {num_before} before it" if num_before else "slots: it is next"
        else:
            text = _kept_from_all(place, placements, placement)
        num_before += place is not None
        text += f"{UNDER}{decider.explain(view)}"
        texts |= dict.fromkeys((record.name for record in unit.records), text)
    return texts


def _kept_from_all(place: Place, placements: Placements, placement: Placement) -> str:
    found = set(place.obstacles.values())
    why = next((each for each in _GRAVEST if each in found), "slots")
    unit = place.unit
    own = next((each for each in placements.reservations if each.unit.id == unit.id), None)
    berths = [berth for berth in placement.berths if place.obstacles.get(berth.id) == why]
    match why:
        case "reserved" if place.held_by is not None:
            return _reserved(unit, place.held_by)
        case "memory":
            return _memory(unit, berths, placement) + _until(unit, own, placements)
        case "parted":
            return f"apart: beside what runs on {berths[0].device} both would be slower than one after the other"
        case "ban":
            return "ban: together with a job on each slot it brought down a worker"
        case "alone":
            return f"alone: waits for a slot of its own{_until(unit, own, placements)}"
        case "trust":
            return f"trust: waits for a process of its own user's{_until(unit, own, placements)}"
    return "slots: there is none"


def _reserved(unit: Tenant, held: Reservation) -> str:
    who = _named(unit, held.unit)
    if held.is_promoted:
        return f"reserved for {who} (waited over max_wait)"
    when = "" if held.seconds == inf else f" in about {seconds_text(held.seconds)}"
    return f"reserved for {who}, which is before it and fits{when or ' later'}"


def _memory(unit: Tenant, berths: Sequence[Berth], placement: Placement) -> str:
    def shown(berth: Berth) -> tuple[int, int]:
        load = placement.loads[berth.id]
        return load.bytes_with(unit.demand) - load.resident_bytes, placement.free_bytes(berth.id) - load.resident_bytes

    best = min(berths, key=lambda berth: shown(berth)[0] - shown(berth)[1])
    needed, has = shown(best)
    return f"memory: needs {bytes_text(needed)}, slot {best.id} has {bytes_text(max(0, has))}"


def _until(unit: Tenant, own: Reservation | None, placements: Placements) -> str:
    if own is None:
        before = next((each for each in placements.reservations if each.unit.domain == unit.domain), None)
        return "" if before is None else f"; {_named(unit, before.unit)} waits for it before"
    if own.awaited is None:
        return " soon: others are leaving for it"
    return f" until {_named(unit, own.awaited)} ends"


def _named(viewer: Tenant, other: Tenant) -> str:
    """Return the name of a job, if it is of the user who is told."""
    return other.id if other.users == viewer.users else "another user's job"
