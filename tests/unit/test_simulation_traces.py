"""Traces become workloads as documented; what is no trace is refused by line, column and value; metrics are what they say."""

from __future__ import annotations

import os
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import fmean, stdev

import pytest

from schedulers.base import SchedulerConfigError
from schedulers.registry import create
from schedulers.simulation.experiment import Setup, compare
from schedulers.simulation.fairness import fairness_of
from schedulers.simulation.metrics import metrics_of, percentile
from schedulers.simulation.simulator import Host, simulate
from schedulers.simulation.traces import Selection, TraceError, auto_quantum, read_trace
from schedulers.simulation.workload import SimJob

HEADER = "job_id,submit_s,duration_s,num_gpus,priority,user\n"
ROWS = "late,100,50,1,2,ann\nfirst,10,200,1,0,bob\ngang,20,100,8,1,ann\nlong,30,90000,1,1,ann\nsecond,10,400,1,1,ann\n"

TRACES = Path(os.environ.get("UNIFIED_DATA", "")) / "traces"
has_traces = pytest.mark.skipif(
    not os.environ.get("UNIFIED_DATA") or not TRACES.is_dir(), reason="UNIFIED_DATA names no folder with traces/"
)


def write(folder: Path, text: str) -> Path:
    path = folder / "small.csv"
    path.write_text(text)
    return path


def test_a_trace_becomes_a_workload_by_the_conventions(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, HEADER + ROWS))
    jobs = trace.workload(Selection(slots=2, load=0.5, sigma=0))
    # one GPU, in the range, by (submit, duration); 650 s of work over 0.5 x 2 slots x 90 s
    assert [job.id.split()[1] for job in jobs] == ["first", "second", "late"]
    assert [job.submit_time for job in jobs] == pytest.approx([0, 0, 650])
    assert [(job.seconds, job.user, job.priority, job.estimate_seconds) for job in jobs] == [
        (200, "bob", 0, None),
        (400, "ann", 1, None),
        (50, "ann", 2, None),
    ]
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    assert [job.id.split()[1] for job in trace.workload(Selection(jobs=2))] == ["first", "second"]
    assert auto_quantum(jobs) == 60
    [first, *_] = trace.workload(Selection(deadline_factor=3))
    assert first.deadline == 600


def test_estimates_are_wrong_by_as_much_as_sigma_says_and_the_same_for_a_seed(tmp_path: Path) -> None:
    rows = "".join(f"{index},{index},{100 + index}\n" for index in range(500))
    trace = read_trace(write(tmp_path, "job_id,submit_s,duration_s\n" + rows))
    jobs = trace.workload(Selection(sigma=0.5))
    errors = [log(job.estimate_seconds / job.seconds) for job in jobs if job.estimate_seconds]
    assert fmean(errors) == pytest.approx(0, abs=0.07)
    assert stdev(errors) == pytest.approx(0.5, abs=0.05)
    assert jobs == trace.workload(Selection(sigma=0.5))
    assert jobs != trace.workload(Selection(sigma=0.5, seed=1))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "duration_s is not in its first line, which has nothing"),
        ("job_id,submit_s\na,1\n", "duration_s is not in its first line, which has job_id, submit_s"),
        (HEADER + "a,1,2,1,0\n", "line 2: expected 6 values, got 5"),
        (HEADER + "a,1,2,1,0,u,x,y\n", "line 2: expected 6 values, got 8"),
        (HEADER + "a,1,60,1,0,u\nb,soon,60,1,0,u\n", r"line 3, column 'submit_s': expected a number .* got 'soon'"),
        (HEADER + "a,1,-60,1,0,u\n", r"line 2, column 'duration_s': .* got '-60'"),
        (HEADER + "a,1,nan,1,0,u\n", r"line 2, column 'duration_s': .* got 'nan'"),
        (HEADER + "a,1,1e308,1,0,u\n", r"line 2, column 'duration_s': expected a number of seconds from 0 to 1e12"),
        (HEADER + f"a,1,60,1,{'9' * 400},u\n", r"line 2, column 'priority': expected a whole number, got '999"),
        (HEADER + "a,1,60,one,0,u\n", r"line 2, column 'num_gpus': expected a number, got 'one'"),
        (HEADER + "a,1,60,1,0.5,u\n", r"line 2, column 'priority': expected a whole number, got '0.5'"),
        (HEADER + "a,1,60,1,0,u\na,2,60,1,0,u\n", "line 3: column 'job_id': 'a' is there twice"),
        (HEADER + "a,1,5,1,0,u\n", "none of its 1 one-GPU jobs lasts 30 to 86400 s"),
    ],
)
def test_what_is_no_trace_is_refused_where_it_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(TraceError, match=complaint):
        read_trace(write(tmp_path, text)).workload(Selection())


def test_a_file_as_spreadsheets_write_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_bytes(b'\xef\xbb\xbfjob_id,submit_s,duration_s\r\n"a,b",0,60\r\n')
    assert [job.id for job in read_trace(tmp_path / "sheet.csv").workload(Selection())] == ["000000 a,b"]


def test_a_file_that_is_missing_or_not_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"missing\.csv: No such file"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(TraceError, match="expected a CSV file"):
        read_trace(tmp_path / "binary.csv")


