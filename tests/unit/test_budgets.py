"""What follows a failure: each rule by example, and the laws that keep any sequence of failures bounded and fair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.budgets import MAX_DELAY_SECONDS, Fault, Limits, Situation, Verdict, decide
from unified.job_state import ENDED, JobState, check_move

LIMITS = Limits(max_retries=2, max_infra_failures=3, retry_seconds=10.0)
BATCH = replace(LIMITS, is_batch=True)
INFRASTRUCTURE = (Fault.KILLED, Fault.NEIGHBOUR, Fault.HOST)
DEATHS = (Fault.CRASH, Fault.STALL)

situations = st.builds(
    Situation,
    fault=st.sampled_from(Fault),
    signature=st.sampled_from(["ValueError at step 1", "ValueError at step 2", "signal 11 at step 3"]),
    was_alone=st.booleans(),
    is_alone=st.booleans(),
    num_job_failures=st.integers(0, 50),
    num_infra_failures=st.integers(0, 50),
    num_blames=st.integers(0, 5),
    last_fault=st.sampled_from([None, "ValueError at step 1", "ValueError at step 2", "signal 11 at step 3"]),
)
limits = st.builds(
    Limits,
    max_retries=st.integers(0, 20),
    max_infra_failures=st.integers(1, 20),
    max_blames=st.integers(1, 4),
    retry_seconds=st.floats(0, 1e6),
    is_batch=st.booleans(),
)
jitters = st.floats(0, 1, exclude_max=True)


def fail(fault: Fault, bounds: Limits = LIMITS, **account: Any) -> Verdict:
    situation: dict[str, Any] = {"fault": fault, "signature": "x", "was_alone": False} | account
    return decide(Situation(**situation), bounds, jitter=0.0)


def live(faults: Iterable[tuple[Fault, str, bool]], bounds: Limits) -> list[Verdict]:
    """Let a job fail as told, each time with the account that the time before left it, until it ends."""
    account: dict[str, Any] = {
        "is_alone": False,
        "num_job_failures": 0,
        "num_infra_failures": 0,
        "num_blames": 0,
        "last_fault": None,
    }
    verdicts: list[Verdict] = []
    for fault, signature, had_slot_to_itself in faults:
        was_alone = had_slot_to_itself or account["is_alone"]
        verdicts.append(fail(fault, bounds, signature=signature, **account | {"was_alone": was_alone}))
        if verdicts[-1].state in ENDED:
            break
        account = {name: getattr(verdicts[-1], name) for name in account}
    return verdicts


@pytest.mark.parametrize("fault", [Fault.INVALID, Fault.RUN_TIME])
@pytest.mark.parametrize("bounds", [LIMITS, BATCH])
def test_what_no_retry_can_mend_fails_at_once(fault: Fault, bounds: Limits) -> None:
    assert fail(fault, bounds).state is JobState.FAILED


def test_failures_of_its_own_are_retried_ever_later_and_then_it_is_given_up() -> None:
    verdicts = live([(Fault.OWN, f"step {step}", False) for step in range(9)], LIMITS)
    assert [verdict.state for verdict in verdicts] == [JobState.RETRY_WAIT, JobState.RETRY_WAIT, JobState.DEAD]
    assert [verdict.delay_seconds for verdict in verdicts] == [10.0, 20.0, 0.0]
    assert [verdict.why for verdict in verdicts] == ["retry 1 of 2", "retry 2 of 2", "failed 3 times, max_retries is 2"]


def test_the_same_failure_at_the_same_step_twice_is_not_tried_a_third_time() -> None:
    verdicts = live([(Fault.OWN, "KeyError at step 5", False)] * 9, replace(LIMITS, max_retries=8))
    assert [verdict.state for verdict in verdicts] == [JobState.RETRY_WAIT, JobState.DEAD]


def test_the_same_failure_counts_as_the_same_across_a_worker_that_was_killed_in_between() -> None:
    faults = [
        (Fault.OWN, "KeyError at step 5", False),
        (Fault.KILLED, "SIGKILL", False),
        (Fault.OWN, "KeyError at step 5", False),
    ]
    assert live(faults, replace(LIMITS, max_retries=8))[-1].state is JobState.DEAD


@pytest.mark.parametrize("bounds", [replace(LIMITS, max_retries=0), BATCH])
def test_without_retries_a_failure_of_its_own_is_final_and_no_death(bounds: Limits) -> None:
    assert fail(Fault.OWN, bounds).state is JobState.FAILED
    assert fail(Fault.OWN, bounds, last_fault="x").state is JobState.FAILED


@pytest.mark.parametrize("bounds", [LIMITS, BATCH])
def test_memory_that_lacks_beside_others_costs_nothing_and_alone_everything(bounds: Limits) -> None:
    beside, alone = live([(Fault.OUT_OF_MEMORY, "step 3", False)] * 2, bounds)
    assert (beside.state, beside.is_alone) == (JobState.QUEUED, True)
    assert (beside.num_job_failures, beside.num_infra_failures, beside.num_blames) == (0, 0, 0)
    assert (alone.state, alone.why) == (JobState.FAILED, "out-of-memory")


@pytest.mark.parametrize("fault", DEATHS)
def test_a_suspect_is_put_on_probation_and_its_second_death_alone_is_its_last(fault: Fault) -> None:
    suspected, first, second = live([(fault, f"step {step}", False) for step in range(3)], LIMITS)
    assert (suspected.state, suspected.is_alone, suspected.num_job_failures) == (JobState.QUEUED, True, 0)
    assert (first.state, first.is_alone, first.num_blames, first.num_job_failures) == (JobState.RETRY_WAIT, True, 1, 1)
    assert (second.state, second.why) == (JobState.DEAD, "quarantined: its worker died 2 times while it ran")


@pytest.mark.parametrize("fault", DEATHS)
@pytest.mark.parametrize("was_alone", [False, True])
def test_in_a_batch_run_a_culprit_runs_alone_once_more_without_a_wait_and_then_fails(fault: Fault, was_alone: bool) -> None:
    first, second = live([(fault, "step 3", was_alone)] * 2, BATCH)
    assert (first.state, first.is_alone, first.num_blames) == (JobState.QUEUED, True, 1)
    assert (second.state, second.why) == (JobState.FAILED, "its worker died 2 times while it ran")


@pytest.mark.parametrize("fault", INFRASTRUCTURE)
def test_what_others_do_to_it_costs_only_a_place_in_a_count_that_is_capped(fault: Fault) -> None:
    verdicts = live([(fault, "lost", False)] * 9, LIMITS)
    assert [verdict.state for verdict in verdicts] == [JobState.QUEUED] * 3 + [JobState.DEAD]
    assert verdicts[-1].num_job_failures == 0
    assert live([(fault, "lost", False)] * 9, BATCH)[-1].state is JobState.FAILED


@given(situations, limits, jitters)
def test_each_verdict_is_a_legal_move_of_a_job_that_trains(situation: Situation, bounds: Limits, jitter: float) -> None:
    verdict = decide(situation, bounds, jitter=jitter)
    check_move(JobState.RUNNING, verdict.state)
    check_move(JobState.LOADING, verdict.state)
    assert verdict.why
    assert not (bounds.is_batch and verdict.state in {JobState.DEAD, JobState.RETRY_WAIT})


@given(situations, limits, jitters)
def test_only_a_retry_waits_and_never_longer_than_the_cap_and_a_quarter(s: Situation, bounds: Limits, jitter: float) -> None:
    verdict = decide(s, bounds, jitter=jitter)
    assert 0 <= verdict.delay_seconds <= MAX_DELAY_SECONDS * 1.25
    assert not verdict.delay_seconds or verdict.state is JobState.RETRY_WAIT


@given(situations, limits, jitters)
def test_counts_only_grow_and_each_by_at_most_one(situation: Situation, bounds: Limits, jitter: float) -> None:
    verdict = decide(situation, bounds, jitter=jitter)
    for count in ("num_job_failures", "num_infra_failures", "num_blames"):
        assert getattr(verdict, count) - getattr(situation, count) in {0, 1}
    assert verdict.is_alone or not situation.is_alone


@given(situations, limits, jitters)
def test_a_budget_that_is_used_up_is_never_drawn_on_again(situation: Situation, bounds: Limits, jitter: float) -> None:
    verdict = decide(situation, bounds, jitter=jitter)
    if verdict.state in ENDED:
        return
    if verdict.num_job_failures > situation.num_job_failures and not bounds.is_batch:
        assert verdict.num_job_failures <= bounds.max_retries
    if verdict.num_infra_failures > situation.num_infra_failures:
        assert verdict.num_infra_failures <= bounds.max_infra_failures
    if verdict.num_blames > situation.num_blames:
        assert verdict.num_blames < bounds.max_blames


@given(st.lists(st.sampled_from(INFRASTRUCTURE), max_size=20), limits)
def test_a_job_without_a_fault_of_its_own_lives_until_the_cap(faults: list[Fault], bounds: Limits) -> None:
    verdicts = live([(fault, "lost", False) for fault in faults], bounds)
    assert all(verdict.state is JobState.QUEUED for verdict in verdicts[: bounds.max_infra_failures])
    assert len(verdicts) == min(len(faults), bounds.max_infra_failures + 1)


@given(st.lists(st.tuples(st.sampled_from([Fault.OWN, *DEATHS]), st.text(max_size=2)), min_size=30, max_size=30), limits)
def test_failures_of_its_own_end_within_the_retries_and_one(faults: list[tuple[Fault, str]], bounds: Limits) -> None:
    verdicts = live([(fault, signature, True) for fault, signature in faults], bounds)
    assert verdicts[-1].state in {JobState.FAILED, JobState.DEAD}
    assert len(verdicts) <= (bounds.max_blames if bounds.is_batch else bounds.max_retries + 1)


@given(st.lists(st.tuples(st.sampled_from(Fault), st.text(max_size=2), st.booleans()), min_size=50, max_size=50), limits)
def test_any_sequence_of_failures_without_progress_ends(faults: list[tuple[Fault, str, bool]], bounds: Limits) -> None:
    verdicts = live(faults, bounds)
    num_own = bounds.max_blames - 1 if bounds.is_batch else bounds.max_retries
    num_free = 1  # out of memory, or a death, beside others: from then on it is alone
    assert len(verdicts) <= num_own + bounds.max_infra_failures + num_free + 1
    assert verdicts[-1].state in ENDED
