"""The simulator against arithmetic: the paper's case, and small ones worked out by hand."""

from __future__ import annotations

import pytest

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
