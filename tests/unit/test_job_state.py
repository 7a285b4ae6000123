import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.errors import UnifiedError
from unified.job_state import ENDED, LEGAL_MOVES, RESIDENT, IllegalMoveError, JobState, check_move


@pytest.mark.parametrize(("old", "new"), [*itertools.product(JobState, JobState)])
def test_a_move_is_legal_exactly_if_the_table_says_so(old, new):
    if new in LEGAL_MOVES[old]:
        check_move(old, new, job="lenet")
        return
    with pytest.raises(IllegalMoveError, match=rf"job 'lenet'.* from {old} to {new}") as caught:
        check_move(old, new, job="lenet")
    assert isinstance(caught.value, UnifiedError)


def test_states_form_a_life():
    assert set(LEGAL_MOVES) == set(JobState)
    assert JobState.FINISHED in ENDED
    assert not LEGAL_MOVES[JobState.FINISHED]
    for state in ENDED - {JobState.FINISHED}:
        assert LEGAL_MOVES[state] == {JobState.QUEUED}  # by a requeue, and no other way
    for state in set(JobState) - RESIDENT:
        assert JobState.FINISHED not in LEGAL_MOVES[state]  # who was on no slot cannot have been trained
    for state in JobState:
        assert state not in LEGAL_MOVES[state]


@given(data=st.data())
def test_whatever_happens_a_job_can_still_end(data):
    state = JobState.QUEUED
    for _ in range(data.draw(st.integers(0, 12))):
        if not LEGAL_MOVES[state]:
            break
        state = data.draw(st.sampled_from(sorted(LEGAL_MOVES[state])))
    steps = 0
    while state not in ENDED:  # the shortest way out is to cancel it
        ways = LEGAL_MOVES[state]
        state = next(to for to in (JobState.CANCELLED, JobState.CANCELLING, JobState.QUEUED) if to in ways)
        steps += 1
    assert steps <= 2
