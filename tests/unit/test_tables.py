import io
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from rich.segment import Segment

from schedulers.registry import Listed
from tests.unit.event_streams import make_run
from unified.admission import DatasetRef, Estimate, ModelForm, ModelRef, Submission
from unified.events import JobFailed, JobPaused, JobSubmitted, StepsDone, TurnStarted
from unified.job import JobSpec
from unified.live_table import LiveTable, RunClock, draw
from unified.run_plan import PlannedJob, RunPlan
from unified.summary import Summary
from unified.tables import final_table, plan_tables, schedulers_table, submission_table


def follow(events):
    summary = Summary()
    for event in events:
        summary(event)
    return summary


def rendered(content, width=160):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(content)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def drawn(summary, now=5.0, width=140, height=40):
    return "".join(segment.text for segment in draw(summary, now, width, height)).splitlines()


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def submitted(job, **changes):
    fields = {
        "at": 0.0,
        "user": None,
        "num_epochs": 4,
        "num_steps": 40,
        "steps_per_epoch": 10,
        "num_parameters": 5,
        "peak_bytes": 9,
    }
    return JobSubmitted(job=job, **(fields | changes))


def test_final_table_has_a_line_per_job_with_its_times_and_metrics():
    summary = follow(make_run(seed=3, num_jobs=5, failures=1))
    title, *lines, total, since = rendered(final_table(summary))
    assert cells(title) == [
        "job",
        "user",
        "state",
        "complete",
        "slowdown",
        "waiting",
        "training",
        "peak",
        "metrics, or the reason",
    ]
    for line, job in zip(lines, summary.jobs.values(), strict=True):
        assert cells(line)[:3] == [job.name, job.user or "–", str(job.state)]
    assert lines[0].endswith("11 MiB  accuracy 0.9167, test_loss 0.01337, train_loss 0.0107")
    assert lines[-1].endswith("–  loss is nan (log: out/x/job.log)")
    assert total.startswith("5 jobs: 4 finished, 1 failed; all in ")
    assert since.startswith("completion since submission mean ")
    assert "; slowdown mean " in since


def test_final_table_of_a_narrow_terminal_loses_no_text():
    summary = follow(make_run(seed=3, num_jobs=2, failures=0))
    text = "".join("".join(rendered(final_table(summary), width=70)).split())
    for job in summary.jobs.values():
        for value in job.metrics.values():
            assert f"{value:.4g}" in text


def test_brackets_in_a_reason_are_shown_as_they_are():
    summary = follow([submitted("a"), JobFailed(at=1, job="a", reason="expected [3, 4], got [red]", log=None)])
    assert rendered(final_table(summary))[1].endswith("expected [3, 4], got [red]")


def planned(name, order, key):
    return PlannedJob(
        name=name,
        user="alice",
        order=order,
        threads=1,
        num_parameters=61_706,
        peak_bytes=2**24,
        resident_bytes=2**21,
        flops_per_step=2_500_000_000,
        num_steps=3000,
        predicted_seconds=33.2,
        dataset_key=key * 64,
        dataset_bytes=47 * 2**20,
        dataset_source=f"{name}.pt",
    )


