"""Each policy on three or four jobs, worked out by hand."""

from __future__ import annotations

import re

import pytest

from schedulers.base import JobView, SchedulerConfigError, SlotView
from schedulers.needs import check_needs
from schedulers.registry import create, listed
from schedulers.testing.run import SimulatedRun


def unit(name: str, submit_time: float, steps: int, **more) -> JobView:
    return JobView(id=name, submit_time=submit_time, steps_total=steps, num_epochs=steps, **({"step_seconds": 1} | more))


ABC = [unit("a", 0, 6), unit("b", 1, 2), unit("c", 3, 3)]
ONE_SLOT = [SlotView(id=0)]


@pytest.mark.parametrize(
    ("spelling", "units", "turns"),
    [
        ("srtf:quantum=10s", ABC, "a1 b2 c3 a5"),
        # at 1, a is left 5 of its age 1 and length 6, b 2 of 2; at 6, b 2 of 7, c 3 of 6
        ("hrrn:quantum=10s", ABC, "a6 b2 c3"),
        ("las:quantum=2s", ABC, "a1 b2 c2 a2 c1 a2 a1"),
        # a is in queue 1 from 2 on, c from 6 on, a in queue 2 from 8 on
        ("2dlas(thresholds=2s/4s,quantum=2s)", ABC, "a2 b2 c2 a2 c1 a2"),
        # the same, until b is done: from then on the median is what b had; a's third turn is in queue 1 with c's second
        ("2dlas(quantum=2s)", ABC, "a2 b2 c2 a2 a2 c1"),
        ("stride:quantum=2s", [unit("a", 0, 6, weight=2.0), *ABC[1:]], "a2 b2 c2 a2 a2 c1"),
        # x saves 1 s in round 1, and has 4 s in round 2
        ("drr:quantum=3s", [unit("x", 0, 4, step_seconds=2), unit("y", 0, 3, step_seconds=3)], "x2 y3 x4 y3 x2 y3"),
        # z saves for two rounds
        ("drr:quantum=2s", [unit("x", 0, 4, step_seconds=1), unit("z", 0, 2, step_seconds=4)], "x2 x2 z4 z4"),
        ("drr:quantum=2steps", [unit("x", 0, 4, weight=2.0), unit("y", 0, 4)], "x4 y2 y2"),
        (
            "edf:quantum=10s",
            [unit("a", 0, 6, deadline=20), unit("b", 1, 2, deadline=5), unit("c", 3, 3),
             unit("d", 3, 1, deadline=4, is_deadline_soft=True)],
            "a1 b2 a5 d1 c3",
        ),
        (
            "priority:preempt=step",
            [unit("a", 0, 6, priority=2, steps_per_epoch=2), unit("b", 1, 2, priority=1, steps_per_epoch=2),
             unit("c", 3, 3, priority=2, steps_per_epoch=2)],
            "a1 b2 a1 c2 a2 c1 a2",
        ),
        ("sjf:length=seconds", [unit("a", 0, 60, step_seconds=None), unit("b", 0, 10)], "a50 b10 a10"),
        ("aging(srtf:quantum=2s,weight=1)", [unit("a", 0, 5), unit("b", 1, 2), unit("c", 3, 3)], "a1 b2 a2 a2 c2 c1"),
        # at 6, a has waited since 1 and b since 2
        (
            "aging(srtf:quantum=2s,weight=0,max_wait=4s)",
            [unit("a", 0, 6), unit("b", 1, 4), unit("c", 2, 2), unit("d", 3, 2)],
            "a1 b1 c2 d2 a2 b2 b1 a2 a1",
        ),
        (
            "fair(fcfs)",
            [unit("a", 0, 2, user_shares=(("u", 1.0),)), unit("b", 0, 2, user_shares=(("u", 1.0),)),
             unit("c", 0, 2, user_shares=(("v", 1.0),)), unit("d", 1, 4, user_shares=(("v", 1.0),))],
            "a2 c2 b2 d4",
        ),
        # the stack s costs u and v 3 s each; w has had nothing
        (
            "fair(fcfs)",
            [unit("s", 0, 6, user_shares=(("u", 0.5), ("v", 0.5))), unit("a", 1, 4, user_shares=(("u", 1.0),)),
             unit("b", 2, 3, user_shares=(("w", 1.0),)), unit("c", 2, 2, user_shares=(("v", 1.0),))],
            "s6 b3 a4 c2",
        ),
    ],
)  # fmt: skip
def test_turns_worked_out_by_hand(spelling, units, turns):
    took = SimulatedRun(scheduler=create(spelling), units=units).to_the_end()
    assert " ".join(f"{turn.unit.id}{turn.seconds}" for turn in took) == turns


