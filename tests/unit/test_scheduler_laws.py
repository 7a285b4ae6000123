"""The laws over every built-in scheduler, and what each of them promises beyond; a new policy is one more spelling."""

from __future__ import annotations

import dataclasses
import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.base import JobView, Observes, SlotView, WorkerLost
from schedulers.registry import BUILT_INS, create
from schedulers.testing.cases import UNITS, workloads
from schedulers.testing.laws import SchedulerLaws
from schedulers.testing.run import SimulatedRun, Turn, completions

SPELLINGS = [
    "fcfs",
    "priority",
    "priority:preempt=step",
    "sjf",
    "sjf:length=seconds",
    "round-robin:quantum=2epochs",
    "default",
    "srtf",
    "hrrn",
    "las",
    "2dlas(promote=2,quantum=3s)",
    "stride",
    "drr:quantum=3s",
    "drr:quantum=2steps",
    "edf",
    "aging(fair(srtf),max_wait=5s)",
    "fair(priority)",
]
PAPER = ["fcfs", "priority", "sjf", "sjf:length=epochs", "round-robin", "round-robin:quantum=7"]
ROTATING = [spelling for spelling in PAPER if isinstance(create(spelling), Observes)]

law = settings(max_examples=20, deadline=None)  # a busy machine breaks no law


class TestBuiltIns(SchedulerLaws):
    spellings = SPELLINGS


def test_every_built_in_policy_is_under_law():
    assert {name for spelling in SPELLINGS for name in re.findall(r"[\w-]+", spelling)} >= set(BUILT_INS)


def turns_of(spelling, units, num_slots=1, cuts=None, **more) -> list[Turn]:
    scheduler = create(spelling)
    return SimulatedRun(scheduler=scheduler, units=units, num_slots=num_slots, cuts=cuts or {}, **more).to_the_end()


# ---- the paper's four ----

losses = st.dictionaries(st.integers(0, 12), st.just(WorkerLost), max_size=4)


@pytest.mark.parametrize("spelling", PAPER)
@law
@given(units=workloads(), cuts=losses)
def test_a_unit_whose_turn_was_cut_by_a_lost_worker_goes_on_first(spelling, units, cuts):
    if spelling == "priority":  # there a more urgent arrival may come first
        units = [dataclasses.replace(unit, priority=0) for unit in units]
    turns = turns_of(spelling, units, cuts=cuts)
    for turn, following in itertools.pairwise(turns):
        if turn.cut is not None and turn.unit_after.steps_done < turn.unit.steps_total:
            assert following.unit.id == turn.unit.id


@pytest.mark.parametrize("spelling", [spelling for spelling in PAPER if spelling not in ROTATING])
@law
@given(units=workloads(), num_slots=st.integers(1, 3))
def test_a_unit_granted_until_done_is_not_interrupted(spelling, units, num_slots):
    assert len(turns_of(spelling, units, num_slots)) == len(units)


@pytest.mark.parametrize("spelling", ROTATING)
@law
@given(units=workloads())
def test_nobody_waits_longer_than_one_turn_of_each_who_was_there_before(spelling, units):
    units = [dataclasses.replace(unit, priority=0) for unit in units]
    turns = turns_of(spelling, units)
    waits_since = {unit.id: unit.submit_time for unit in units}
    for number, turn in enumerate(turns):
        since = waits_since[turn.unit.id]
        overtaking = [other.unit for other in turns[:number] if other.began >= since]
        assert len({unit.id for unit in overtaking}) == len(overtaking)
        assert all(unit.submit_time <= since for unit in overtaking)
        waits_since[turn.unit.id] = turn.ended


@law
@given(units=workloads())
def test_fcfs_never_reorders(units):
    began = [turn.unit for turn in turns_of("fcfs", units)]
    assert [unit.id for unit in began] == [unit.id for unit in sorted(units, key=lambda unit: (unit.submit_time, unit.id))]


@pytest.mark.parametrize("spelling", ["priority", "priority:preempt=step"])
@law
@given(units=workloads())
def test_priority_never_begins_a_turn_of_a_lower_class_while_a_higher_one_waits(spelling, units):
    turns = turns_of(spelling, units)
    done_at = completions(turns)
    for turn in turns:
        waiting = [unit for unit in units if unit.submit_time <= turn.began < done_at[unit.id]]
        assert turn.unit.priority == min(unit.priority for unit in waiting)