def test_plan_shows_order_needs_slots_and_who_shares_data():
    plan = RunPlan(
        jobs=(planned("b", 1, "f"), planned("a", 2, "f"), planned("c", 3, "0")),
        stages="2 slots x 1 thread: b, a\n1 slot x 2 threads: c",
        reason="balanced",
        predicted_seconds=66.4,
        shared={"f" * 64: ("b", "a")},
    )
    lines = rendered(plan_tables(plan, 160))
    b_row = ["1", "b", "alice", "1", "61.7 k", "2 MiB", "16 MiB", "2.5 G", "3000", "33.2 s", "b.pt (47 MiB)"]
    assert cells(lines[1]) == b_row
    assert [cells(line)[1] for line in lines[1:4]] == ["b", "a", "c"]
    assert lines[4:9] == [
        "slots",
        "  2 slots x 1 thread: b, a",
        "  1 slot x 2 threads: c",
        "  why: balanced",
        "  all done after about 66.4 s",
    ]
    assert lines[9:] == ["shared data", "  ffffffffffff (47 MiB, loaded once): b, a"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_plan_on_a_narrow_screen_has_fewer_columns_and_a_line_for_each_job(width):
    jobs = (planned("a-digits", 1, "f"), planned("b-digits", 2, "f"))
    lines = rendered(plan_tables(RunPlan(jobs=jobs, stages="", reason="balanced", predicted_seconds=None), width), width)
    assert [cells(line)[:2] for line in lines[1:3]] == [["1", "a-digits"], ["2", "b-digits"]]
    assert {"job", "peak", "steps", "predicted"} <= {*cells(lines[0])}
    assert lines[3] == "slots"


def test_a_plan_without_jobs_is_shown():
    assert rendered(plan_tables(RunPlan(jobs=(), stages="", reason="nothing", predicted_seconds=None), 80), 80)[1] == "slots"


def test_submission_shows_what_it_is_and_needs(tmp_path):
    spec = JobSpec.parse(
        {
            "name": "lenet",
            "model": "lenet.umodel",
            "data": {"train": "train.pt"},
            "loss": "CrossEntropyLoss",
            "optimizer": {"name": "SGD", "lr": 0.1},
            "epochs": 3,
            "batch_size": 64,
        }
    )
    train = DatasetRef(path=tmp_path / "train.pt", key="ab" * 32, num_samples=1000, nbytes=2**20, source="train.pt")
    estimate = Estimate(
        num_parameters=61706,
        resident_bytes=2**20,
        peak_bytes=2**24,
        flops_per_step=10**9,
        num_ops_per_step=120,
    )
    model = ModelRef(path=Path("x/lenet.umodel"), form=ModelForm.UMODEL, sha256="0" * 64)
    submission = Submission(spec=spec, folder=tmp_path, model=model, train=train, test=None, estimate=estimate)
    facts = dict(cells(line) for line in rendered(submission_table(submission, step_seconds=0.01)))
    assert facts["model"] == "lenet.umodel (umodel)"
    assert facts["parameters"] == "61.7 k (61706)"
    assert facts["training data"] == "train.pt: 1000 samples, 1 MiB, content abababababab"
    assert facts["length"] == "3 epochs, 48 steps of batch_size 64"
    assert facts["peak memory"].startswith("16 MiB")
    assert facts["a step"] == "1 GFLOP, 120 operators"
    assert facts["predicted"] == "0.010 s a step, 0.480 s in all, on one thread"


def test_schedulers_are_listed_with_what_they_decide_by():
    listed = [Listed(name="fcfs", needs=(), help="in order"), Listed(name="edf", needs=("deadline", "weight"), help="soon")]
    assert rendered(schedulers_table(listed)) == [
        "Name  Who trains next  Decides by",
        "fcfs  in order         –",
        "edf   soon             deadline, weight",
    ]


@pytest.mark.parametrize("width", [20, 40, 72, 100, 200])
@pytest.mark.parametrize("height", [5, 12, 60])
def test_live_table_never_leaves_the_terminal(width, height):
    events = make_run(seed=4, num_jobs=30, failures=3)
    summary = Summary()
    for index, event in enumerate(events):
        summary(event)
        if index % 200 == 0:
            lines = drawn(summary, now=event.at, width=width, height=height)
            assert len(lines) <= height
            assert max(map(len, lines)) <= width


def test_live_table_shows_where_each_job_stands():
    events = [
        submitted("a", user="alice"),
        submitted("b"),
        TurnStarted(at=1, job="a", slot=1),
        StepsDone(at=3, job="a", slot=1, epoch=2, step=20, loss=0.25),
    ]
    headline, title, first, second = drawn(follow(events), now=3.0)
    assert cells(headline) == ["unified", "0:03", "0 of 2 jobs done"]
    assert cells(title) == ["job", "user", "state", "slot", "epoch", "step", "loss", "metric", "ETA"]
    assert cells(first) == [
        "a",
        "alice",
        "running",
        "1",
        "2/4",
        "━" * 10 + "─" * 10,
        "20/40",
        "0.25",
        "–",
        "0:02",
    ]
    assert cells(second) == ["b", "–", "queued", "–", "0/4", "─" * 20, "0/40", "–", "–", "–"]


def test_live_table_drops_the_least_needed_columns_first():
    summary = follow(make_run(seed=4, num_jobs=3)[:40])
    titles = [cells(drawn(summary, width=width)[1]) for width in (140, 90, 60, 45)]
    assert titles[0] == ["job", "user", "state", "slot", "epoch", "step", "loss", "metric", "ETA"]
    assert all(set(narrow) < set(wide) for wide, narrow in pairwise(titles))
    assert titles[-1][0] == "job"


def test_when_lines_are_short_running_and_failed_jobs_are_shown():
    events = [submitted(f"job-{index}") for index in range(20)]
    events += [TurnStarted(at=1, job="job-13", slot=0), JobFailed(at=1, job="job-17", reason="x", log=None)]
    lines = drawn(follow([*events, JobPaused(at=2, job="job-19", step=0)]), height=8)
    assert [cells(line)[0] for line in lines[2:-1]] == ["job-0", "job-13", "job-17", "job-19"]
    assert lines[-1] == "… and 16 queued"


def test_live_table_is_on_the_terminal_while_open_and_its_thread_ends():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20)
    summary = follow(make_run(seed=1, num_jobs=3))
    with LiveTable(console, summary) as table:
        assert any(thread.name == "live-table" for thread in threading.enumerate())
        first = next(iter(summary.jobs))
        assert first in "".join(part.text for part in console.render(table) if isinstance(part, Segment))
    assert not any(thread.name == "live-table" for thread in threading.enumerate())
    assert first in console.file.getvalue()


def test_the_clock_goes_on_between_events_and_never_back():
    summary, clock = Summary(), RunClock()
    summary(submitted("a", at=10.0))
    readings = [clock.read(summary)]
    for at in (10.0, 10.0, 500.0, 500.0):
        summary(StepsDone(at=at, job="a", slot=0, epoch=1, step=1, loss=1.0))
        readings.append(clock.read(summary))
    assert readings == sorted(readings)
    assert readings[0] == 10.0
    assert readings[-1] >= 500.0