# ---- the test at the door ----

HELD = unit("held", 0, 4, deadline=5)


@pytest.mark.parametrize(
    ("left", "deadline", "accepted", "num_slots", "said"),
    [
        (1, 5, [HELD], 1, None),
        (2, 6, [HELD], 1, None),
        (2, 5, [HELD], 2, None),
        (2, None, [HELD], 1, None),
        (2, 5, [HELD], 1, "would be met only in 6 s; the earliest deadline that would be met is in 6 s"),
        (2, 3, [HELD], 1, "would make held late; the earliest deadline that would be met is in 6 s"),
        (2, 1, [unit("held", 0, 4, deadline=10)], 1, "met only in 2 s; the earliest deadline that would be met is in 2 s"),
        # who is late already, whose length is not known, or who only wishes, is no reason
        (2, 3, [unit("late", 0, 40, deadline=5)], 1, None),
        (2, 3, [unit("unknown", 0, 4, deadline=5, step_seconds=None)], 1, None),
        (2, 2, [unit("soft", 0, 4, deadline=1, is_deadline_soft=True)], 1, None),
    ],
)
def test_edf_refuses_what_would_be_late_and_says_what_would_not(left, deadline, accepted, num_slots, said):
    slots = [SlotView(id=index) for index in range(num_slots)]
    refusal = create("edf").refusal(0.0, unit("new", 0, left, deadline=deadline), accepted, slots)
    assert refusal is None if said is None else refusal.endswith(said)


def test_edf_names_other_jobs_to_their_own_user_only():
    other = unit("new", 0, 2, deadline=3, user_shares=(("ben", 1.0),))
    assert "that would make another user's job late" in create("edf").refusal(0.0, other, [HELD], ONE_SLOT)


def test_edf_wants_to_know_the_length_first():
    refusal = create("edf").refusal(0.0, unit("new", 0, 3, deadline=9, step_seconds=None), [], ONE_SLOT)
    assert refusal == "a deadline, but its length is not known: its step time must be measured first"


def test_a_soft_deadline_is_never_refused():
    assert create("edf").refusal(0.0, unit("new", 0, 3, deadline=1, is_deadline_soft=True), [HELD], ONE_SLOT) is None


# ---- memory and wrappers ----


def test_priority_stops_the_newest_of_the_lowest_class_and_nobody_of_its_own():
    running = [unit(name, at, 9, priority=priority, slot_id=index)
               for index, (name, at, priority) in enumerate([("old", 0, 5), ("new", 2, 5), ("equal", 3, 1)])]  # fmt: skip
    slots = [SlotView(id=index, running=(view.id,)) for index, view in enumerate(running)]
    urgent = unit("urgent", 4, 9, priority=1)
    assert create("priority:preempt=step").victims(5.0, running, [urgent], slots) == ["new"]
    assert create("priority").victims(5.0, running, [urgent], slots) == []


@pytest.mark.parametrize("spelling", ["aging(fcfs)", "fair(stride)", "aging(aging(priority))"])
def test_a_wrapper_stops_nobody_unless_the_inner_policy_does(spelling):
    running, slots = [unit("a", 5, 9, slot_id=0, has_begun=True)], [SlotView(id=0, running=("a",))]
    assert create(spelling).victims(10.0**9, running, [unit("b", 0, 1, priority=-1)], slots) == []


