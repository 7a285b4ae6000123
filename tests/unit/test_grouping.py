"""Which jobs are stacked: everybody in one unit, equals alone, spread over the slots, where they are resident."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unified.grouping import Candidate, Rules, group


def rules(num_slots: int = 1, **changes: object) -> Rules:
    return Rules(**({"num_slots": num_slots, "num_running": {}, "least_sizes": {}, "bans": frozenset()} | changes))


def jobs(keys: str, slots: dict[int, int] | None = None) -> list[Candidate]:
    where = slots or {}
    return [
        Candidate(name=f"j{number}", key=None if key == "-" else key, slot=where.get(number)) for number, key in enumerate(keys)
    ]


def sizes(groups: list[tuple[str, ...]]) -> list[int]:
    return sorted(map(len, groups), reverse=True)


CANDIDATES = st.lists(st.tuples(st.sampled_from("ab-"), st.sampled_from([None, 0, 1])), max_size=20).map(
    lambda drawn: [Candidate(name=f"j{n}", key=None if key == "-" else key, slot=slot) for n, (key, slot) in enumerate(drawn)]
)


@given(candidates=CANDIDATES, num_slots=st.integers(1, 4), most=st.integers(2, 6), data=st.data())
def test_everybody_is_in_one_unit_of_equals_on_one_slot(
    candidates: list[Candidate], num_slots: int, most: int, data: st.DataObject
) -> None:
    names = [each.name for each in candidates]
    pairs = st.frozensets(st.frozensets(st.sampled_from(names), min_size=2, max_size=2), max_size=5)
    bans = data.draw(pairs) if len(names) > 1 else frozenset()
    groups = group(candidates, rules(num_slots, max_size=most, bans=bans))
    by_name = {each.name: each for each in candidates}
    assert sorted(name for names in groups for name in names) == sorted(by_name)
    assert [names[0] for names in groups] == sorted((names[0] for names in groups), key=list(by_name).index)
    for names in groups:
        members = [by_name[name] for name in names]
        assert list(names) == sorted(names, key=list(by_name).index)
        assert len(names) <= most
        if len(names) > 1:
            assert len({member.key for member in members}) == 1
            assert members[0].key is not None
            assert len({member.slot for member in members if member.slot is not None}) <= 1
            assert not any(pair <= set(names) for pair in bans)


def test_equal_jobs_are_spread_over_the_slots_so_that_none_stands_idle() -> None:
    assert sizes(group(jobs("aaaaaaaa"), rules(1))) == [8]
    assert sizes(group(jobs("aaaaaaaa"), rules(2))) == [4, 4]
    assert sizes(group(jobs("aaa"), rules(2))) == [2, 1]
    assert sizes(group(jobs("aa"), rules(2))) == [1, 1]


def test_who_has_a_turn_counts_for_the_share() -> None:
    assert sizes(group(jobs("aaaa"), rules(2, num_running={"a": 4}))) == [4]


def test_residents_stay_and_the_others_fill_up_their_stacks() -> None:
    groups = group(jobs("aaaaaa", {1: 1, 4: 0}), rules(2))
    assert groups == [("j0", "j1", "j2"), ("j3", "j4", "j5")]


def test_what_was_refused_is_tried_again_only_when_it_is_larger() -> None:
    assert sizes(group(jobs("aaaa"), rules(least_sizes={"a": 8}))) == [1, 1, 1, 1]
    assert sizes(group(jobs("aaaaaaaa"), rules(least_sizes={"a": 8}))) == [8]
    assert sizes(group(jobs("aaaa"), rules(least_sizes={"a": float("inf")}))) == [1, 1, 1, 1]
