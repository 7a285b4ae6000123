import json

import pytest

from tests.unit.event_streams import make_run
from unified.events import (
    EpochDone,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobPaused,
    JobResumed,
    JobSubmitted,
    MemorySampled,
    RunStarted,
    StackFormed,
    StepsDone,
    TurnEnded,
    TurnStarted,
    WorkerLost,
)
from unified.job_state import JobState
from unified.live_table import draw
from unified.summary import Summary


def follow(events):
    summary = Summary()
    for event in events:
        summary(event)
    return summary


def submitted(job="a", at=0.0, **changes):
    fields = {
        "user": None,
        "num_epochs": 4,
        "num_steps": 40,
        "steps_per_epoch": 10,
        "num_parameters": 5,
        "peak_bytes": 9,
    }
    return JobSubmitted(at=at, job=job, **(fields | changes))


@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_the_events_they_come_from(seed):
    events = make_run(seed, num_jobs=6, num_slots=2, failures=2, turn_steps=7)
    content = follow(events).to_json(["run", "jobs"])
    for name, job in content["jobs"].items():
        mine = [event for event in events if getattr(event, "job", None) == name]
        turns = [event for event in mine if isinstance(event, TurnEnded)]
        first = next(event.at for event in mine if isinstance(event, TurnStarted))
        assert job["training_seconds"] == pytest.approx(sum(turn.seconds for turn in turns))
        assert job["waiting_seconds"] == pytest.approx(first)
        assert job["completion_seconds"] == pytest.approx(mine[-1].at)
        assert job["turns"] == len(turns)
        assert job["steps"] == sum(turn.steps for turn in turns)
        assert job["epochs"] == sum(isinstance(event, EpochDone) for event in mine)
        assert job["slots"] == sorted({turn.slot for turn in turns})
        assert job["threads"] == 1
    run = content["run"]
    assert run["startup_seconds"] == min(event.at for event in events if isinstance(event, TurnStarted))
    assert run["makespan_seconds"] == max(event.at for event in events if isinstance(event, JobFinished | JobFailed))
    assert run["peak_bytes"] == max(event.bytes_in_use for event in events if isinstance(event, MemorySampled))
    assert (run["num_finished"], run["num_failed"], run["num_jobs"]) == (4, 2, 6)
    assert run["command"] == ["run", "jobs"]
    assert run["scheduler"] == "round-robin"
    assert set(run["versions"]) == {"python", "unifiednn", "torch", "accelerate", "numpy"}


def test_a_run_reports_what_its_owners_waited_for():
    """By hand: two jobs of 2 and 6 s of turns on one slot, and one that failed, which counts in no mean."""
    events = []
    for name, waited, trained, completed in (("a", 1.0, 2.0, 3.0), ("b", 3.0, 6.0, 9.0)):
        times = {"waiting_seconds": waited, "training_seconds": trained, "completion_seconds": completed}
        events += [submitted(name), TurnStarted(at=waited, job=name, slot=0)]
        events.append(JobFinished(at=completed, job=name, folder="out", metrics={}, peak_bytes=1, **times))
    events += [submitted("c"), TurnStarted(at=9.0, job="c", slot=0), JobFailed(at=10.0, job="c", reason="nan", log=None)]
    content = follow(events).to_json()
    run, jobs = content["run"], content["jobs"]
    assert run["completion_seconds"] == {"mean": 6.0, "p50": 9.0, "p95": 9.0, "p99": 9.0}
    assert run["slowdown"] == {"mean": 1.5, "p50": 1.5, "p95": 1.5, "p99": 1.5}
    assert run["makespan_seconds"] == 10.0
    assert (jobs["a"]["started_at"], jobs["a"]["ended_at"], jobs["a"]["slowdown"]) == (1.0, 3.0, 1.5)
    assert (jobs["c"]["completion_seconds"], jobs["c"]["slowdown"]) == (10.0, None)


def test_what_an_earlier_run_finished_counts_in_no_mean():
    done = JobFinished(
        at=0, job="a", folder="out", metrics={}, waiting_seconds=1, training_seconds=2, completion_seconds=4, peak_bytes=1
    )
    content = follow([submitted("a"), done]).to_json()
    assert content["run"]["completion_seconds"] is None
    assert content["jobs"]["a"]["slowdown"] == 2.0


def test_a_finished_job_shows_its_own_metrics_and_no_bookkeeping():
    content = follow(make_run(seed=1, failures=0)).to_json()
    for job in content["jobs"].values():
        assert list(job["metrics"]) == ["accuracy", "test_loss", "train_loss"]
        assert job["peak_bytes"] == 11 * 2**20
        assert job["state"] == "finished"
        assert job["folder"].startswith("out/")