def test_a_long_turn_does_not_promote_who_has_it():
    running = [unit("long", 0, 10**6, slot_id=0, waiting_since=0.0)]
    slots = [SlotView(id=0, running=("long",))]
    assert create("aging(srtf,weight=0,max_wait=5s)").victims(100.0, running, [unit("brief", 99, 1)], slots) == ["long"]


# ---- what decides is said ----


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("fcfs", "it came 10 s ago"),
        ("srtf", "7 s are left of it"),
        ("hrrn", "7 s left / (10 s of age + length) = 0.368"),
        ("las", "it has had 2 s of a slot"),
        ("2dlas:thresholds=1s/1h", "it is in queue 1, having had 2 s (limits 1 s/1 h 00 min)"),
        ("2dlas:promote=4", "it is back in queue 0, for it has waited 10 s"),
        ("stride", "0 s of slot time count for it at weight 3"),
        ("drr:quantum=1s", "its next turn is in round 1, of 3 s"),
        ("edf", "its deadline is in 20 s, 7 s are left of it"),
        ("priority", "its priority is 4"),
        ("sjf:length=seconds", "its length is 9 s"),
        ("aging(srtf)", "7 s are left of it; the shortest goes first; its age of 10 s counts for 1 less"),
        ("aging(srtf,max_wait=8s)", "it has waited 10 s, 8 s or longer, and so comes before all others"),
        ("fair(srtf)", "0 s of slot time count for its owner 'u', the least goes first; 7 s are left of it"),
    ],
)
def test_an_explanation_names_what_decides(spelling, said):
    view = unit("a", 0, 9, steps_done=2, attained_seconds=2.0, weight=3.0, deadline=30, priority=4, user_shares=(("u", 1.0),))
    assert said in create(spelling).explain(view, 10.0)


def test_an_explanation_of_a_stack_tells_its_owners_nothing_of_each_other():
    stack = unit("a", 0, 9, user_shares=(("ann", 0.5), ("ben", 0.5)))
    assert create("fair(srtf)").explain(stack, 10.0).startswith("0 s of slot time count for its owners, the least goes first")


def test_a_deadline_that_has_passed_is_said_to_have_passed():
    assert create("edf").explain(unit("late", 0, 9, deadline=30), 60.0).startswith("its deadline was 30 s ago")


def test_an_estimate_of_nothing_that_was_overrun_on_arrival_is_ordered_too():
    spent = unit("spent", 0, 1, step_seconds=None, estimate_seconds=0.0, attained_seconds=3.0)
    [grant] = create("hrrn").select(0.0, [spent], ONE_SLOT)
    assert grant.unit_id == "spent"


@pytest.mark.parametrize("spelling", ["srtf", "hrrn", "edf", "sjf:length=seconds"])
def test_who_is_yet_to_be_measured_comes_first_for_a_few_steps(spelling):
    unknown = unit("new", 5, 10**6, step_seconds=None, deadline=1)
    [grant] = create(spelling).select(9.0, [unit("a", 0, 1, deadline=2), unknown], ONE_SLOT)
    assert (grant.unit_id, grant.quantum.count) == ("new", 50)
    assert "step time is yet to be measured" in create(spelling).explain(unknown, 9.0)


