"""A run's events as what the simulator is given, and both side by side, on runs small enough to check by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.event_streams import make_run
from tests.unit.queue_cases import bring
from tests.unit.queue_cases import submitted as submitted_to
from unified.errors import UnifiedError
from unified.job_state import JobState
from unified.listeners import event_to_json
from unified.queue.verbs import Queue
from unified.replay import EVENTS, PlayedRun, RunRecord, read_run, replay
from unified.replay_queue import is_queue, read_queue

Story = Sequence[dict[str, Any]]


def submitted(job: str, at: float, steps: int = 10) -> dict[str, Any]:
    sizes = {"num_epochs": 1, "num_steps": steps, "steps_per_epoch": steps, "num_parameters": 5, "peak_bytes": 9}
    return {"event": "JobSubmitted", "at": at, "job": job, "user": None, **sizes}


def started(num_slots: int = 1, at: float = 0.0, scheduler: str = "fcfs") -> dict[str, Any]:
    return {"event": "RunStarted", "at": at, "slots": ["cpu"] * num_slots, "scheduler": scheduler, "plan": ""}


def turn(job: str, began: float, ended: float, slot: int = 0) -> list[dict[str, Any]]:
    whose = {"job": job, "slot": slot}
    return [{"event": "TurnStarted", "at": began, **whose}, {"event": "TurnEnded", "at": ended, **whose}]


def finished(job: str, at: float) -> dict[str, Any]:
    return {"event": "JobFinished", "at": at, "job": job}


def played(story: Story) -> PlayedRun:
    record = RunRecord()
    for event in sorted(story, key=lambda event: event["at"]):
        record.take(event)
    return record.played({}, where="a story")


#: two jobs at 0 and 1 s on one slot, first come, first served: read by 2 s, half a second to write each result
FCFS = [
    submitted("a", 0.0),
    submitted("b", 1.0),
    started(at=2.0),
    *turn("a", 2.0, 6.0),
    *turn("b", 6.25, 8.0),
    finished("a", 6.5),
    finished("b", 8.5),
]


def test_what_a_run_measures_is_what_the_simulator_is_given():
    run = played(FCFS)
    assert (run.scheduler, run.num_slots, run.switch_seconds, run.num_left_out) == ("fcfs", 1, 0.25, 0)
    assert [(job.submitted_at, job.ready_at, job.slot_seconds, job.trained_at, job.ended_at) for job in run.jobs] == [
        (0.0, 2.0, 4.0, 6.0, 6.5),
        (1.0, 2.0, 1.75, 8.0, 8.5),
    ]


def test_a_run_that_did_as_its_policy_says_agrees_but_for_the_first_switch():
    found = replay(played(FCFS))
    whole = found.agreements[0]
    assert whole.engine.mean == (6.5 + 7.5) / 2
    assert whole.simulated.mean == pytest.approx(whole.engine.mean + 0.25), (
        "an idle slot that begins is no switch in the engine"
    )
    assert (found.engine_makespan, found.simulated_makespan) == (8.5, pytest.approx(8.75))


def test_a_run_that_did_otherwise_does_not_agree():
    """The long job first, where the shortest should have been: the simulator puts the short one first."""
    story = [
        submitted("long", 0.0, steps=100),
        submitted("short", 0.0),
        started(scheduler="srtf"),
        *turn("long", 0.0, 10.0),
        *turn("short", 10.0, 11.0),
        finished("long", 10.0),
        finished("short", 11.0),
    ]
    whole = replay(played(story)).agreements[0]
    assert whole.engine.mean == 10.5
    assert whole.simulated.mean == pytest.approx((1.0 + 11.0) / 2)
    assert whole.ratio == pytest.approx(1.75)


def test_turns_that_jobs_had_together_are_shared_and_slots_are_apart():
    story = [
        *(submitted(job, 0.0) for job in "abc"),
        started(num_slots=2),
        *turn("a", 0.0, 6.0),
        *turn("b", 2.0, 6.0),
        *turn("c", 0.0, 5.0, slot=1),
        *(finished(job, 6.0) for job in "abc"),
    ]
    assert {job.name: job.slot_seconds for job in played(story).jobs} == {"a": 4.0, "b": 2.0, "c": 5.0}


def test_jobs_are_ready_when_the_engine_tells_of_them_and_unfinished_ones_are_left_out():
    late = submitted("late", 1.0)
    story = [submitted("a", 0.0), started(), *turn("a", 0.0, 4.0)]
    record = RunRecord()
    for event in [*story, late, finished("a", 4.5), *turn("late", 4.5, 5.0), finished("late", 5.0)]:
        record.take(event)
    run = record.played({"late": {"priority": 3, "weight": 2.0}}, where="a story")
    assert [(job.submitted_at, job.ready_at, job.priority, job.weight) for job in run.jobs] == [
        (0.0, 0.0, 0, 1.0),
        (1.0, 4.0, 3, 2.0),
    ]
    assert played([*FCFS, submitted("never", 3.0)]).num_left_out == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_rotating_turns_agrees_with_its_simulation(seed):
    events = make_run(seed, num_jobs=6, num_slots=1, failures=0, turn_steps=10)
    record = RunRecord()
    for event in events:
        record.take(event_to_json(event))
    run = record.played({}, where="a stream")
    found = replay(run)
    assert sum(job.slot_seconds for job in run.jobs) == pytest.approx(found.engine_makespan - 0.4)
    assert found.simulated_makespan == pytest.approx(found.engine_makespan - 0.3), "from the plan to the first turn is nobody's"
    assert [each.group for each in found.agreements] == ["all", "shortest third", "middle third", "longest third"]


def test_what_is_no_recorded_run_is_refused(tmp_path: Path):
    with pytest.raises(UnifiedError, match="expected what 'unified run --out' leaves"):
        read_run(tmp_path)
    path = tmp_path / EVENTS
    path.parent.mkdir()
    path.write_text('{"event": "JobSubmitted"}\n')
    with pytest.raises(UnifiedError, match="expected an event on each line"):
        read_run(tmp_path)
    path.write_text(json.dumps(started()) + "\n")
    with pytest.raises(UnifiedError, match="there is nothing to replay"):
        read_run(tmp_path)
    path.write_text("".join(json.dumps(submitted("a", at)) + "\n" for at in (0.0, 0.0)))
    with pytest.raises(UnifiedError, match="was resumed"):
        read_run(tmp_path)


def test_a_queue_is_replayed_from_its_store_and_its_timeline(tmp_path: Path):
    """By hand: two jobs at about 0 s, 4 s and 2 s of turns one after the other, and a third whose first turn is forgotten."""
    root = tmp_path / "root"
    with Queue.open(root, make=True) as queue:
        jobs = [submitted_to(queue, tmp_path / "jobs", name, user="ann", priority=2) for name in "abc"]
        began = queue.get(jobs[0]).submit_time + 1.0
        spans = [(0.0, 4.0, 10), (4.0, 6.0, 5), (6.0, 7.0, 1)]
        for job, (start, end, steps) in zip(jobs, spans, strict=True):
            done = 2 if job == jobs[2] else steps
            bring(queue, job, JobState.FINISHED, finished_time=began + end + 0.5, training_seconds=end - start, steps_done=done)
            turn = {"job": job, "slot": 0, "start": began + start, "end": began + end, "steps": steps, "user": "ann"}
            with queue.root.timeline.open("a") as file:
                file.write(json.dumps(turn) + "\n")
            sealed = queue.root.result(job)
            sealed.mkdir(parents=True)
            (sealed / "result.json").write_text('{"scheduler": "fcfs"}')
    assert is_queue(root)
    run = read_queue(root)
    assert [(job.name, job.user, job.priority, job.num_steps) for job in run.jobs] == [
        (jobs[0], "ann", 2, 10),
        (jobs[1], "ann", 2, 5),
    ]
    assert [job.slot_seconds for job in run.jobs] == pytest.approx([4.0, 2.0], abs=1e-5)
    found = replay(run)
    assert found.engine_makespan == pytest.approx(7.5, abs=1e-5)
    assert found.simulated_makespan == pytest.approx(6.5, abs=1e-5), "nothing says that they were checked later than handed in"
