"""Which waiting units may go where: laws over random slots and jobs, and cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.packer import Outlook, Placements, Rules, plan
from unified.packing import Demand
from unified.tenancy import Berth, Resident, Tenant, loads_of

law = settings(deadline=None)  # a busy machine breaks no law

USERS = ("ann", "bob")


def unit(name: str, held: int = 1, peak: int | None = None, **facts: Any) -> Tenant:
    demand = Demand(resident_bytes=held, peak_bytes=held if peak is None else peak)
    return Tenant(id=name, demand=demand, members=(name,), **{"dataset": name} | facts)


def cpu_slots(count: int, busy: Sequence[int] = ()) -> list[Berth]:
    return [Berth(id=index, is_busy=index in busy) for index in range(count)]


def gpu_slots(count: int, per_device: int = 1) -> list[Berth]:
    return [Berth(id=index, device=f"cuda:{index // per_device}", pool=index) for index in range(count)]


def parked(tenant: Tenant, slot: int, seconds: float = inf, **facts: Any) -> Resident:
    return Resident(tenant=tenant, slot=slot, seconds_left=seconds, may_leave=True, **facts)


def running(tenant: Tenant, slot: int, seconds: float = inf) -> Resident:
    return Resident(tenant=tenant, slot=slot, seconds_left=seconds, is_running=True)


def planned(
    queued: Sequence[Tenant],
    residents: Sequence[Resident],
    slots: Sequence[Berth],
    capacity: int,
    *,
    order: str | Sequence[str] = "",
    seconds: dict[str, float] | None = None,
    promoted: str = "",
    **rules: Any,
) -> Placements:
    """Plan, where the policy's order is ``order`` and then that of ``queued``."""
    names = [*order, *(each.id for each in queued if each.id not in order)]
    ranks = {name: rank for rank, name in enumerate(names)}
    outlook = Outlook(ranks=ranks, seconds_left=seconds or {}, promoted=frozenset(promoted), submit_times=ranks)
    return plan(queued, residents, slots, Rules(capacity_bytes=capacity, **rules), lambda: outlook)


def slots_of(found: Placements) -> dict[str, tuple[int, ...]]:
    return {name: place.slots for name, place in found.places.items()}


def test_a_job_may_go_wherever_it_fits_and_is_better_placed_where_there_are_fewer() -> None:
    found = planned([unit("n"), unit("big", 9)], [parked(unit("a"), 0)], gpu_slots(2), 9)
    assert slots_of(found) == {"n": (0, 1), "big": (1,)}
    assert found.preferring(0) == frozenset()
    assert found.preferring(1) == {"n", "big"}


def test_memory_of_a_cpu_host_is_shared_and_that_of_gpus_is_not() -> None:
    there = [parked(unit("a", 3, 6), 0)]
    assert slots_of(planned([unit("n", 1, 4)], there, cpu_slots(2), 10)) == {"n": (0, 1)}  # 3 + 1 + 3; and 6 + 4
    assert slots_of(planned([unit("n", 1, 4)], there, cpu_slots(2), 9)) == {"n": (0,)}
    assert slots_of(planned([unit("n", 1, 9)], there, gpu_slots(2), 9)) == {"n": (1,)}


def test_a_job_is_better_placed_on_the_gpu_that_has_its_data() -> None:
    there = [parked(unit("a", dataset="d"), 0), parked(unit("b", dataset="e"), 1)]
    found = planned([unit("n", dataset="d"), unit("m", dataset="f")], there, gpu_slots(3), 100)
    assert [sorted(found.preferring(slot)) for slot in range(3)] == [["n"], [], ["m"]]


def test_pairs_that_slow_each_other_down_are_parted_on_their_device_only() -> None:
    there = [running(unit("a", kind="k"), 0)]
    slots = gpu_slots(4, per_device=2)
    pair = frozenset({"k", "n"})
    found = planned([unit("n", kind="n"), unit("m", kind="m")], there, slots, 100, parted={pair}, gains={pair: 1.0})
    assert slots_of(found) == {"n": (0, 2, 3), "m": (0, 1, 2, 3)}
    assert found.places["n"].obstacles == {1: "parted"}


@pytest.mark.parametrize(
    ("seconds", "held", "expected"),
    [
        (50, 3, (1,)),  # is gone when the head's time comes
        (500, 1, (1,)),  # leaves enough for the head
        (500, 3, ()),  # would hold it up
        (None, 1, (1,)),  # of unknown length, but leaves enough
        (None, 3, ()),
    ],
)
def test_a_later_job_passes_the_head_only_if_that_does_not_hold_it_up(
    seconds: float | None, held: int, expected: tuple[int, ...]
) -> None:
    there = [running(unit("a", 6), 0, 100)]
    lengths = {} if seconds is None else {"l": float(seconds)}
    found = planned([unit("h", 8), unit("l", held)], there, cpu_slots(2, busy=[0]), 9, seconds=lengths)
    [kept] = found.reservations
    assert (kept.unit.id, kept.seconds, kept.awaited) == ("h", 100, there[0].tenant)
    assert slots_of(found) == {"h": (), "l": expected}


