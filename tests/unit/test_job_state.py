import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.errors import UnifiedError
from unified.job import LEGAL_MOVES, IllegalMoveError, JobState, check_move


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
    ends = {state for state in JobState if not LEGAL_MOVES[state]}
    assert ends == {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}
    assert JobState.FINISHED not in LEGAL_MOVES[JobState.QUEUED] | LEGAL_MOVES[JobState.PAUSED]
    for state in set(JobState) - ends:
        assert {JobState.FAILED, JobState.CANCELLED} <= LEGAL_MOVES[state]
        assert state not in LEGAL_MOVES[state]


@given(data=st.data())
def test_whatever_happens_a_job_can_still_end(data):
    state = JobState.QUEUED
    for _ in range(data.draw(st.integers(0, 12))):
        if not LEGAL_MOVES[state]:
            break
        state = data.draw(st.sampled_from(sorted(LEGAL_MOVES[state])))
    if state is JobState.PAUSED:
        check_move(state, state := JobState.QUEUED, job="a")
    if state is JobState.QUEUED:
        check_move(state, state := JobState.RUNNING, job="a")
    if LEGAL_MOVES[state]:
        check_move(state, JobState.FINISHED, job="a")
