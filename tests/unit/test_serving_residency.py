"""Which variants may be on a device together, and what it costs to bring one there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from serving.runtime.residency import Residency, Resident
from serving.runtime.snapshot import Servable
from serving.table import Table
from tests.unit.serving_runtime import FAMILY, Made, Memory

MADE = [Made(id=key, num_bytes=size, load_ms=1000.0 * size) for key, size in zip("abcde", (1, 2, 3, 4, 5), strict=True)]
TABLE = Memory(MADE).table(FAMILY.name)


def resident(key: str, table: Table = TABLE) -> Resident:
    place = table.index[key]
    servable = Servable(variant=table.variants[place], table=table, place=place, quantile="p95", example=())
    return Resident(servable=servable, module=nn.Identity())


def holding(*keys: str, memory_bytes: int | None = None) -> Residency:
    residency = Residency(memory_bytes=memory_bytes)
    for key in keys:
        residency.arrived(key, resident(key))
    return residency


def costs(residency: Residency, now: float = 0.0, warm: str = "") -> dict[str, float]:
    state = residency.state(TABLE, frozenset(warm), now)
    return {variant.id: float(cost) for variant, cost in zip(TABLE.variants, state.load_ms, strict=True)}


def test_the_least_recently_used_leave_first():
    residency = holding("a", "b", "c", memory_bytes=6)
    residency.find("a")
    assert residency.room_for(2) == ["b"]
    assert residency.room_for(3) == ["b", "c"]


def test_what_is_used_or_pinned_stays():
    residency = holding("a", "b", "c", memory_bytes=6)
    residency.use("b")
    residency.pinned = frozenset("c")
    assert residency.room_for(1) == ["a"]
    assert residency.room_for(2) is None
    assert residency.release("b")
    assert residency.room_for(2) == ["a", "b"]


def test_what_is_loading_takes_its_room_already():
    residency = holding("a", memory_bytes=6)
    residency.expect("e", 5, ready_at=1.0)
    assert residency.num_bytes == 6
    assert residency.room_for(1) == ["a"]
    residency.arrived("e", None)
    assert residency.room_for(5) == []


def test_a_variant_on_the_device_costs_nothing_and_others_their_load():
    assert costs(holding("a"), warm="b") == {"a": 0, "b": 1000, "c": 3000, "d": 4000, "e": 5000}


def test_what_is_being_loaded_costs_the_rest_and_others_wait_for_it():
    residency = holding("a")
    residency.expect("e", 5, ready_at=5.0)
    assert costs(residency, now=3.0) == {"a": 0, "b": 4000, "c": 5000, "d": 6000, "e": 2000}
    assert costs(residency, now=9.0)["e"] == 0


def test_selection_gets_one_state_until_something_changes():
    residency = holding("a")
    before = residency.state(TABLE, frozenset(), 0.0)
    assert residency.state(TABLE, frozenset(), 1.0) is before
    residency.arrived("b", resident("b"))
    assert costs(residency)["b"] == 0
    residency.evict("a")
    assert costs(residency)["a"] == pytest.approx(1000)


STEPS = st.lists(st.tuples(st.sampled_from(["load", "use", "release", "find"]), st.sampled_from("abcde")), max_size=40)


@settings(deadline=None, max_examples=100)
@given(steps=STEPS, pinned=st.sampled_from(["", "a", "ab"]), memory_bytes=st.integers(5, 12))
def test_the_budget_holds_and_nothing_that_is_needed_leaves(steps, pinned, memory_bytes):
    residency = Residency(memory_bytes=memory_bytes)
    residency.pinned = frozenset(pinned)
    used: list[str] = []
    for step, key in steps:
        if step == "use":
            residency.use(key)
            used.append(key)
        elif step == "release" and key in used:
            used.remove(key)
            assert residency.release(key) == (key not in used)
        elif step == "find":
            residency.find(key)
        elif step == "load" and key not in residency:
            leaving = residency.room_for(resident(key).num_bytes)
            if leaving is None:
                stay = sum(resident(other).num_bytes for other in residency.ids if other in used or other in pinned)
                assert stay + resident(key).num_bytes > memory_bytes
                continue
            assert not set(leaving) & {*used, *pinned}
            for other in leaving:
                residency.evict(other)
            residency.arrived(key, resident(key))
        assert residency.num_bytes <= memory_bytes
