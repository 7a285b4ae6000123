"""The simulator against arithmetic: the paper's case, and small ones worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from schedulers.base import Grant, JobView, SchedulerConfigError, SlotView, UntilDone
from schedulers.keyed import KeyPolicy
from schedulers.registry import create
from schedulers.simulation.golden import GOLDEN, golden_jobs
from schedulers.simulation.outcome import Outcome
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.workload import SimJob


def run(spelling: str, jobs: list[tuple[float, float]], host: Host | None = None) -> Outcome:
    """Simulate jobs given as (submit time, seconds), called a, b, c, …"""
    named = [SimJob(id=chr(97 + index), submit_time=at, seconds=seconds) for index, (at, seconds) in enumerate(jobs)]
    return simulate(named, create(spelling), host or Host())


def completions(outcome: Outcome) -> list[float]:
    return [job.completion for job in outcome.jobs]


@pytest.mark.parametrize("spelling", GOLDEN)
def test_the_papers_case_comes_out_as_by_arithmetic(spelling: str) -> None:
    outcome = simulate(golden_jobs(), create(spelling), Host())
    assert completions(outcome) == pytest.approx(GOLDEN[spelling], rel=1e-12)
    assert outcome.num_wrong == 0
    assert outcome.makespan == pytest.approx(1167)


def test_a_shorter_arrival_stops_a_longer_unit_at_once() -> None:
    outcome = run("srtf:quantum=100s", [(0, 10), (3, 2)])
    assert completions(outcome) == [12, 5]
    assert [job.preemptions for job in outcome.jobs] == [1, 0]
    assert [job.longest_wait for job in outcome.jobs] == [2, 0]
    assert [(turn.unit_id, turn.began, turn.ended) for turn in outcome.turns] == [("a", 0, 3), ("b", 3, 5), ("a", 5, 12)]


def test_a_quantum_ends_only_where_somebody_waits() -> None:
    # a's quanta end at 4, 8, 12; b comes at 9 and gets the slot at 12
    outcome = run("round-robin:quantum=4s", [(0, 20), (9, 3)])
    assert completions(outcome) == [23, 15]
    assert len(outcome.turns) == 3


def test_two_on_one_slot_share_its_speed() -> None:
    # alone to 2, then both at 0.75 each: b needs 4 s for its 3, and a has 8 - 2 - 3 left
    outcome = run("fcfs", [(0, 8), (2, 3)], Host(corun=1.5))
    assert completions(outcome) == [9, 6]


def test_units_spread_over_slots_as_soon_as_one_is_free() -> None:
    # c shares slot 0 with a until b is done
    jobs = [(0.0, 6.0), (0.0, 2.0), (0.0, 6.0)]
    together = run("fcfs", jobs, Host(slots=2, corun=1.5))
    assert completions(together) == [pytest.approx(2 + 4.5), 2, pytest.approx(2 + 4.5)]
    apart = run("fcfs", jobs, Host(slots=2, corun=1.5, placement="resident"))
    assert completions(apart) == [8, 2, 8]


def test_a_resident_unit_waits_for_its_own_slot() -> None:
    # c stops a, the longer, at 1; a may go on where b was from 4 on, unless it is bound to its slot, which c has until 6
    jobs = [(0.0, 9.0), (0.0, 4.0), (1.0, 5.0)]
    free = run("srtf:quantum=100s", jobs, Host(slots=2))
    bound = run("srtf:quantum=100s", jobs, Host(slots=2, placement="resident"))
    assert completions(free) == [12, 4, 6]
    assert completions(bound) == [14, 4, 6]


def test_switches_and_checkpoints_take_their_time() -> None:
    # a begins at 1; b, at 3, saves a (5 s), begins (1 s); a begins again (1 s)
    outcome = run("srtf:quantum=100s", [(0, 10), (3, 2)], Host(switch_seconds=1, checkpoint_seconds=5))
    assert completions(outcome) == [20, 11]


def test_jobs_of_no_length_and_equal_times_do_no_harm() -> None:
    for spelling in ("fcfs", "srtf", "hrrn", "round-robin", "drr", "aging(srtf)"):
        outcome = run(spelling, [(0, 0), (0, 5), (0, 0), (5, 0), (5, 5), (0, 5)], Host(slots=2, corun=1.5))
        assert outcome.num_wrong == 0
        assert len(outcome.jobs) == 6
        assert sum(turn.seconds for turn in outcome.turns) == pytest.approx(15)


def test_estimates_of_next_to_nothing_and_of_everything_do_no_harm() -> None:
    jobs = [
        SimJob(id=f"{index}", submit_time=0, seconds=10, estimate_seconds=estimate)
        for index, estimate in enumerate((1e-9, 1e300, 10.0))
    ]
    for spelling in ("srtf:quantum=1s", "hrrn:quantum=1s", "default"):
        outcome = simulate(jobs, create(spelling), Host())
        assert outcome.num_wrong == 0
        assert max(completions(outcome)) == pytest.approx(30)


def test_a_hundred_thousand_jobs_pass() -> None:
    jobs = [SimJob(id=f"{index:06}", submit_time=index * 3.0, seconds=10.0) for index in range(100_000)]
    outcome = simulate(jobs, create("fcfs"), Host(slots=4))
    assert len(outcome.jobs) == 100_000
    assert outcome.jobs[-1].completion == pytest.approx(99_999 * 3 + 10)


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="job 'a': expected a finite submit time"):
        SimJob(id="a", submit_time=float("inf"), seconds=1)
    with pytest.raises(ValueError, match="at least one epoch"):
        SimJob(id="a", submit_time=0, seconds=1, num_epochs=0)
    with pytest.raises(ValueError, match="a name of its own"):
        simulate([SimJob(id="a", submit_time=0, seconds=1)] * 2, create("fcfs"), Host())
    for wrong in ({"slots": 0}, {"corun": 2.5}, {"placement": "here"}, {"switch_seconds": -1.0}):
        with pytest.raises(SchedulerConfigError):
            Host(**wrong)


class Wrong(KeyPolicy):
    """Grants what it may not, names victims that do not run, fails, and grants nothing, in turns."""

    def __init__(self) -> None:
        self.answers = 0

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        return ()

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        self.answers += 1
        if self.answers % 3 == 0:
            raise RuntimeError("it is broken")
        if self.answers % 3 == 1:
            return [Grant(unit_id="nobody", slot_id=0, quantum=UntilDone())]
        return []

    def victims(
        self, now: float, running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView]
    ) -> list[str]:
        return ["nobody"]


def test_wrong_answers_are_counted_and_decided_by_first_come_first_served() -> None:
    jobs = [SimJob(id=name, submit_time=at, seconds=4) for at, name in enumerate("abcd")]
    outcome = simulate(jobs, Wrong(), Host())
    assert completions(outcome) == [4, 8, 12, 16]
    assert outcome.num_wrong == 4 + 3  # a grant each, and the victims of the last three to come
    assert outcome.wrong == "granted 'nobody' on slot 0, which are not both free"


def test_a_job_whose_deadline_would_not_be_met_is_refused() -> None:
    jobs = [SimJob(id="a", submit_time=0, seconds=10, deadline=11), SimJob(id="b", submit_time=1, seconds=5, deadline=7)]
    outcome = simulate(jobs, create("edf"), Host())
    assert [job.id for job in outcome.jobs] == ["a"]
    assert not outcome.jobs[0].is_late
    assert "the earliest deadline that would be met" in outcome.refused["b"]
