"""The search for the width of a stack: it tries every width, and ends with the fastest."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fusion.stacking.width_search import FINAL_STEPS, STEPS, WARM, WidthSearch, widths


def searched(num_members: int, seconds: dict[int, float]) -> tuple[WidthSearch, list[int]]:
    search, taken = WidthSearch(num_members), []
    while not search.is_over:
        taken.append(search.width)
        search.note(seconds[search.width])
    return search, taken


@given(num_members=st.integers(1, 100), data=st.data())
def test_it_ends_with_the_fastest_width_after_a_bounded_number_of_steps(num_members: int, data: st.DataObject) -> None:
    tried = widths(num_members)
    times = data.draw(st.lists(st.integers(1, 1000), min_size=len(tried), max_size=len(tried), unique=True))
    # so far apart that no width counts as equal to another
    seconds = {width: 1.1**rank for width, rank in zip(tried, times, strict=True)}
    search, taken = searched(num_members, seconds)
    assert search.width == min(seconds, key=seconds.__getitem__)
    assert len(taken) <= len(tried) * (WARM + STEPS) + 2 * (WARM + FINAL_STEPS)
    assert set(taken) == (set(tried) if len(tried) > 1 else set())


@given(num_members=st.integers(1, 1000))
def test_the_widths_halve_from_all_members_to_two_or_three(num_members: int) -> None:
    found = widths(num_members)
    assert found[0] == num_members
    assert found[-1] <= 3
    assert all(narrower == -(-wider // 2) for wider, narrower in itertools.pairwise(found))


def test_of_equally_fast_widths_the_widest_is_taken() -> None:
    search, _ = searched(8, {8: 1.0, 4: 0.99, 2: 1.0})
    assert search.width == 8


def test_a_width_that_a_busy_machine_slowed_once_gets_another_chance() -> None:
    search, slow = WidthSearch(8), iter([9.0, 9.0])
    while not search.is_over:
        search.note(next(slow, 1.0) if search.width == 8 else 1.5 if search.width == 4 else 3.0)
    assert search.width == 8
