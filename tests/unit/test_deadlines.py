"""Deadlines: who is refused for their sake, who is told to be late, and what a plug-in may say of it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from schedulers import base, registry
from tests.unit.test_planning import make_record
from unified import events
from unified.deadlines import DeadlineWatch, deadline_problems, ineffective_deadline
from unified.deciding import Decider, check_supplied
from unified.job_state import JobState
from unified.ledger import JobRecord, Ledger
from unified.units import Unit


def job(name: str, seconds: float | None, *, steps: int = 10, kind: str = "hard", position: int = 0) -> JobRecord:
    """Return a job of as many seconds as steps."""
    record = make_record(name, steps=steps, deadline_seconds=seconds, deadline_kind=kind)
    record.submit_time, record.trial_seconds[1] = 1e-6 * position, 1.0
    return record


def decider(scheduler: str | base.Scheduler = "edf") -> Decider:
    made = registry.create(scheduler) if isinstance(scheduler, str) else scheduler
    return Decider(scheduler=made, name="edf", clock=lambda: 0.0)


def test_jobs_are_tested_in_order_beside_those_accepted_before() -> None:
    first, second, third = job("first", 12), job("second", 15, position=1), job("third", 25, position=2)
    [problem] = deadline_problems(decider(), [first, second, third], [], num_slots=1)
    assert (problem.code, problem.job, problem.field) == ("E-DEADLINE", "second", "deadline_seconds")
    assert "the earliest deadline that would be met is in 20 s" in problem.given
    assert "soft" in problem.remedy
    assert not deadline_problems(decider(), [first, second, third], [], num_slots=2)
    first.state = JobState.FINISHED
    assert not deadline_problems(decider(), [second], [first], num_slots=1)


def test_a_soft_deadline_and_another_scheduler_refuse_nobody() -> None:
    hopeless = job("hopeless", 1, kind="soft")
    assert hopeless.view().is_deadline_soft
    assert not deadline_problems(decider(), [hopeless], [], num_slots=1)
    assert not deadline_problems(decider("srtf"), [job("late", 1)], [], num_slots=1)
    assert "deadline_seconds has no effect" in (ineffective_deadline(decider("srtf"), job("late", 1)) or "")
    assert ineffective_deadline(decider(), job("late", 1)) is None
    assert ineffective_deadline(decider("srtf"), job("free", None)) is None


class Odd:
    """A plug-in whose refusals and explanations are as given, or raised."""

    needs: frozenset[str] = frozenset({"deadline"})

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def select(self, now: float, ready: Any, slots: Any) -> list[base.Grant]:
        return []

    def _say(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def refusal(self, now: float, unit: Any, accepted: Any, slots: Any) -> str | None:
        return self._say()

    def explain(self, unit: Any, now: float) -> str:
        return self._say()


@pytest.mark.parametrize("answer", [7, ZeroDivisionError("a plug-in's own")])
def test_nonsense_refuses_nobody_and_is_counted(answer: Any) -> None:
    asked = decider(Odd(answer))
    assert not deadline_problems(asked, [job("a", 1)], [], num_slots=1)
    assert asked.num_wrong == 1


def test_what_a_scheduler_says_of_a_unit_is_one_line_for_all_its_jobs() -> None:
    unit = Unit(leader=job("a", 20), companions=(job("b", None),))
    assert decider().reasons([unit]).keys() == {"a", "b"}
    assert decider().explain(unit.view()).startswith("edf: its deadline is in 20 s")
    assert decider(Odd("two\nlines")).explain(unit.view()) == "edf: two lines"
    assert decider(Odd(KeyError("a plug-in's own"))).explain(unit.view()) == "edf"


def test_a_job_that_will_be_late_is_told_once() -> None:
    ledger, told, now = Ledger(), list[events.Event](), [0.0]
    ledger.add_all([job("tight", 15), job("wide", 100), job("free", None), job("gone", 1)])
    ledger["gone"].state = JobState.CANCELLED
    watch = DeadlineWatch(ledger=ledger, clock=lambda: now[0], emit=told.append)
    watch.look()
    assert told == []
    now[0] = 6.0
    watch.look()
    watch.look()
    assert told == [events.DeadlineAtRisk(at=6.0, job="tight", predicted=16.0, deadline=15.0)]
    ledger["wide"].is_returning, now[0] = True, 99.0
    watch.look()
    assert len(told) == 1


class Needy(Odd):
    needs: Any = frozenset()


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (frozenset({"utilisation"}), "scheduler 'odd' decides by utilisation, which a job here lacks"),
        (frozenset({"step_second"}), "did you mean 'step_seconds'"),
        (["deadline"], "expected needs, a frozenset of fields of JobView"),
    ],
)
def test_a_scheduler_that_decides_by_what_is_not_known_is_refused(needs: Any, message: str) -> None:
    needy = Needy(None)
    needy.needs = needs
    with pytest.raises(base.SchedulerConfigError, match=message):
        check_supplied(needy, "odd")


def test_a_class_in_place_of_a_scheduler_is_refused() -> None:
    with pytest.raises(base.SchedulerConfigError, match=r"got a class; write Odd\(\)"):
        check_supplied(cast("base.Scheduler", Odd), "type")


@pytest.mark.parametrize("name", registry.BUILT_INS)
def test_the_engine_supplies_what_the_built_in_ones_need(name: str) -> None:
    check_supplied(registry.create(f"{name}(srtf)" if name in {"aging", "fair"} else name), name)
