"""The paper's four policies by hand, and schedulers by name."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace

import pytest

from schedulers.base import (
    Epochs,
    JobView,
    Paused,
    Scheduler,
    SchedulerConfigError,
    Seconds,
    SlotView,
    Steps,
    Submitted,
    TurnDone,
    UntilDone,
)
from schedulers.registry import BUILT_INS, available, create

# ---- policies by hand ----

A, B, C = (JobView(id=name, submit_time=0) for name in "abc")
ONE_SLOT = [SlotView(id=0)]


def order(scheduler: Scheduler, *ready: JobView) -> list[str]:
    """Who would be granted the one slot, then who if that one were not ready, and so on."""
    left, names = list(ready), []
    while left:
        [grant] = scheduler.select(0.0, left, ONE_SLOT)
        names.append(grant.unit_id)
        left = [unit for unit in left if unit.id != grant.unit_id]
    return names


def had_turn(unit: JobView, sequence: int) -> TurnDone:
    return TurnDone(unit_id=unit.id, sequence=sequence, steps=10, seconds=1.0)


def test_fcfs_goes_by_arrival_then_by_name():
    assert order(create("fcfs"), B, replace(C, submit_time=-1), A) == ["c", "a", "b"]


@pytest.mark.parametrize("spelling", ["fcfs", "sjf"])
def test_a_begun_unit_goes_on_before_an_earlier_or_shorter_one_begins(spelling):
    begun = replace(C, submit_time=5, num_parameters=10**9, has_begun=True, slot_id=0)
    assert order(create(spelling), A, B, begun) == ["c", "a", "b"]


def test_sjf_goes_by_parameters_or_by_epochs():
    small, brief = replace(B, num_parameters=1, num_epochs=9), replace(C, num_parameters=5, num_epochs=2)
    assert order(create("sjf"), small, brief) == ["b", "c"]
    assert order(create("sjf:length=epochs"), small, brief) == ["c", "b"]


def test_round_robin_sends_newcomers_and_those_who_had_a_turn_to_the_end():
    scheduler = create("round-robin")
    scheduler.on_event(Submitted(unit_id="a", sequence=0))
    scheduler.on_event(Submitted(unit_id="b", sequence=0))
    scheduler.on_event(had_turn(A, 1))
    scheduler.on_event(Submitted(unit_id="c", sequence=0))
    assert order(scheduler, A, B, C) == ["b", "a", "c"]
    scheduler.on_event(had_turn(B, 1))
    assert order(scheduler, A, B, C) == ["a", "c", "b"]


def test_round_robin_keeps_the_place_of_a_unit_whose_turn_was_cut():
    scheduler = create("round-robin")
    for event in (had_turn(A, 1), had_turn(B, 1), had_turn(C, 1), Paused(unit_id="a", sequence=2)):
        scheduler.on_event(event)
    assert order(scheduler, B, C) == ["b", "c"]
    scheduler.on_event(had_turn(B, 2))
    assert order(scheduler, A, B, C) == ["a", "c", "b"]


def test_priority_puts_the_lower_value_first_and_rotates_among_equals():
    scheduler = create("priority")
    urgent = replace(C, priority=-5, submit_time=9)
    assert order(scheduler, A, B, urgent) == ["c", "a", "b"]
    scheduler.on_event(had_turn(A, 1))
    scheduler.on_event(had_turn(urgent, 1))
    assert order(scheduler, A, B, urgent) == ["c", "b", "a"]


def test_a_unit_that_may_go_anywhere_makes_room_for_one_that_is_bound():
    slots = [SlotView(id=0), SlotView(id=1), SlotView(id=2, running=("x",))]
    grants = create("fcfs").select(0.0, [A, replace(B, slot_id=0)], slots)
    assert [(grant.slot_id, grant.unit_id) for grant in grants] == [(0, "b"), (1, "a")]


def test_an_unplaced_unit_goes_only_where_it_is_accepted():
    slots = [SlotView(id=0, accepts=frozenset({"b"})), SlotView(id=1, accepts=frozenset({"a", "b"}))]
    grants = create("fcfs").select(0.0, [A, B, C], slots)
    assert [(grant.slot_id, grant.unit_id) for grant in grants] == [(0, "b"), (1, "a")]


@pytest.mark.parametrize(
    ("spelling", "quantum"),
    [
        ("fcfs", UntilDone()),
        ("sjf", UntilDone()),
        ("priority", Epochs(1)),
        ("round-robin", Epochs(1)),
        ("round-robin:quantum=200", Steps(200)),
        ("round-robin:quantum=1step", Steps(1)),
        ("round-robin: quantum = 200steps ", Steps(200)),
        ("round-robin:quantum=2epochs", Epochs(2)),
        ("round-robin:quantum=500ms", Seconds(0.5)),
        ("round-robin:quantum=2.5s", Seconds(2.5)),
    ],
)
def test_quantum_granted(spelling, quantum):
    [grant] = create(spelling).select(0.0, [A], ONE_SLOT)
    assert grant.quantum == quantum


@pytest.mark.parametrize(
    ("spelling", "needs"),
    [("fcfs", ""), ("priority", "priority"), ("sjf", "num_parameters"), ("sjf:length=epochs", "num_epochs")],
)
def test_policies_say_which_fields_they_need(spelling, needs):
    assert create(spelling).needs == frozenset(needs.split())


# ---- by name ----


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        (
            "round_robin",
            "no scheduler is called 'round_robin'; did you mean 'round-robin'? known: fcfs,",
        ),
        ("FCFS", "did you mean 'fcfs'"),
        ("", "no scheduler is called ''; known: fcfs"),
        ("sjf:lenght=epochs", "'sjf' has no option 'lenght'; did you mean 'length'"),
        ("fcfs:length=epochs", "'fcfs' has no option 'length'; it has none"),
        ("sjf:length=steps", "expected parameters, epochs, seconds, got 'steps'"),
        ("sjf:length", "expected option=value after ':', got 'length'"),
        ("fcfs:", "'fcfs': expected option=value, got ''"),
        ("sjf:length=epochs,length=epochs", "option 'length' is given twice"),
        (
            "round-robin:quantum=0",
            "'round-robin:quantum=0': a quantum lasts a positive number of steps, got 0",
        ),
        ("round-robin:quantum=1.5epochs", "got '1.5epochs'"),
        ("round-robin:quantum=-3", "got '-3'"),
        ("round-robin:quantum=2weeks", "got '2weeks'"),
        ("round-robbin:quantum=200", "no scheduler is called 'round-robbin'; did you mean 'round-robin'"),
        ("no.such.module:Lottery", "no scheduler is called 'no.such.module'"),
        ("schedulers.fcfs:Missing", "cannot be imported"),
        ("schedulers.sjf:_NEEDS", "is not a class"),
        ("fractions:Fraction", "a Fraction has no 'select' or no 'needs'"),
    ],
)
def test_wrong_spellings_are_answered_with_what_would_have_been_right(spelling, message):
    with pytest.raises(SchedulerConfigError) as caught:
        create(spelling)
    assert message in str(caught.value)


PLUG_IN = """
    class Lottery:
        needs = frozenset()
        def __init__(self, tickets, weight="1"):
            self.tickets = tickets
        def select(self, now, ready, slots):
            return []
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution with a scheduler under the given entry point names, for one test."""

    def install(*names: str, distribution: str = "lottery") -> None:
        (tmp_path / "lottery_plug_in.py").write_text(textwrap.dedent(PLUG_IN))
        (tmp_path / "broken_plug_in.py").write_text("import there_is_no_such_module")
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = lottery_plug_in:Lottery\n" for name in names)
        (info / "entry_points.txt").write_text(f"[unified.schedulers]\n{lines}")

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for module in ("lottery_plug_in", "broken_plug_in"):
        sys.modules.pop(module, None)


def test_a_class_of_any_module_is_a_scheduler_with_options_as_texts(installed):
    installed()
    assert create("lottery_plug_in:Lottery:tickets=3,weight=2").tickets == "3"
    with pytest.raises(SchedulerConfigError, match="missing a required argument: 'tickets'"):
        create("lottery_plug_in:Lottery")
    with pytest.raises(SchedulerConfigError, match="no option 'ticket'; did you mean 'tickets'"):
        create("lottery_plug_in:Lottery:ticket=3")


def test_an_import_error_inside_a_plug_in_is_named(installed):
    installed()
    with pytest.raises(SchedulerConfigError, match="there_is_no_such_module"):
        create("broken_plug_in:Lottery")


def test_entry_points_add_names(installed):
    installed("lottery")
    assert create("lottery:tickets=7").tickets == "7"
    assert available() == {name: text for name, (_, text) in BUILT_INS.items()} | {"lottery": "plug-in lottery_plug_in:Lottery"}


def test_entry_points_replace_no_names(installed):
    installed("fcfs")
    with pytest.raises(SchedulerConfigError, match="'fcfs', which a built-in one has"):
        create("priority")


def test_two_plug_ins_of_one_name_are_refused(installed):
    installed("lottery")
    installed("lottery", distribution="another")
    with pytest.raises(SchedulerConfigError, match="plug-in lottery_plug_in:Lottery has"):
        available()


def test_built_ins_are_listed_with_one_line_of_help():
    assert list(available())[:4] == ["fcfs", "priority", "sjf", "round-robin"]
    assert all(text and "\n" not in text for text in available().values())
