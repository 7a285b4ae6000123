"""Slots and threads against brute force, and memory that is never exceeded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unified.packing import Demand, JobCost, Plan, Stage, admits, plan_devices, plan_slots, why_not

law = settings(max_examples=200, deadline=None)  # a busy machine breaks no law
GIB = 2**30


def job(name: str, **seconds: float) -> JobCost:
    """``job("a", t1=10, t2=6)``: 10 s with one thread, 6 s with two."""
    return JobCost(name=name, seconds_by_threads={int(key[1:]): value for key, value in seconds.items()})


@st.composite
def batches(draw: st.DrawFn, max_jobs: int = 6) -> tuple[list[JobCost], int, list[str]]:
    """Jobs, cores and an order; with gains from threads that are small, none, or a loss."""
    cores = draw(st.integers(1, 9))
    names = [f"job-{index}" for index in range(draw(st.integers(1, max_jobs)))]
    seconds = st.integers(0, 60)
    counts = sorted({1, cores} | draw(st.sets(st.integers(1, cores), max_size=2)))
    costs = [JobCost(name=name, seconds_by_threads={count: draw(seconds) for count in counts}) for name in names]
    return costs, cores, draw(st.permutations(names))


def makespan(plan: Plan, costs: list[JobCost], *, sliceable: bool) -> float:
    """Carry a plan out by hand: whoever is free takes the next job of its stage; stages wait for each other."""
    by_name = {cost.name: cost for cost in costs}
    total = 0.0
    for stage in plan.stages:
        times = [by_name[name].seconds(stage.threads) for name in stage.jobs]
        free_at = [0.0] * stage.slots
        for seconds in times:
            free_at[free_at.index(min(free_at))] += seconds
        total += max([*times, sum(times) / stage.slots]) if sliceable else max(free_at)
    return total


def one_stage(threads: int, slots: int, names: list[str]) -> Plan:
    stage = Stage(threads=threads, slots=slots, jobs=tuple(names))
    return Plan(stages=(stage,), predicted_seconds=None, reason="")


@law
@given(batch=batches(), sliceable=st.booleans())
def test_every_job_is_in_exactly_one_stage_in_the_policys_order(batch, sliceable):
    costs, cores, order = batch
    plan = plan_slots(costs, cores, order=order, sliceable=sliceable)
    assert sorted(name for stage in plan.stages for name in stage.jobs) == sorted(order)
    assert plan.stages[0].jobs[0] == order[0]
    for stage in plan.stages:
        assert list(stage.jobs) == sorted(stage.jobs, key=order.index)
        assert 1 <= stage.slots <= len(stage.jobs)
        assert stage.threads * stage.slots <= cores
    assert plan.threads_by_job == {name: stage.threads for stage in plan.stages for name in stage.jobs}


@law
@given(batch=batches(), sliceable=st.booleans())
def test_the_prediction_is_what_carrying_the_plan_out_takes(batch, sliceable):
    costs, cores, order = batch
    plan = plan_slots(costs, cores, order=order, sliceable=sliceable)
    assert plan.predicted_seconds == pytest.approx(makespan(plan, costs, sliceable=sliceable))


@law
@given(batch=batches(max_jobs=12), sliceable=st.booleans())
def test_no_plan_is_slower_than_all_wide_or_all_narrow(batch, sliceable):
    costs, cores, order = batch
    plan = plan_slots(costs, cores, order=order, sliceable=sliceable)
    for threads in (1, cores):
        plain = one_stage(threads, cores // threads, order)
        assert plan.predicted_seconds <= makespan(plain, costs, sliceable=sliceable) + 1e-6


@law
@given(batch=batches(max_jobs=5), sliceable=st.booleans())
def test_the_plan_is_the_best_of_all_choices_of_longest_jobs_and_threads(batch, sliceable):
    costs, cores, order = batch
    choices = {count for count in (1, 2, 4, 8, cores) if count <= cores}
    for threads in choices:  # among equally long jobs it would be open which one is wide
        assume(len({cost.seconds(threads) for cost in costs}) == len(costs))
    best = float("inf")
    for threads, num_wide in itertools.product(choices, range(len(costs) + 1)):
        times = {cost.name: cost.seconds(threads) for cost in costs}
        for wide in itertools.combinations(order, num_wide):
            rest = [name for name in order if name not in wide]
            if wide and rest and min(times[name] for name in wide) < max(times[name] for name in rest):
                continue  # not the longest ones
            stages = one_stage(cores, 1, list(wide)).stages + one_stage(threads, cores // threads, rest).stages
            plan = Plan(stages=tuple(stage for stage in stages if stage.jobs), predicted_seconds=None, reason="")
            best = min(best, makespan(plan, costs, sliceable=sliceable))
    planned = plan_slots(costs, cores, order=order, sliceable=sliceable)
    assert planned.predicted_seconds == pytest.approx(best)


@law
@given(batch=batches(), sliceable=st.booleans(), slots=st.integers(1, 12), threads=st.none() | st.integers(1, 12))
def test_slots_that_are_asked_for_are_given(batch, sliceable, slots, threads):
    costs, cores, order = batch
    plan = plan_slots(costs, cores, order=order, slots=slots, threads=threads, sliceable=sliceable)
    [stage] = plan.stages
    assert stage == Stage(threads=threads or max(1, cores // slots), slots=slots, jobs=tuple(order))
    assert plan.predicted_seconds == pytest.approx(makespan(plan, costs, sliceable=sliceable))


def stages_of(plan: Plan) -> list[tuple[int | None, int, str]]:
    return [(stage.threads, stage.slots, " ".join(stage.jobs)) for stage in plan.stages]


def test_balanced_jobs_get_one_thread_each():
    costs = [job(name, t1=10, t2=6.5) for name in "abcd"]
    plan = plan_slots(costs, 2, order="abcd")
    assert stages_of(plan) == [(1, 2, "a b c d")]
    assert plan.predicted_seconds == 20
    assert plan.reason == "2 slots of 1 thread: 20.0 s predicted, against 26.0 s on 1 slot of 2 threads"


def test_a_job_longer_than_all_others_gets_all_threads_after_the_rest():
    costs = [job("lenet", t1=10, t2=9), job("resnet18", t1=12, t2=8), job("resnet50", t1=100, t2=60)]
    plan = plan_slots(costs, 2, order=["lenet", "resnet18", "resnet50"])
    assert stages_of(plan) == [(1, 2, "lenet resnet18"), (2, 1, "resnet50")]
    assert plan.predicted_seconds == 72
    assert plan.reason.startswith("2 jobs on 2 slots of 1 thread, then resnet50 on 1 slot of 2 threads: 72.0 s")


def test_the_wide_stage_goes_first_if_the_policy_begins_with_its_job():
    costs = [job("lenet", t1=10, t2=9), job("resnet18", t1=12, t2=8), job("resnet50", t1=100, t2=60)]
    plan = plan_slots(costs, 2, order=["resnet50", "lenet", "resnet18"])
    assert stages_of(plan) == [(2, 1, "resnet50"), (1, 2, "lenet resnet18")]


def test_a_job_alone_gets_all_threads_only_if_they_make_it_faster():
    assert stages_of(plan_slots([job("a", t1=10, t8=4)], 8, order="a")) == [(8, 1, "a")]
    assert stages_of(plan_slots([job("a", t1=10, t8=11)], 8, order="a")) == [(1, 1, "a")]


def test_as_many_jobs_as_half_the_cores_get_two_threads_each():
    costs = [job(name, t1=10, t2=6, t4=5) for name in "ab"]
    assert stages_of(plan_slots(costs, 4, order="ab")) == [(2, 2, "a b")]


def test_a_rotating_policy_shares_the_slots_evenly():
    costs = [job(name, t1=10, t2=6.5) for name in "abc"]
    in_turn, shared = (plan_slots(costs, 2, order="abc", sliceable=rotates) for rotates in (False, True))
    assert (in_turn.predicted_seconds, stages_of(in_turn)) == (16.5, [(2, 1, "a"), (1, 2, "b c")])
    assert (shared.predicted_seconds, stages_of(shared)) == (15, [(1, 2, "a b c")])


def test_asking_for_threads_alone_gives_as_many_slots_as_the_cores_allow():
    assert stages_of(plan_slots([job("a", t1=10, t4=5)], 9, order="a", threads=4)) == [(4, 2, "a")]
    assert stages_of(plan_slots([job("a", t1=10)], 2, order="a", threads=3)) == [(3, 1, "a")]


def test_threads_by_default_do_not_depend_on_how_many_jobs_there_are():
    for jobs in ("a", "abc"):
        plan = plan_slots([job(name, t1=1) for name in jobs], 8, order=jobs, slots=2)
        assert stages_of(plan) == [(4, 2, " ".join(jobs))]
    assert stages_of(plan_slots([], 8, order=[], slots=2)) == [(4, 2, "")]


def test_no_jobs_need_no_slots():
    assert plan_slots([], 2, order=[]).stages == ()


def test_a_gpu_is_a_slot():
    plan = plan_devices(["a", "b", "c"], 2)
    assert stages_of(plan) == [(None, 2, "a b c")]
    assert plan.reason == "2 slots, one for each GPU"
    with pytest.raises(ValueError, match="at least 1 device"):
        plan_devices(["a"], 0)


@pytest.mark.parametrize(
    ("cores", "order", "options", "message"),
    [
        (0, "a", {}, "cores: expected at least 1, got 0"),
        (2, "a", {"slots": 0}, "slots: expected at least 1, got 0"),
        (2, "a", {"threads": -1}, "threads: expected at least 1, got -1"),
        (2, "ab", {}, "does not name each job once"),
        (2, "", {}, "does not name each job once"),
        (2, "aa", {}, "does not name each job once"),
    ],
)
def test_what_cannot_be_planned_is_refused(cores, order, options, message):
    with pytest.raises(ValueError, match=message):
        plan_slots([job("a", t1=1)], cores, order=order, **options)


@pytest.mark.parametrize("seconds", [{}, {2: 1.0}, {1: -1.0}, {1: float("nan")}, {1: 1.0, 2: float("inf")}])
def test_costs_are_finite_and_known_for_one_thread(seconds):
    with pytest.raises(ValueError, match="job 'a': expected finite seconds for 1 thread"):
        JobCost(name="a", seconds_by_threads=seconds)


# ---- memory ----


def needed(everyone: list[Demand]) -> int:
    """The most that is held while each one steps in turn, by hand."""
    held = sum(demand.resident_bytes for demand in everyone)
    return max(held - demand.resident_bytes + max(demand.peak_bytes, demand.resident_bytes) for demand in everyone)


demands = st.builds(Demand, resident_bytes=st.integers(0, 50), peak_bytes=st.integers(0, 100))


@law
@given(arrivals=st.lists(demands, max_size=8), capacity=st.integers(0, 200))
def test_a_slot_never_holds_more_than_fits_and_turns_away_only_what_does_not(arrivals, capacity):
    resident: list[Demand] = []
    for candidate in arrivals:
        fits = admits(candidate, resident, capacity)
        assert fits == (needed([candidate, *resident]) <= capacity)
        assert (why_not(candidate, resident, capacity) == "") == fits
        resident += [candidate] if fits else []


@law
@given(candidate=demands, resident=st.lists(demands, max_size=6), capacity=st.integers(0, 200), data=st.data())
def test_who_fits_among_many_fits_among_fewer_in_any_order(candidate, resident, capacity, data):
    if admits(candidate, resident, capacity):
        fewer = data.draw(st.permutations(resident))[: data.draw(st.integers(0, len(resident)))]
        assert admits(candidate, fewer, capacity)


def test_only_one_job_steps_at_a_time():
    two = [Demand(resident_bytes=10, peak_bytes=60)] * 2
    assert admits(Demand(resident_bytes=10, peak_bytes=90), two, 110)
    assert not admits(Demand(resident_bytes=11, peak_bytes=91), two, 110)


def test_the_reason_tells_waiting_from_never():
    small, large = (Demand(resident_bytes=GIB, peak_bytes=peak * GIB) for peak in (2, 5))
    assert why_not(small, [small], 2 * GIB) == (
        "memory: needs 3 GiB together with 1 other job, the slot has 2 GiB; waits until one of them ends"
    )
    assert why_not(large, [small], 4 * GIB) == (
        "memory: needs 5 GiB, the slot has 4 GiB; lower batch_size or use a bigger device"
    )
