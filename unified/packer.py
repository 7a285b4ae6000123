"""Which waiting units may go to which slot now, where they are better placed, and who leaves for them. Pure, free of torch.

In the steps of the Kubernetes scheduling framework: **filter** (memory, users, pairs that must not meet, slots of one's own),
**reserve** (a slot for the first that fits nowhere; others pass it only if that does not hold it up) and **score**. Whom a
slot's next turn goes to, among those that may have it, is the scheduler's decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from math import inf

from unified.reservations import Forecast, Reservation, forecast
from unified.tenancy import Berth, Load, Resident, Tenant, free_bytes, loads_of, obstacle


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the packer must keep to.

    Attributes:
        capacity_bytes: What units may take in each pool of slots.
        bans: Pairs of jobs that must not be resident on one slot.
        parted: Pairs of kinds that disturb each other so much that they do not run at the same time on one device.
        gains: Pair of kinds to how many times as fast the two are together as one after the other, where that was measured.
    """

    capacity_bytes: int
    bans: AbstractSet[frozenset[str]] = frozenset()
    parted: AbstractSet[frozenset[str]] = frozenset()
    gains: Mapping[frozenset[str], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the scheduler thinks of the units: only looked at if some unit fits nowhere, as it takes time to find out.

    Attributes:
        ranks: Place of each unit in the policy's order, queued and parked ones alike; those that are missing come last.
        seconds_left: Slot time that a unit needs to its end; missing if nobody knows.
        submit_times: When it was handed in.
        promoted: Those that have waited over the policy's longest wait.
        spares: Whom a unit must not send away: those that it was itself sent away for.
    """

    ranks: Mapping[str, int]
    seconds_left: Mapping[str, float] = field(default_factory=dict)
    submit_times: Mapping[str, float] = field(default_factory=dict)
    promoted: AbstractSet[str] = frozenset()
    spares: Mapping[str, AbstractSet[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A parked unit that is to leave its slot, for another one."""

    unit: str
    wanted_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a waiting unit stands.

    Attributes:
        unit: The unit.
        slots: Where it may go now.
        prefers: Those of them where it is better placed.
        obstacles: What keeps it from each other slot, in a word: ``"parted"``, ``"reserved"``, or one of :func:`obstacle`.
        held_by: What is reserved for the unit that it may not pass, if that is all that keeps it from a slot.
    """

    unit: Tenant
    slots: tuple[int, ...]
    prefers: tuple[int, ...] = ()
    obstacles: Mapping[int, str] = field(default_factory=dict)
    held_by: Reservation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placements:
    """The packer's decision.

    Attributes:
        places: By id of the waiting unit.
        evictions: Who is to leave now, and for whom.
        reservations: Slots that are kept for units which fit nowhere now.
    """

    places: Mapping[str, Place]
    evictions: tuple[Eviction, ...] = ()
    reservations: tuple[Reservation, ...] = ()

    def accepted(self, slot: int) -> frozenset[str]:
        """Return the units that may go to a slot now."""
        return frozenset(name for name, place in self.places.items() if slot in place.slots)

    def preferring(self, slot: int) -> frozenset[str]:
        """Return those of them that are better placed there than elsewhere."""
        return frozenset(name for name, place in self.places.items() if slot in place.prefers)


def plan(
    queued: Sequence[Tenant],
    residents: Sequence[Resident],
    berths: Sequence[Berth],
    rules: Rules,
    outlook: Callable[[], Outlook],
) -> Placements:
    """Say for each waiting unit where it may go now, and for those that fit nowhere who leaves, and what is kept, for them.

    A fixed point: once those who are told to leave are leaving, planning again sends away nobody else.

    Args:
        queued: The waiting units.
        residents: Who is on the slots, those that are leaving included.
        berths: The slots.
        rules: What it must keep to.
        outlook: What the scheduler thinks of the units; called at most once.
    """
    loads = loads_of(berths, residents)
    places = _filtered(queued, berths, loads, rules)
    if rules.parted:
        places = _apart(places, residents, berths, rules)
    evictions: list[Eviction] = []
    reservations: list[Reservation] = []
    blocked = [place.unit for place in places if not place.slots and "parted" not in place.obstacles.values()]
    if blocked:
        view = outlook()
        fitting = [_rank(place.unit.id, view) for place in places if place.slots]
        idle = {berth.id for berth in berths if not berth.is_busy}
        for head in _heads(blocked, view):
            taken = {each.slot for each in reservations}
            num_before = sum(rank < _rank(head.id, view) for rank in fitting)
            # nobody leaves for one that would have no slot to run on: those before it take them
            wanted = idle - taken if num_before < len(idle - taken) else frozenset()
            kept, leaving = _hold(head, residents, berths, rules, view, taken=taken, wanted=wanted)
            if leaving and not _would_come(head, leaving, residents, berths, rules, view, reservations):
                kept, leaving = _hold(head, residents, berths, rules, view, taken=taken, wanted=frozenset())
            if kept is not None:
                reservations.append(kept)
                evictions += leaving
                gone = {each.unit for each in leaving}
                residents = [replace(each, is_leaving=True) if each.tenant.id in gone else each for each in residents]
        places = _held(places, residents, berths, rules, view, reservations)
    datasets = _datasets(residents, berths)
    running = _running_kinds(residents, berths)
    return Placements(
        places={place.unit.id: _scored(place, berths, loads, datasets, running, rules) for place in places},
        evictions=tuple(evictions),
        reservations=tuple(reservations),
    )


def _filtered(queued: Sequence[Tenant], berths: Sequence[Berth], loads: dict[int, Load], rules: Rules) -> list[Place]:
    free = {berth.id: free_bytes(berth, berths, loads, rules.capacity_bytes) for berth in berths}
    places = []
    for unit in queued:
        slots: list[int] = []
        obstacles: dict[int, str] = {}
        for berth in berths:
            found = obstacle(unit, berth, loads[berth.id], free[berth.id], rules.bans)
            if found is None:
                slots.append(berth.id)
            else:
                obstacles[berth.id] = found
        places.append(Place(unit=unit, slots=tuple(slots), obstacles=obstacles))
    return places


def _apart(places: Sequence[Place], residents: Sequence[Resident], berths: Sequence[Berth], rules: Rules) -> list[Place]:
    """Keep units from slots beside which a unit runs that they and it would slow down."""
    running = _running_kinds(residents, berths)
    found = []
    for place in places:
        kind = place.unit.kind
        shut = {slot for slot in place.slots if any(frozenset({kind, other}) in rules.parted for other in running[slot])}
        found.append(_without(place, shut, "parted"))
    return found


def _without(place: Place, shut: AbstractSet[int], why: str, held_by: Reservation | None = None) -> Place:
    if not shut:
        return place
    slots = tuple(slot for slot in place.slots if slot not in shut)
    obstacles = {**place.obstacles, **dict.fromkeys(shut, why)}
    return replace(place, slots=slots, obstacles=obstacles, held_by=held_by or place.held_by)


def _heads(blocked: Sequence[Tenant], view: Outlook) -> list[Tenant]:
    """Return the first that fits nowhere of each trust domain, in the policy's order: no domain's jobs block another's."""
    heads: dict[frozenset[str] | None, Tenant] = {}
    for unit in sorted(blocked, key=lambda unit: _rank(unit.id, view)):
        heads.setdefault(unit.domain, unit)
    return list(heads.values())


def _rank(unit: str, view: Outlook) -> tuple[float, str]:
    return view.ranks.get(unit, inf), unit


def _hold(
    head: Tenant,
    residents: Sequence[Resident],
    berths: Sequence[Berth],
    rules: Rules,
    view: Outlook,
    *,
    taken: AbstractSet[int],
    wanted: AbstractSet[int],
) -> tuple[Reservation | None, list[Eviction]]:
    """Reserve a slot for a unit that fits nowhere, and send away whom it comes before, if that lets it in."""
    leaving = _evicted(head, residents, berths, rules, view, wanted)
    gone = {each.tenant.id for each in leaving}
    after = [replace(each, is_leaving=True) if each.tenant.id in gone else each for each in residents]
    seen = _foreseen(head, after, berths, rules, view)
    kept = seen.reserve(head, taken, is_promoted=head.id in view.promoted)
    return kept, [Eviction(unit=each.tenant.id, wanted_by=head.id) for each in leaving]


def _would_come(
    head: Tenant,
    leaving: Sequence[Eviction],
    residents: Sequence[Resident],
    berths: Sequence[Berth],
    rules: Rules,
    view: Outlook,
    reservations: Sequence[Reservation],
) -> bool:
    """Whether a unit would have a slot once others have left for it: what is kept for those before it may still bar it."""
    gone = {each.unit for each in leaving}
    staying = [each for each in residents if not (each.is_leaving or each.tenant.id in gone)]
    places = _filtered([head], berths, loads_of(berths, staying), rules)
    return any(place.slots for place in _held(places, staying, berths, rules, view, reservations))


def _foreseen(head: Tenant, residents: Sequence[Resident], berths: Sequence[Berth], rules: Rules, view: Outlook) -> Forecast:
    submit_time = view.submit_times.get(head.id, inf)
    return forecast(berths, residents, capacity_bytes=rules.capacity_bytes, bans=rules.bans, submit_time=submit_time)


def _evicted(
    head: Tenant,
    residents: Sequence[Resident],
    berths: Sequence[Berth],
    rules: Rules,
    view: Outlook,
    wanted: AbstractSet[int],
) -> list[Resident]:
    """Return the fewest parked units whose leaving lets ``head`` in on a wanted slot where it would have the next turn."""
    best: list[Resident] | None = None
    staying = [each for each in residents if not each.is_leaving]
    for berth in berths:
        if berth.id not in wanted or _is_led(head, berth, staying, view):
            continue
        found = _room_for(head, berth, staying, berths, rules, view)
        if found is not None and (best is None or len(found) < len(best)):
            best = found
    return best or []


def _is_led(head: Tenant, berth: Berth, staying: Iterable[Resident], view: Outlook) -> bool:
    """Whether somebody on the slot would have the next turn there before ``head``."""
    own = _rank(head.id, view)
    return any(each.slot == berth.id and each.may_leave and _rank(each.tenant.id, view) < own for each in staying)


def _room_for(
    head: Tenant, berth: Berth, staying: Sequence[Resident], berths: Sequence[Berth], rules: Rules, view: Outlook
) -> list[Resident] | None:
    """Return who has to leave for ``head`` to fit on a slot: the last in the policy's order first; None if that does not do."""
    pools = {each.id: each.pool for each in berths}
    spared = view.spares.get(head.id, frozenset())
    own = _rank(head.id, view)
    parked = [
        each
        for each in staying
        if each.may_leave
        and pools[each.slot] == berth.pool
        and _rank(each.tenant.id, view) > own
        and each.tenant.id not in spared
    ]
    parked.sort(key=lambda each: _rank(each.tenant.id, view))
    leaving: list[Resident] = []
    while not _fits_without(head, berth, staying, leaving, berths, rules):
        if not parked:
            return None
        leaving.append(parked.pop())
    for each in leaving[::-1]:  # who left in vain stays, the first in the policy's order before the others
        rest = [other for other in leaving if other is not each]
        if _fits_without(head, berth, staying, rest, berths, rules):
            leaving = rest
    return leaving


def _fits_without(
    head: Tenant,
    berth: Berth,
    staying: Sequence[Resident],
    leaving: Sequence[Resident],
    berths: Sequence[Berth],
    rules: Rules,
) -> bool:
    gone = {each.tenant.id for each in leaving}
    loads = loads_of(berths, (each for each in staying if each.tenant.id not in gone))
    free = free_bytes(berth, berths, loads, rules.capacity_bytes)
    return obstacle(head, berth, loads[berth.id], free, rules.bans) is None


def _held(
    places: Sequence[Place],
    residents: Sequence[Resident],
    berths: Sequence[Berth],
    rules: Rules,
    view: Outlook,
    reservations: Sequence[Reservation],
) -> list[Place]:
    """Keep units from slots where they would hold up one that is before them."""
    found = list(places)
    for held in reservations:
        own = _rank(held.unit.id, view)
        later = [index for index, place in enumerate(found) if place.slots and _rank(place.unit.id, view) > own]
        if later:
            seen = _foreseen(held.unit, residents, berths, rules, view)
            for index in later:
                place = found[index]
                seconds = view.seconds_left.get(place.unit.id, inf)
                shut = {
                    berth.id
                    for berth in berths
                    if berth.id in place.slots and not seen.may_pass(place.unit, seconds, berth, held)
                }
                found[index] = _without(place, shut, "reserved", held)
    return found


def _datasets(residents: Iterable[Resident], berths: Sequence[Berth]) -> dict[int, frozenset[str]]:
    """Return the datasets that are loaded on each slot; on a CPU, mapped data is in the page cache, for all slots alike."""
    found: dict[int, set[str]] = {berth.id: set() for berth in berths}
    for each in residents:
        found[each.slot].add(each.tenant.dataset)
    return {berth.id: frozenset() if berth.device == "cpu" else frozenset(found[berth.id]) for berth in berths}


def _running_kinds(residents: Iterable[Resident], berths: Sequence[Berth]) -> dict[int, tuple[str, ...]]:
    """Return, for each slot, the kinds of the units that run beside it on its device."""
    running = [each for each in residents if each.is_running]
    devices = {berth.id: berth.device for berth in berths}
    return {
        berth.id: tuple(each.tenant.kind for each in running if each.slot != berth.id and devices[each.slot] == berth.device)
        for berth in berths
    }


def _scored(
    place: Place,
    berths: Sequence[Berth],
    loads: Mapping[int, Load],
    datasets: Mapping[int, frozenset[str]],
    running: Mapping[int, tuple[str, ...]],
    rules: Rules,
) -> Place:
    """Note the best slots of those that a unit may have: its data is there, it runs well beside the others, few are on it."""
    if len(place.slots) < 2:
        return replace(place, prefers=place.slots) if place.slots else place
    unit = place.unit
    scores = {}
    for berth in berths:
        if berth.id in place.slots:
            gain = min((rules.gains.get(frozenset({unit.kind, kind}), 2.0) for kind in running[berth.id]), default=2.0)
            load = loads[berth.id]
            # of equally full slots the one where least memory is left: the others keep room for larger units
            scores[berth.id] = (unit.dataset not in datasets[berth.id], -round(gain, 1), load.count, -load.resident_bytes)
    best = min(scores.values())
    return replace(place, prefers=tuple(slot for slot, score in scores.items() if score == best))