def test_nobody_passes_a_promoted_job_on_the_slot_that_is_kept_for_it() -> None:
    there = [running(unit("a", 6), 0, 100)]
    queued = [unit("h", 8), unit("l", 1)]
    slots = [Berth(id=0, device="cuda:0", pool=0), Berth(id=1, device="cuda:1", pool=1)]
    both = [*there, running(unit("b", 6), 1, 200)]
    assert slots_of(planned(queued, both, slots, 9, seconds={"l": 1.0})) == {"h": (), "l": (1,)}
    idle = [parked(unit("p", 8), 0, 10)]
    assert slots_of(planned([unit("h", 8), unit("l", 1)], idle, slots[:1], 9, promoted="h")) == {"h": (), "l": ()}


def test_a_job_before_the_head_is_not_held_up_by_it() -> None:
    found = planned([unit("h", 8), unit("l", 3)], [running(unit("a", 6), 0)], cpu_slots(2, busy=[0]), 9, order="lh")
    assert slots_of(found) == {"h": (), "l": (0, 1)}


def test_one_trust_domain_does_not_block_another() -> None:
    slots = [replace(each, users=frozenset({"ann"}), is_one_users=True) for each in gpu_slots(2)]
    there = [running(unit(name, users=frozenset({"ann"}), keeps_to_its_user=True), slot) for slot, name in enumerate("ab")]
    queued = [unit(name, users=frozenset({user})) for name, user in (("h", "bob"), ("l", "ann"), ("m", "bob"))]
    found = planned([replace(queued[0], keeps_to_its_user=True), *queued[1:]], there, slots, 100)
    assert [(kept.unit.id, kept.slot) for kept in found.reservations] == [("h", 0), ("m", 1)]
    assert slots_of(found) == {"h": (), "l": (1,), "m": ()}  # it comes before m, whose slot it is


def test_who_comes_after_a_job_that_fits_nowhere_leaves_for_it() -> None:
    there = [parked(unit("a", 2), 0), parked(unit("b", 2), 0), parked(unit("c", 4), 1)]
    found = planned([unit("h", 5)], there, cpu_slots(2, busy=[1]), 9, order="habc")
    assert [(each.unit, each.wanted_by) for each in found.evictions] == [("c", "h")]  # the last, and no more than needed
    assert planned([unit("h", 5)], there, cpu_slots(2, busy=[1]), 9, order="abch").evictions == ()
    assert planned([unit("h", 5)], there, cpu_slots(2, busy=[0, 1]), 9, order="habc").evictions == ()  # it could not run
    new = [replace(each, may_leave=False) for each in there]
    assert planned([unit("h", 5)], new, cpu_slots(2), 9, order="habc").evictions == ()


def test_nobody_leaves_for_a_job_that_would_still_wait_for_one_before_it() -> None:
    """``h`` waits for the end of ``a``, which nobody can foresee; ``l``, of another domain, would hold it up all the same."""
    there = [parked(unit("p", 1, 5), 0), replace(running(unit("a", 1, 8), 1), submit_time=9.0)]
    queued = [unit("h", 8, 16), unit("l", 1, 8, users=frozenset({"ann"}), keeps_to_its_user=True)]
    assert planned(queued, there, cpu_slots(3, busy=[1]), 20, order="ahlp").evictions == ()


def test_who_was_sent_away_for_a_job_does_not_send_that_one_away() -> None:
    there = [parked(unit("a", 9), 0)]
    outlook = Outlook(ranks={"h": 0, "a": 1}, spares={"h": {"a"}})
    assert plan([unit("h", 9)], there, cpu_slots(1), Rules(capacity_bytes=9), lambda: outlook).evictions == ()
    assert planned([unit("h", 9)], there, cpu_slots(1), 9, order="ha").evictions != ()


@dataclass(frozen=True)
class World:
    """Slots, who is on them, who waits, and what the scheduler thinks."""

    slots: list[Berth]
    residents: list[Resident]
    queued: list[Tenant]
    capacity: int
    outlook: Outlook

    def plan(self) -> Placements:
        return plan(self.queued, self.residents, self.slots, Rules(capacity_bytes=self.capacity), lambda: self.outlook)

    def admit(self, name: str, slot: int) -> World:
        """Take a waiting unit to a slot, where it has a turn: nobody else goes there now."""
        [tenant] = [each for each in self.queued if each.id == name]
        [berth] = [each for each in self.slots if each.id == slot]
        users = tenant.users if not any(each.slot == slot for each in self.residents) else berth.users | tenant.users
        hosts = replace(berth, users=users, is_busy=True, is_one_users=berth.is_one_users or tenant.keeps_to_its_user)
        came = Resident(
            tenant=tenant,
            slot=slot,
            is_running=True,
            seconds_left=self.outlook.seconds_left.get(name, inf),
            submit_time=self.outlook.submit_times[name],
        )
        return replace(
            self,
            slots=[hosts if each.id == slot else each for each in self.slots],
            residents=[*self.residents, came],
            queued=[each for each in self.queued if each.id != name],
        )


