"""The simulator against a second one that goes through time tick by tick, and against what must hold of any workload."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from itertools import accumulate, pairwise, permutations
from statistics import fmean

import pytest

from schedulers.registry import create
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.workload import SimJob
from tests.unit.naive_simulator import NaiveSimulator

POLICIES = (
    "fcfs", "priority", "round-robin", "round-robin:quantum=3steps", "round-robin:quantum=2s", "srtf:quantum=3s",
    "hrrn:quantum=2s",
    "las:quantum=2s", "2dlas(thresholds=3s/9s,quantum=2s)", "stride:quantum=2s", "aging(srtf:quantum=4s,max_wait=12s)",
    "fair(srtf:quantum=3s,by=user)",
)  # fmt: skip


def workload(random: random.Random, count: int, span: int) -> list[SimJob]:
    """Draw jobs of whole seconds, in epochs of whole seconds; many come at the same time."""
    jobs = []
    for index in range(count):
        epochs, epoch = random.randint(1, 4), random.randint(1, 5)
        jobs.append(
            SimJob(
                id=f"j{index:02}",
                submit_time=float(random.randrange(span)),
                seconds=float(epochs * epoch),
                num_epochs=epochs,
                steps_total=epochs * epoch,
                user=random.choice("xyz"),
                priority=random.randrange(3),
                weight=float(random.choice((1, 1, 2))),
            )
        )
    return jobs


@pytest.mark.parametrize("spelling", POLICIES)
def test_it_agrees_with_a_simulator_that_goes_tick_by_tick(spelling: str) -> None:
    # where two units on a slot reach twice the speed of one, all that happens happens at whole seconds: not a tick apart
    for seed in range(15):
        draw = random.Random(seed)
        jobs = workload(draw, draw.randint(2, 12), 25)
        host = Host(slots=draw.randint(1, 3), corun=draw.choice((1.0, 2.0)), placement=draw.choice(("global", "resident")))
        outcome = simulate(jobs, create(spelling), host)
        naive = NaiveSimulator(jobs, create(spelling), host).completions()
        assert {job.id: job.completion for job in outcome.jobs} == pytest.approx(naive), (seed, host)
        assert outcome.num_wrong == 0


def test_it_agrees_within_a_step_where_units_slow_each_other_down() -> None:
    # the ticks of the other one round each completion up; a later start adds to it, job by job
    for seed in range(20):
        draw = random.Random(seed)
        jobs = workload(draw, 8, 25)
        host = Host(slots=draw.randint(1, 2), corun=draw.choice((1.2, 1.5, 1.8)))
        outcome = simulate(jobs, create("fcfs"), host)
        naive = NaiveSimulator(jobs, create("fcfs"), host, tick=1 / 32).completions()
        assert {job.id: job.completion for job in outcome.jobs} == pytest.approx(naive, abs=1.0), (seed, host)


@pytest.mark.parametrize("spelling", POLICIES)
@pytest.mark.parametrize("corun", [1.0, 1.3])
def test_work_is_neither_lost_nor_made(spelling: str, corun: float) -> None:
    jobs = workload(random.Random(7), 40, 60)
    host = Host(slots=3, corun=corun)
    outcome = simulate(jobs, create(spelling), host)
    done: dict[str, float] = defaultdict(float)
    for turn in outcome.turns:
        done[turn.unit_id] += turn.seconds
        assert turn.ended >= turn.began
    assert done == pytest.approx({job.id: job.seconds for job in jobs})
    # and in all: busy slots times their speed
    instants = sorted({instant for turn in outcome.turns for instant in (turn.began, turn.ended)})
    total = 0.0
    for began, ended in pairwise(instants):
        on = [turn.slot_id for turn in outcome.turns if turn.began <= began and turn.ended >= ended]
        assert all(on.count(slot) <= host.corun_limit for slot in on)
        total += (ended - began) * sum(corun if on.count(slot) == 2 else 1.0 for slot in set(on))
    assert total == pytest.approx(sum(job.seconds for job in jobs))


def mean_completion(jobs: list[SimJob], spelling: str) -> float:
    return fmean(job.completion_seconds for job in simulate(jobs, create(spelling), Host()).jobs)


def test_no_policy_has_a_smaller_mean_than_shortest_remaining_time_on_one_slot() -> None:
    for seed in range(10):
        jobs = workload(random.Random(seed), 12, 40)
        best = mean_completion(jobs, "srtf:quantum=1000s")
        assert all(mean_completion(jobs, spelling) >= best - 1e-9 for spelling in POLICIES)


def test_shortest_job_first_is_the_best_of_all_orders_of_jobs_that_come_together() -> None:
    for seed in range(10):
        jobs = workload(random.Random(seed), 5, 1)
        orders = permutations(job.seconds for job in jobs)
        assert mean_completion(jobs, "sjf:length=seconds") == pytest.approx(min(fmean(accumulate(order)) for order in orders))


@pytest.mark.parametrize("policy", ["srtf:quantum={}s", "las:quantum={}s", "stride:quantum={}s", "aging(srtf:quantum={}s)"])
def test_time_has_no_unit_but_its_own(policy: str) -> None:
    jobs = [replace(job, num_epochs=1, steps_total=None) for job in workload(random.Random(3), 20, 40)]
    slower = [replace(job, submit_time=8 * job.submit_time, seconds=8 * job.seconds) for job in jobs]
    fast = simulate(jobs, create(policy.format(2)), Host(slots=2))
    slow = simulate(slower, create(policy.format(16)), Host(slots=2))
    assert [job.completion for job in slow.jobs] == pytest.approx([8 * job.completion for job in fast.jobs])
