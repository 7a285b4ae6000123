"""Jobs like those of a trace in the real engine, beside the simulation of just those."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.command_line import start_unified

TRACE = """\
job_id,submit_s,duration_s,num_gpus,user,priority
a,0,900,1,ann,1
b,10,300,1,bob,0
c,20,60,1,ann,0
d,30,120,1,bob,0
"""


def test_the_engine_and_the_simulator_are_laid_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    options = ["--engine", "--engine-jobs", 4, "--engine-seconds", 1.5, "--compare", "fair(srtf)", "--json"]
    process = start_unified("simulate", tmp_path / "trace.csv", *options)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    told = json.loads(out)
    assert [policy["scheduler"] for policy in told["policies"]] == ["fair(srtf)"]
    for policy in told["policies"]:
        whole = policy["groups"][0]
        assert (whole["num_jobs"], policy["left_out"], policy["slots"]) == (4, 0, 1)
        assert 0.7 < whole["ratio"] < 1.4, "lengths as measured in that very run"
        jobs = policy["jobs"]
        assert [job["user"] for job in jobs] == ["ann", "bob", "ann", "bob"]
        assert [job["priority"] for job in jobs] == [1, 0, 0, 0]
        steps = [job["num_steps"] for job in jobs]
        assert steps[0] > steps[1] > steps[3] > steps[2] >= 20
        assert all(job["submitted_at"] <= job["ready_at"] < job["trained_at"] <= job["ended_at"] for job in jobs)


def test_what_a_trace_lacks_is_told_before_anything_trains(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("job_id,submit_s,duration_s\na,0,900\n")
    process = start_unified("simulate", tmp_path / "trace.csv", "--engine", "--compare", "fcfs,priority")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "priority" in errors
