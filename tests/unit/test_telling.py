"""What a scheduler is told, and what it still knows after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schedulers import base, registry
from tests.unit.test_planning import make_record
from unified.job_state import JobState
from unified.ledger import Ledger
from unified.run_memory import RunMemory
from unified.run_state import RunFolder
from unified.telling import Telling


class Ears:
    """A plug-in that keeps what it is told, and may raise instead."""

    needs: frozenset[str] = frozenset()

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises
        self.heard: list[base.Event] = []

    def select(self, now: float, ready: Any, slots: Any) -> list[base.Grant]:
        return []

    def on_event(self, event: base.Event) -> None:
        if self.raises:
            raise ZeroDivisionError("a plug-in's own")
        self.heard.append(event)

    def state_dict(self) -> dict[str, base.JSON]:
        if self.raises:
            raise ZeroDivisionError("a plug-in's own")
        return {"heard": len(self.heard)}

    def load_state_dict(self, state: dict[str, base.JSON]) -> None:
        assert state["heard"] >= 0

    def kinds(self) -> list[type[base.Event]]:
        return [type(event) for event in self.heard]


def test_a_job_that_comes_back_is_resumed_also_after_a_restart_and_numbers_rise() -> None:
    ears, record = Ears(), make_record("a", user="zoe", weight=2.0)
    telling = Telling(scheduler=ears, name="ears")
    telling.note(base.Submitted, record)
    telling.note(base.Paused, record)
    telling.note(base.Submitted, record)
    memory = json.loads(json.dumps(telling.memory()))
    after = Telling(scheduler=ears, name="ears")
    after.take_over(memory)
    after.note(base.Submitted, record)
    after.note(base.Finished, record)
    after.note(base.Submitted, record)  # asked for again
    assert ears.kinds() == [base.Submitted, base.Paused, base.Resumed, base.Resumed, base.Finished, base.Submitted]
    assert {(event.user_shares, event.weight) for event in ears.heard} == {((("zoe", 1.0),), 2.0)}
    numbers = [event.sequence for event in ears.heard[:3]]
    assert numbers == sorted(set(numbers))


def test_who_ended_while_nobody_could_tell_is_not_reckoned_with_after_a_restart() -> None:
    """Else a newcomer would start where the ghost stands, and have the slot for itself until it had caught up."""
    before = Telling(scheduler=registry.create("stride"), name="stride")
    ghost, other = make_record("ghost"), make_record("other")
    for record in (ghost, other):
        before.note(base.Submitted, record)
    before.note(base.TurnDone, other, steps=1, seconds=100.0)
    after = Telling(scheduler=registry.create("stride"), name="stride")
    after.take_over(json.loads(json.dumps(before.memory())))
    after.forget_all_but(["other"])
    after.note(base.Submitted, other)
    newcomer = make_record("newcomer")
    after.note(base.Submitted, newcomer)
    assert after.scheduler.key(newcomer.view(), 0.0) == after.scheduler.key(other.view(), 0.0) == (100.0,)
    assert (after.memory() or {})["known"] == ["newcomer", "other"]


def test_a_plug_in_that_raises_is_told_on_and_nothing_is_kept_of_it(caplog: pytest.LogCaptureFixture) -> None:
    telling = Telling(scheduler=Ears(raises=True), name="ears")
    telling.note(base.Submitted, make_record("a"))
    assert telling.memory() is None
    assert "scheduler ears failed on Submitted" in caplog.text


@pytest.mark.parametrize("memory", [{}, {"known": ["a"], "policy": {"heard": -1}}, {"known": 7, "policy": {}}, []])
def test_a_memory_that_is_none_is_left_out(memory: Any, caplog: pytest.LogCaptureFixture) -> None:
    telling = Telling(scheduler=Ears(), name="ears")
    telling.take_over(memory)
    assert telling.memory() == {"known": [], "policy": {"heard": 0}}
    assert "it begins anew" in caplog.text


def run_memory(path: Path, spelling: str, *names: str) -> RunMemory:
    folder, ledger = RunFolder(path=path), Ledger()
    folder.state.mkdir(parents=True, exist_ok=True)
    ledger.add_all([make_record(name, position=position) for position, name in enumerate(names)])
    telling = Telling(scheduler=registry.create(spelling), name=spelling)
    return RunMemory(folder=folder, telling=telling, ledger=ledger)


def test_a_run_that_is_taken_up_again_remembers_the_rotation_and_what_each_job_had(tmp_path: Path) -> None:
    before = run_memory(tmp_path, "round-robin", "a", "b", "c")
    a, b, c = before.ledger.all()
    for record in (a, b, c):
        before.telling.note(base.Submitted, record)
    before.telling.note(base.TurnDone, a, steps=3, seconds=1.0)
    a.slot_seconds, a.num_preemptions, a.step_seconds, c.state = 1.0, 2, 0.5, JobState.FINISHED
    before.save()

    after = run_memory(tmp_path, "round-robin", "a", "b")
    after.take_over()
    after.restore(after.ledger.all())
    a, b = after.ledger.all()
    assert (a.slot_seconds, a.num_preemptions, a.step_seconds, b.slot_seconds) == (1.0, 2, 0.5, 0.0)
    after.telling.note(base.Submitted, a)
    after.telling.note(base.Submitted, b)
    [grant] = after.telling.scheduler.select(0.0, [a.view(), b.view()], [base.SlotView(id=0)])
    assert grant.unit_id == "b"

    other = run_memory(tmp_path, "round-robin:quantum=3", "a")
    other.take_over()
    assert other.telling.memory()["known"] == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"version": 99}',
        '{"version": 1, "jobs": 3, "memory": 4, "scheduler": "fcfs"}',
        '{"version": 1, "jobs": {"a": {"slot_seconds": "1", "step_seconds": NaN, "num_preemptions": -1}}}',
    ],
)
def test_a_damaged_memory_costs_nothing_but_order(content: str, tmp_path: Path) -> None:
    memory = run_memory(tmp_path, "fcfs", "a")
    (tmp_path / ".state" / "scheduler.json").write_text(content)
    memory.take_over()
    memory.restore(memory.ledger.all())
    [record] = memory.ledger.all()
    assert (record.slot_seconds, record.step_seconds, record.num_preemptions) == (0.0, None, 0)


@pytest.mark.parametrize(
    ("spelling", "policy"),
    [
        ("stride", {"passes": {"present": {"a": "much"}, "absent": {}, "least": 0.0}}),
        ("drr", {"passes": {"present": {}, "absent": {}, "least": float("nan")}}),
        ("2dlas", {"attained": {}, "finished": [None]}),
        ("round-robin", {"end": 1, "places": {"a": []}}),
    ],
)
def test_a_damaged_memory_of_a_policy_is_left_out(spelling: str, policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    telling = Telling(scheduler=registry.create(spelling), name=spelling)
    telling.take_over({"known": ["a"], "policy": policy})
    assert "its memory cannot be taken over (ValueError: expected a number" in caplog.text
    assert telling.memory() == Telling(scheduler=registry.create(spelling), name=spelling).memory()
