"""Plans before a run: what is timed, what is kept, and how a policy's order is read off it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schedulers import registry
from unified.admission import DatasetRef, Estimate, ModelForm, ModelRef, Submission
from unified.errors import UnifiedError
from unified.job import JobSpec
from unified.job_state import JobState
from unified.ledger import JobRecord, Ledger
from unified.planning import Planner, ranking, rotates


def make_record(name: str, *, steps: int = 10, position: int = 0, **changes: Any) -> JobRecord:
    spec = JobSpec.parse(
        {
            "name": name,
            "model": "m.umodel",
            "data": {"train": "t.pt"},
            "loss": "MSELoss",
            "optimizer": "SGD",
            "max_steps": steps,
            "batch_size": 1,
        }
        | changes
    )
    submission = Submission(
        spec=spec,
        folder=Path(),
        model=ModelRef(path=Path("m"), form=ModelForm.UMODEL, sha256="0"),
        train=DatasetRef(path=Path("t"), key="0", num_samples=5, nbytes=1, source="t.pt"),
        test=None,
        estimate=Estimate(num_parameters=steps, resident_bytes=1, peak_bytes=2, flops_per_step=10**9, num_ops_per_step=10),
    )
    return JobRecord(submission=submission, results=Path(), checkpoints=Path(), submit_time=float(position))


def make_planner(slots: int | str = "auto", threads: int | None = None, num_cores: int = 2) -> Planner:
    planner = Planner(devices=("cpu",), slots=slots, threads=threads)
    planner.num_cores = num_cores
    return planner


def test_a_dominant_job_gets_all_threads_and_is_timed_with_them_first() -> None:
    records = [make_record("big", steps=1000), make_record("small", steps=10, position=1)]
    for record in records:
        record.trial_seconds[1] = 0.1
    planner, scheduler = make_planner(), registry.create("fcfs")
    plan = planner.plan(records, scheduler)
    assert plan.threads_by_job["big"] == 2
    guessed = planner.untimed(plan, records)
    assert guessed is not None
    assert guessed[0] == 2
    assert records[0] in guessed[1]
    for record in guessed[1]:
        record.trial_seconds[2] = 0.3  # a busy machine: a second thread costs
    plan = planner.plan(records, scheduler)
    assert plan.threads_by_job == {"big": 1, "small": 1}
    assert planner.untimed(plan, records) is None


def test_given_slots_and_threads_are_kept_and_nothing_is_timed() -> None:
    records = [make_record("a"), make_record("b", position=1)]
    planner = make_planner(slots=1, threads=1)
    plan = planner.plan(records, registry.create("fcfs"))
    assert plan.threads_by_job == {"a": 1, "b": 1}
    assert not planner.chooses_threads
    assert planner.untimed(plan, records) is None


def test_a_job_that_began_keeps_its_threads_in_a_run_taken_up_again() -> None:
    records = [make_record("old"), make_record("wide", position=1), make_record("new", position=2)]
    records[0].num_threads, records[1].num_threads = 1, 2
    plan = make_planner().plan(records, registry.create("fcfs"))
    assert plan.threads_by_job == {"old": 1, "wide": 2, "new": 1}


def test_the_ranking_is_the_policys() -> None:
    records = [make_record("a", steps=30, priority=2), make_record("b", steps=10, position=1, priority=1)]
    for record in records:
        record.trial_seconds[1] = 1.0
    assert ranking(records, registry.create("fcfs")) == ["a", "b"]
    assert ranking(records, registry.create("sjf")) == ["b", "a"]
    assert ranking(records, registry.create("priority")) == ["b", "a"]
    assert ranking(records, registry.create("default")) == ["b", "a"]


ROTATING = {"priority", "round-robin", "las", "2dlas", "stride", "drr", "fair(las)"}
STEADY = {"fcfs", "sjf", "srtf", "default", "hrrn", "edf", "fair(srtf)", "aging(fcfs)"}


@pytest.mark.parametrize("name", sorted(ROTATING | STEADY))
def test_jobs_are_planned_side_by_side_under_policies_that_rotate(name: str) -> None:
    assert rotates(registry.create(name)) == (name in ROTATING)


@pytest.mark.parametrize("slots", [0, -1, "many", True, 1.5])
def test_impossible_slots_are_refused(slots: Any) -> None:
    with pytest.raises(UnifiedError, match=r"slots: expected a whole number from 1, or 'auto'"):
        make_planner(slots=slots)


def test_impossible_threads_are_refused() -> None:
    with pytest.raises(UnifiedError, match=r"threads: expected a whole number from 1 to"):
        make_planner(threads=10**6)


def test_the_ledger_refuses_a_name_twice_and_takes_nothing_then() -> None:
    ledger = Ledger()
    with pytest.raises(UnifiedError, match="two jobs named 'a'"):
        ledger.add_all([make_record("b"), make_record("a"), make_record("a")])
    assert len(ledger) == 0
    ledger.add_all([make_record("a")])
    with pytest.raises(UnifiedError, match="no job named 'x' in this run; there is: a"):
        ledger["x"]
    assert ledger.count(JobState.QUEUED) == 1


def test_a_plug_in_that_answers_nonsense_ranks_nobody_and_does_not_rotate() -> None:
    class Nonsense:
        needs: frozenset[str] = frozenset()
        answer: Any = None

        def select(self, now: float, ready: Any, slots: Any) -> Any:
            return 1 / 0 if self.answer is None else self.answer

    policy, records = Nonsense(), [make_record("a"), make_record("b", position=1)]
    for policy.answer in (None, 7, "ab", [7], []):
        assert ranking(records, policy) == ["a", "b"]
        assert not rotates(policy)