@st.composite
def worlds(draw: st.DrawFn, *, most_residents: int = 5) -> World:
    is_on_cpu = draw(st.booleans())
    slots = cpu_slots(draw(st.integers(1, 3))) if is_on_cpu else gpu_slots(draw(st.integers(1, 3)))
    names = [f"j{number}" for number in range(draw(st.integers(1, 10)))]
    tenants = [draw(tenants_of(name)) for name in names]
    times = draw(st.permutations(range(len(names))))
    lengths = draw(st.lists(st.none() | st.integers(1, 50), min_size=len(names), max_size=len(names)))
    outlook = Outlook(
        ranks=dict(zip(draw(st.permutations(names)), range(len(names)), strict=True)),
        seconds_left={name: float(length) for name, length in zip(names, lengths, strict=True) if length is not None},
        submit_times={name: float(time) for name, time in zip(names, times, strict=True)},
        promoted=frozenset(draw(st.lists(st.sampled_from(names), max_size=2))),
    )
    world = World(slots=slots, residents=[], queued=tenants, capacity=20, outlook=outlook)
    for _ in range(draw(st.integers(0, most_residents))):  # everybody came by the packer's leave
        found = world.plan()
        free = [(name, slot) for name, place in found.places.items() for slot in place.slots]
        if not free:
            break
        world = world.admit(*draw(st.sampled_from(free)))
        if draw(st.booleans()):
            *others, last = world.residents
            world = replace(world, residents=[*others, replace(last, is_running=False, may_leave=True)])
    return replace(
        world,
        slots=[
            replace(slot, is_busy=any(each.slot == slot.id and each.is_running for each in world.residents))
            for slot in world.slots
        ],
    )


@st.composite
def tenants_of(draw: st.DrawFn, name: str) -> Tenant:
    held = draw(st.integers(1, 9))
    return unit(
        name,
        held,
        held + draw(st.integers(0, 9)),
        users=frozenset({draw(st.sampled_from(USERS))}),
        keeps_to_its_user=draw(st.booleans()),
        needs_own_slot=draw(st.integers(0, 5)) == 0,
    )


@law
@given(worlds(most_residents=10))
def test_no_order_of_arrivals_takes_more_memory_than_there_is_or_mixes_trust_domains(world: World) -> None:
    loads = loads_of(world.slots, world.residents)
    pools: dict[int, int] = {}
    for slot in world.slots:
        pools[slot.pool] = pools.get(slot.pool, 0) + loads[slot.id].bytes
        there = [each.tenant for each in world.residents if each.slot == slot.id]
        users = frozenset().union(*(each.users for each in there))
        assert len(users) < 2 or not any(each.keeps_to_its_user for each in there)
        assert len(there) < 2 or not any(each.needs_own_slot for each in there)
    assert all(taken <= world.capacity for taken in pools.values())


@law
@given(worlds())
def test_a_plan_is_a_fixed_point(world: World) -> None:
    found = world.plan()
    leaving = {each.unit for each in found.evictions}
    told = [replace(each, is_leaving=True, may_leave=False) if each.tenant.id in leaving else each for each in world.residents]
    again = replace(world, residents=told).plan()
    assert again.evictions == ()
    assert slots_of(again) == slots_of(found)
    gone = [each for each in told if not each.is_leaving]
    for name in {each.wanted_by for each in found.evictions}:
        assert slots_of(replace(world, residents=gone).plan())[name], "who was sent away made room"


@law
@given(worlds())
def test_who_passes_the_head_does_not_move_its_reservation(world: World) -> None:
    found = world.plan()
    ranks = world.outlook.ranks
    idle = {slot.id for slot in world.slots if not slot.is_busy}
    first_fit = min((ranks[name] for name, place in found.places.items() if place.slots), default=inf)
    for kept in found.reservations[:1]:
        if found.evictions or first_fit < ranks[kept.unit.id]:
            continue  # who comes before the head goes first, and nobody is passed
        for name, place in found.places.items():
            for slot in idle & set(place.slots) if ranks[name] > ranks[kept.unit.id] else ():
                after = world.admit(name, slot).plan()
                held = [each.seconds for each in after.reservations if each.unit.id == kept.unit.id]
                assert held == [] or held[0] <= kept.seconds + 1e-9
                assert not (kept.is_promoted and slot == kept.slot)


@law
@given(worlds())
def test_no_unit_is_sent_away_that_comes_before_the_one_it_leaves_for(world: World) -> None:
    ranks = world.outlook.ranks
    by_name = {each.tenant.id: each for each in world.residents}
    for each in world.plan().evictions:
        assert by_name[each.unit].may_leave
        assert ranks[each.unit] > ranks[each.wanted_by]