@law
@given(units=workloads())
def test_preempting_priority_runs_a_lower_class_for_at_most_a_step_while_a_higher_one_is_ready(units):
    for turn in turns_of("priority:preempt=step", units):
        urgent = [unit.submit_time for unit in units if unit.priority < turn.unit.priority and unit.submit_time > turn.began]
        assert turn.ended < min(urgent, default=turn.ended) + turn.step_seconds


# ---- least mean completion time ----


@law
@given(epochs=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_sjf_has_the_least_mean_completion_time_of_all_orders(epochs):
    units = [JobView(id=UNITS[index], submit_time=0, num_epochs=count, steps_total=count) for index, count in enumerate(epochs)]
    best = min(sum(itertools.accumulate(order)) for order in itertools.permutations(epochs))
    assert sum(turn.ended for turn in turns_of("sjf:length=epochs", units)) == best


single_steps = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=6).map(
    lambda rows: [
        JobView(id=UNITS[index], submit_time=arrival, steps_total=steps, num_epochs=steps, step_seconds=1)
        for index, (arrival, steps) in enumerate(rows)
    ]
)
PREEMPTING = [
    "srtf:quantum=1s",
    "fcfs",
    "sjf:length=epochs",
    "hrrn:quantum=1s",
    "las:quantum=1s",
    "stride:quantum=1s",
    "round-robin",
]


@law
@given(units=single_steps)
def test_srtf_has_the_least_mean_completion_time_of_all_policies(units):
    mean = {spelling: sum(completions(turns_of(spelling, units)).values()) for spelling in PREEMPTING}
    assert mean["srtf:quantum=1s"] == min(mean.values())


@law
@given(units=single_steps, factor=st.integers(2, 9))
def test_scaling_all_times_scales_all_completions(units, factor):
    slow = [
        dataclasses.replace(unit, submit_time=factor * unit.submit_time, step_seconds=factor * unit.step_seconds)
        for unit in units
    ]
    for spelling in ["srtf:quantum={}s", "hrrn:quantum={}s", "2dlas:quantum={}s", "stride:quantum={}s", "drr:quantum={}s"]:
        done, later = (completions(turns_of(spelling.format(2 * by), jobs)) for by, jobs in ((1, units), (factor, slow)))
        assert later == {name: factor * at for name, at in done.items()}


# ---- shares ----


@law
@given(steps=st.lists(st.sampled_from([1, 2, 3, 7]), min_size=2, max_size=5), quantum=st.integers(1, 9), arrivals=st.booleans())
def test_drr_lets_nobody_get_ahead_by_more_than_a_quantum_and_two_steps(steps, quantum, arrivals):
    units = [
        JobView(id=UNITS[index], submit_time=5 * index * arrivals, step_seconds=seconds, steps_total=60)
        for index, seconds in enumerate(steps)
    ]
    turns = turns_of(f"drr:quantum={quantum}s", units)
    start, stop = units[-1].submit_time, min(completions(turns).values())
    had = {unit.id: 0 for unit in units}
    for turn in turns:
        if start <= turn.began and turn.ended < stop:
            had[turn.unit.id] += turn.seconds
            assert max(had.values()) - min(had.values()) <= quantum + 2 * max(steps)


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("spelling", ["fair(fcfs)", "fair(srtf)", "aging(fair(las),weight=0)"])
def test_fair_shares_come_nearer_to_the_weights_with_time(spelling, weights):
    units = [
        JobView(
            id=f"{user}-{number}",
            submit_time=0,
            user_shares=((user, 1.0),),
            weight=weight,
            steps_total=2,
            step_seconds=1,
        )
        for user, weight in zip("abc", weights, strict=True)
        for number in range(50 * weight)
    ]
    had = dict.fromkeys("abc", 0)
    for number, turn in enumerate(turns_of(spelling, units)[:150]):
        had[turn.unit.id[0]] += turn.seconds
        ideal = {user: sum(had.values()) * weight / sum(weights) for user, weight in zip("abc", weights, strict=True)}
        # a bound that does not grow: so the deviation shrinks
        assert all(abs(had[user] - ideal[user]) <= 2 * turn.seconds for user in had)
        if number >= 75:
            assert all(abs(had[user] / ideal[user] - 1) <= 0.1 for user in had)