def test_a_policy_that_decides_by_what_a_trace_lacks_is_refused(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, HEADER + "a,0,60,1,,\nb,9,60,1,,\n"))
    setup = Setup(trace=trace, selection=Selection(), host=Host())
    for spelling, field in [("priority", "priority"), ("edf", "deadline"), ("sjf", "num_parameters")]:
        with pytest.raises(SchedulerConfigError, match=rf"'{spelling}' decides by {field}, which trace 'small' lacks"):
            compare(["fcfs", spelling], setup)
    with pytest.raises(SchedulerConfigError, match="no column 'owner' with values"):
        trace.workload(Selection(users_column="owner"))


def test_metrics_count_from_submission() -> None:
    jobs = [SimJob(id="a", submit_time=2, seconds=8), SimJob(id="b", submit_time=2, seconds=1)]
    metrics = metrics_of(simulate(jobs, create("fcfs"), Host()), 1)
    assert (metrics.mean_jct, metrics.p50, metrics.max, metrics.makespan) == (8.5, 9, 9, 9)
    assert (metrics.slowdown_p50, metrics.longest_wait, metrics.jain) == (9, 8, None)
    assert percentile([1, 2, 3], 0.99) == 3


def test_fairness_is_judged_against_what_users_were_due() -> None:
    # one has the slot first, the other after it; on half a slot each would have taken 20 s
    jobs = [SimJob(id=user, submit_time=0, seconds=10, user=user) for user in "ba"]
    outcome = simulate(jobs, create("fcfs"), Host())
    fairness = fairness_of(outcome, 1)
    assert fairness is not None
    # both are due 5 s until one is done at 10, and the other all of the slot from then on
    first, second = (job.user for job in sorted(outcome.jobs, key=lambda job: job.completion))
    assert fairness.normalised == pytest.approx({first: 10 / 5, second: 10 / 15})
    assert fairness.rho == pytest.approx({first: 10 / 20, second: 20 / (10 * 1.5)})
    assert fairness.worst_rho == pytest.approx(4 / 3)
    mean = (2 + 2 / 3) / 2
    assert fairness.deviation == pytest.approx(100 * (2 - mean) / mean)
    assert fairness.jain == pytest.approx((8 / 3) ** 2 / (2 * (4 + 4 / 9)))


@pytest.mark.parametrize(
    ("weights", "tolerance"), [((1.0, 1.0, 1.0), 0.1), ((1.0, 2.0, 4.0), 0.1)], ids=["equal weights", "weights 1, 2, 4"]
)
def test_users_who_are_always_busy_get_slot_time_by_their_weights(weights: tuple[float, ...], tolerance: float) -> None:
    jobs = [
        SimJob(id=f"{user}{index}", submit_time=0, seconds=100, user=user, weight=weight)
        for user, weight in zip("xyz", weights, strict=True)
        for index in range(20)
    ]
    outcome = simulate(jobs, create("fair(fcfs,by=user)", {"quantum": "10s"}), Host())
    seconds = dict.fromkeys("xyz", 0.0)
    until = 35 * 100.0  # the heaviest has 2000 s, and takes four of seven parts
    for turn in outcome.turns:
        seconds[turn.unit_id[0]] += max(0.0, min(turn.ended, until) - turn.began)
    for user, weight in zip("xyz", weights, strict=True):
        assert seconds[user] / until == pytest.approx(weight / sum(weights), rel=tolerance)


@has_traces
@pytest.mark.parametrize("load", [0.7, 0.9])
@pytest.mark.parametrize(
    ("name", "means"), [("alibaba_openb_gpu2023", (8032, 36821)), ("philly_vc_muri_trace2", (173159, 332974))]
)
def test_first_come_first_served_takes_what_it_took_before(name: str, means: tuple[float, float], load: float) -> None:
    jobs = read_trace(TRACES / f"{name}.csv").workload(Selection(load=load))
    assert len(jobs) == 1200
    metrics = metrics_of(simulate(jobs, create("fcfs"), Host(slots=4)), 4)
    assert metrics.mean_jct == pytest.approx(means[load == 0.9], abs=0.5)


def test_jobs_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = "".join(f"{index},{5 * (index // 3)},{100 - index}\n" for index in range(30))
    jobs = read_trace(write(tmp_path, "job_id,submit_s,duration_s\n" + rows)).workload(Selection())
    assert all(
        (before.submit_time, before.seconds, before.id) <= (after.submit_time, after.seconds, after.id)
        for before, after in pairwise(jobs)
    )


#: mean JCT of the first 200 jobs at load 0.9 on 4 slots, by trace and sigma: what the policies are worth must not change unseen
FIRST_200 = {
    ("alibaba_openb_gpu2023", 0.0): {"fcfs": 10332, "sjf:length=seconds": 6588, "srtf": 4835, "las": 5482, "stride": 5900},
    ("alibaba_openb_gpu2023", 1.0): {"srtf": 5242, "hrrn": 5790, "default": 5244},
    ("philly_vc_muri_trace2", 1.0): {"sjf:length=seconds": 14207, "default": 12322},
}


@has_traces
@pytest.mark.parametrize(("name", "sigma"), FIRST_200)
def test_policies_are_worth_what_they_were(name: str, sigma: float) -> None:
    expected = FIRST_200[name, sigma]
    trace = read_trace(TRACES / f"{name}.csv")
    comparison = compare(list(expected), Setup(trace=trace, selection=Selection(jobs=200, sigma=sigma), host=Host(slots=4)))
    assert {row.policy: row.metrics.mean_jct for row in comparison.rows} == pytest.approx(expected, rel=0.001)
    assert all(row.metrics.wrong_answers == 0 for row in comparison.rows)