def test_a_failed_job_keeps_reason_log_and_last_metrics():
    summary = follow(make_run(seed=1, num_jobs=1, num_slots=1, failures=1))
    (job,) = summary.to_json()["jobs"].values()
    assert (job["state"], job["reason"], job["log"]) == ("failed", "loss is nan", "out/x/job.log")
    assert 0 < job["steps"] < job["planned_steps"]
    assert job["metrics"]


def test_summary_is_strict_json_even_with_a_loss_that_is_not_a_number():
    row = {"epoch": 1.0, "train_loss": float("nan"), "perplexity": float("inf")}
    summary = follow([submitted(), EpochDone(at=1, job="a", slot=0, epoch=1, step=10, metrics=row)])
    text = json.dumps(summary.to_json(), allow_nan=False)
    assert json.loads(text)["jobs"]["a"]["metrics"] == {"perplexity": None, "train_loss": None}


def test_states_follow_pause_resume_and_cancel():
    summary = Summary()
    states = []
    for event in [
        submitted(),
        TurnStarted(at=1, job="a", slot=0),
        JobPaused(at=2, job="a", step=5),
        JobResumed(at=3, job="a", step=5),
        TurnStarted(at=4, job="a", slot=1),
        JobCancelled(at=6, job="a"),
    ]:
        summary(event)
        states.append(summary.jobs["a"].state)
    assert states == ["queued", "running", "paused", "queued", "running", "cancelled"]
    job = summary.to_json()["jobs"]["a"]
    assert job["training_seconds"] == 3, "turns cut short by a pause or an end count until then"
    assert job["slots"] == [0, 1]


def test_a_lost_worker_sends_its_jobs_back_to_the_queue():
    events = [
        submitted("a"),
        submitted("b"),
        TurnStarted(at=1, job="a", slot=0),
        TurnStarted(at=1, job="b", slot=1),
    ]
    summary = follow([*events, WorkerLost(at=3, slot=0, reason="signal 9", jobs=("a",))])
    assert summary.jobs["a"].state is JobState.QUEUED
    assert summary.jobs["a"].turn_seconds == 2
    assert summary.jobs["b"].state is JobState.RUNNING
    assert summary.to_json()["run"]["num_workers_lost"] == 1


def test_makespan_of_an_interrupted_run_reaches_its_latest_event():
    done = JobFinished(
        at=5,
        job="a",
        folder="out/a",
        metrics={},
        waiting_seconds=1,
        training_seconds=4,
        completion_seconds=5,
        peak_bytes=1,
    )
    summary = follow([submitted("a"), submitted("b"), done, MemorySampled(at=8, bytes_in_use=3, utilisation=None)])
    assert summary.makespan_seconds == 8
    assert follow([submitted("a"), done, MemorySampled(at=8, bytes_in_use=3, utilisation=None)]).makespan_seconds == 5


def test_remaining_time_is_the_pace_so_far_times_what_is_left():
    summary = follow([submitted(num_steps=100), TurnStarted(at=2, job="a", slot=0)])
    assert summary.jobs["a"].remaining_seconds(3.0) is None
    summary(StepsDone(at=7, job="a", slot=0, epoch=3, step=25, loss=0.5))
    assert summary.jobs["a"].remaining_seconds(7.0) == pytest.approx(15.0)


def test_remaining_time_of_a_resumed_job_counts_only_its_new_steps():
    summary = follow([submitted(num_steps=100, first_step=50), TurnStarted(at=0, job="a", slot=0)])
    summary(StepsDone(at=10, job="a", slot=0, epoch=8, step=75, loss=0.5))
    assert summary.jobs["a"].remaining_seconds(10.0) == pytest.approx(10.0)


def test_an_empty_run_has_a_summary():
    content = follow([RunStarted(at=0.5, slots=(), scheduler="fcfs", plan="no jobs")]).to_json()
    assert content["jobs"] == {}
    assert content["run"]["startup_seconds"] is None


def test_a_stack_is_followed_from_its_forming_to_the_end_of_its_turn():
    summary = Summary()
    names = ("a", "b", "c")
    for name in names:
        summary(TurnStarted(at=0.1, job=name, slot=0, threads=1))
    summary(StackFormed(at=0.2, job="a", slot=0, members=names, speedup=1.5))
    assert summary.stacks() == [names]
    summary(TurnEnded(at=0.3, job="b", slot=0, steps=3, seconds=0.2, step=3))
    assert summary.stacks() == [("a", "c")]
    text = "".join(segment.text for segment in draw(summary, 0.4, 120, 24))
    assert "stack of 2: a, c 1.5x" in text
    summary(TurnEnded(at=0.4, job="c", slot=0, steps=4, seconds=0.3, step=4))
    assert summary.stacks() == []
    jobs = summary.to_json()["jobs"]
    assert jobs["b"]["stacked_with"] == ["a", "c"]
    assert jobs["b"]["stack_speedup"] == 1.5
