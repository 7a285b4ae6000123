"""The scheduling benchmark runs at its smallest scale and says what it should; no test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quantiles import Quantiles
from benchmarks.scheduler_engine import Shares, Switches, measure_shares, measure_switches
from benchmarks.schedulers import POLICIES, main, modes_of
from benchmarks.schedulers_tables import targets_of
from schedulers.registry import BUILT_INS


def report(tmp_path: Path, *arguments: str) -> dict:
    out = tmp_path / "schedulers.json"
    main(["--scale", "tiny", "--out", str(out), *arguments])
    assert out.with_suffix(".png").stat().st_size > 10_000
    return json.loads(out.read_text())


def test_decisions_are_measured_and_written(tmp_path: Path) -> None:
    found = report(tmp_path, "--part", "decisions", "--policy", "fair(srtf)")
    assert {"command", "git_commit", "machine", "versions", "settings"} <= set(found)
    (each,) = found["decisions"]
    assert (each["policy"], each["select"]["count"]) == ("fair(srtf)", 5)
    assert each["select"]["p50"] < each["whole"]["p50"], "the whole holds the answer"
    assert [target["mode"] for target in found["targets"]] == ["fair(srtf)"]
    assert (found["runs"], found["switches"], found["shares"]) == ([], None, [])


def test_turns_are_counted_by_whose_they_are() -> None:
    found = measure_shares("fair(srtf)", {"ann": 1.0, "bob": 2.0}, num_turns=6)
    assert (found.num_turns, set(found.seconds)) == (6, {"ann", "bob"})
    assert 0 < found.seconds["ann"] < found.seconds["bob"]


def test_each_switch_is_from_the_cause_to_the_other_one() -> None:
    found = measure_switches(3)
    assert found.seconds.count == found.step.count == 3
    assert found.beyond_step.p50 < found.seconds.p50


@pytest.mark.slow
def test_the_jobs_are_the_same_under_every_policy_and_beside_the_baselines(tmp_path: Path) -> None:
    found = report(tmp_path, "--part", "makespan", "--policy", "srtf")
    assert [run["mode"] for run in found["runs"]] == ["sequential, 1 thread", "N processes, 1 thread", "unified, srtf"]
    assert all(run["is_equal"] and run["mean_completion"] <= run["makespan"] for run in found["runs"])


def test_every_built_in_policy_is_measured() -> None:
    names = {policy.partition("(")[0] for policy in POLICIES}
    assert set(BUILT_INS) - {"aging"} == names, "default is aging(srtf)"
    assert [mode.scheduler for mode in modes_of(["srtf", "edf"])] == ["fcfs", "fcfs", "srtf"]


def test_targets_say_by_how_much_they_are_missed() -> None:
    quantiles = Quantiles(count=1, p50=1.0, p90=2.0, p99=6.0, highest=6.0)
    switches = Switches(seconds=quantiles, beyond_step=quantiles, step=quantiles)
    uneven = Shares(policy="fair(srtf)", weights={"a": 1.0, "b": 2.0}, seconds={"a": 1.2, "b": 1.6}, num_turns=2)
    assert uneven.deviation == pytest.approx(20.0)
    switch, share = targets_of([], [], switches, [uneven])
    assert (switch.spread.median, switch.is_reached) == (6.0, False)
    assert (share.spread.median, share.is_reached) == (pytest.approx(20.0), False)