# ---- spelling ----


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("aging(srtf", "scheduler 'aging(srtf': its brackets do not match; expected e.g. aging(srtf,weight=0.1)"),
        ("aging(srtf))", "its brackets do not match"),
        ("aging(srtf)x", "its brackets do not match"),
        ("aging(fair(srtf)", "1 of its brackets are not closed"),
        ("srtf)", "its brackets do not match"),
        ("aging", "scheduler 'aging' wraps another: write e.g. aging(srtf)"),
        ("aging()", "scheduler 'aging' wraps another"),
        ("aging(srtf,)", "scheduler 'aging': expected option=value, got ''"),
        ("aging(weight=1)", "scheduler 'aging' wraps another"),
        ("aging(stf)", "no scheduler is called 'stf'; did you mean 'srtf'?"),
        ("aging(srtf,fcfs)", "scheduler 'aging': expected option=value, got 'fcfs'"),
        ("aging(srtf,wait=1h)", "scheduler 'aging' has no option 'wait'; did you mean 'max_wait'?"),
        ("aging(srtf,inner=fcfs)", "scheduler 'aging' has no option 'inner'"),
        ("aging(srtf,max_wait=long)", "option 'max_wait': expected a time such as 500ms, 2s, 10min, 72h or 3d, got 'long'"),
        ("aging(srtf,weight=-1)", "option 'weight': expected a number from 0 on, got '-1'"),
        ("aging(srtf:quantum=0s)", "scheduler 'aging(srtf:quantum=0s)': a quantum lasts a positive number of seconds"),
        ("aging:weight=1(srtf)", "scheduler 'aging': its options go into its brackets, got 'weight=1' before them"),
        ("fcfs(srtf)", "scheduler 'fcfs' is no wrapper: it holds no other such as 'srtf'"),
        ("fair(srtf,by=group)", "option 'by': expected user, got 'group'"),
        ("2dlas:thresholds=2s/1s", "option 'thresholds': expected rising times such as 60s/10min/2h, got '2s/1s'"),
        ("priority:preempt=now", "option 'preempt': expected epoch or step, got 'now'"),
        ("srtf:quantum=1e999s", "a quantum lasts a positive number of seconds, got inf (at most 1e+15)"),
        ("drr:quantum=" + "9" * 400, "a quantum lasts a positive number of steps, got 999"),
        ("aging(" * 10_000 + "srtf" + ")" * 10_000, "...: expected at most 500 letters, got 70004"),
        ("builtins:SystemExit", "expected a class whose options can be told, got <class 'SystemExit'>"),
        ("uuid:UUID", "scheduler 'uuid:UUID' cannot be built: TypeError: one of"),
        ("drr:quantum=1epoch", "option 'quantum': expected a time or a number of steps, got '1epoch'"),
    ],
)
def test_wrong_spellings_say_what_would_have_been_right(spelling, message):
    with pytest.raises(SchedulerConfigError, match=re.escape(message)):
        create(spelling)


def test_defaults_reach_every_scheduler_that_has_the_option_and_was_not_given_it():
    scheduler = create("aging(fair(srtf))", {"quantum": "60s", "weight": "0.5", "thresholds": "1s"})
    assert (scheduler.weight, scheduler.inner.inner.quantum.count) == (0.5, 60.0)
    assert create("aging(srtf:quantum=7s,weight=1)", {"quantum": "60s", "weight": "0.5"}).inner.quantum.count == 7.0
    assert create("default", {"quantum": "60s"}).inner.quantum.count == 60.0


def test_the_default_ages_srtf():
    scheduler = create("default")
    assert (scheduler.weight, scheduler.max_wait) == (0.1, 72 * 3600)
    assert type(scheduler.inner) is type(create("srtf"))


# ---- needs ----


def test_a_lacking_field_is_named_with_the_policy_and_with_who_lacks_it():
    with pytest.raises(SchedulerConfigError, match=r"'edf' decides by deadline, which trace 'openb' lacks"):
        check_needs("edf", create("edf").needs, {"step_seconds"}, "trace 'openb'")
    check_needs("edf", create("edf").needs, {"step_seconds", "deadline"}, "trace 'openb'")


@pytest.mark.parametrize("needs", [None, "deadline", {"deadline"}, frozenset({1})])
def test_needs_that_are_no_set_of_names_are_an_error(needs):
    with pytest.raises(SchedulerConfigError, match="'own': expected needs, a frozenset of fields of JobView, got"):
        check_needs("own", needs, set(), "job 'a'")


def test_a_need_that_no_unit_has_is_an_error():
    with pytest.raises(SchedulerConfigError, match=r"'own' needs the field 'step_second', .* mean 'step_seconds'\?"):
        check_needs("own", frozenset({"step_second"}), {"step_second"}, "job 'a'")


def test_the_list_says_what_each_decides_by():
    needs = {one.name: one.needs for one in listed()}
    assert needs["default"] == ("step_seconds",)
    assert needs["edf"] == ("deadline", "step_seconds")
    assert needs["aging"] == ("those of the inner one",)