def test_an_owner_who_was_away_has_saved_no_credit():
    def jobs(user: str, at: int, count: int) -> list[JobView]:
        return [
            JobView(id=f"{user}{at}-{number}", submit_time=at, user_shares=((user, 1.0),), step_seconds=1)
            for number in range(count)
        ]

    turns = turns_of("fair(fcfs)", [*jobs("a", 0, 100), *jobs("b", 0, 2), *jobs("b", 50, 20)])
    after = [turn.unit.id[0] for turn in turns if 50 <= turn.began < 70]
    assert after.count("b") == 10


# ---- deadlines ----


@law
@given(jobs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20)), min_size=1, max_size=5))
def test_edf_meets_all_deadlines_whenever_some_order_does(jobs):
    units = [
        JobView(id=UNITS[index], submit_time=0, steps_total=steps, step_seconds=1, deadline=deadline)
        for index, (steps, deadline) in enumerate(jobs)
    ]
    done = completions(turns_of("edf:quantum=1s", units))
    some_order_does = any(
        all(at <= deadline for at, (_, deadline) in zip(itertools.accumulate(steps for steps, _ in order), order, strict=True))
        for order in itertools.permutations(jobs)
    )
    assert all(done[unit.id] <= unit.deadline for unit in units) == some_order_does


@law
@given(
    jobs=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(1, 25)), min_size=1, max_size=6),
    num_slots=st.integers(1, 2),
)
def test_whom_edf_accepts_is_done_in_time(jobs, num_slots):
    units = sorted(
        (
            JobView(id=UNITS[index], submit_time=arrival, steps_total=steps, step_seconds=1, deadline=arrival + allowed)
            for index, (arrival, steps, allowed) in enumerate(jobs)
        ),
        key=lambda unit: (unit.submit_time, unit.id),
    )
    admitted: list[JobView] = []
    for unit in units:
        # what is left of the others when it comes: as it would be without it
        turns = turns_of("edf:quantum=1s", admitted, num_slots, moves=True)
        left = [_left_of(other, turns, unit.submit_time) for other in admitted]
        slots = [SlotView(id=index) for index in range(num_slots)]
        if create("edf").refusal(unit.submit_time, unit, [other for other in left if other.remaining_seconds], slots) is None:
            admitted.append(unit)
    done = completions(turns_of("edf:quantum=1s", admitted, num_slots, moves=True))
    assert all(done[unit.id] <= unit.deadline for unit in admitted)


def _left_of(unit: JobView, turns: list[Turn], now: float) -> JobView:
    steps = sum(min(turn.ended, now) - turn.began for turn in turns if turn.unit.id == unit.id and turn.began < now)
    return dataclasses.replace(unit, steps_done=steps)


# ---- the golden case: the paper's scheduling experiment ----

GOLDEN_JOBS = [
    JobView(id=name, submit_time=0, num_epochs=epochs, steps_total=epochs, step_seconds=Fraction(seconds), **more)
    for name, epochs, seconds, more in [
        ("LeNet", 10, "2.7", {"priority": 2, "num_parameters": 44_426}),
        ("ResNet18", 25, "10.8", {"priority": 1, "num_parameters": 11_173_962}),
        ("ResNet50", 50, "17.4", {"priority": 0, "num_parameters": 23_520_842}),
    ]
]
SHORTEST_FIRST = {"LeNet": "27", "ResNet18": "297", "ResNet50": "1167", "mean": "497"}


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("fcfs", SHORTEST_FIRST),
        ("sjf:length=epochs", SHORTEST_FIRST),
        ("sjf:length=parameters", SHORTEST_FIRST),
        ("sjf:length=seconds", SHORTEST_FIRST),
        ("srtf", SHORTEST_FIRST),
        ("round-robin", {"LeNet": "280.8", "ResNet18": "714.6", "ResNet50": "1167", "mean": "720.8"}),
        ("priority", {"LeNet": "1167", "ResNet18": "1140", "ResNet50": "870", "mean": "1059"}),
    ],
)
def test_golden_case_of_the_paper(spelling, expected):
    done = completions(turns_of(spelling, GOLDEN_JOBS))
    assert {**done, "mean": sum(done.values()) / 3} == {name: Fraction(time) for name, time in expected.items()}
