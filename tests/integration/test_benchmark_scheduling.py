"""The scheduling benchmark runs end to end on small traces and says what it should; no test looks at what a policy reaches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scheduling
from benchmarks.scheduling_aims import aims_of
from benchmarks.scheduling_runs import PLANS, TRACES, Finding

ROWS = "".join(f"{index},{60 * index},{30 + 971 * index % 5000}\n" for index in range(40))


@pytest.mark.slow
def test_the_benchmark_compares_every_policy_on_every_trace_and_judges_what_was_aimed_at(tmp_path: Path) -> None:
    for name in TRACES.values():
        (tmp_path / name).write_text("job_id,submit_s,duration_s\n" + ROWS)
    out = tmp_path / "scheduling.json"
    assert scheduling.main(["--traces", str(tmp_path), "--out", str(out), "--quick", "--seeds", "2"]) == 0
    report = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert {"command", "git_commit", "machine", "versions", "settings", "findings", "aims"} <= set(report)
    assert str(tmp_path) not in out.read_text()
    found = {(row["trace"], row["plan"], row["policy"]) for row in report["findings"]}
    expected = {(trace, plan.name, policy) for trace in TRACES for plan in PLANS for policy in plan.policies}
    assert found == expected | {(trace, plan.name, "fcfs alone") for trace in TRACES for plan in PLANS if plan.corun > 1}
    for row in report["findings"]:
        assert row["num_jobs"] == 40
        assert row["metrics"]["wrong_answers"] == 0
        assert len(row["gain_by_seed"]) in (1, 2)
    assert len(report["aims"]) == len(aims_of([Finding(**row) for row in report["findings"]])) == 10
