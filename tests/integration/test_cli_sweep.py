"""Sweeps through the command line and from Python: members equal the plain loop, and the tables say what came of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

import unified
from tests.integration import batches
from tests.integration.batches import describe, make_model, make_spec, write_folder, write_folders
from tests.integration.command_line import (
    assert_equals_alone,
    lines_until,
    start_unified,
    unified_command,
)
from unified.intake import Intake
from unified.job import JobSpec
from unified.nursery import Nursery
from unified.planning import Planner
from unified.run_state import RunFolder

SWEEP = {"optimizer.lr": [0.01, 0.1], "seed": [1, 2]}
ONE_SLOT = ("--slots", 1, "--threads", 1, "--no-stacking")  # bits are compared here


def changes_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a member of SWEEP says otherwise than the batch's convolutional model, written by hand."""
    return {"optimizer": {"name": "SGD", "lr": values["optimizer.lr"], "momentum": 0.9}, "seed": values["seed"]}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep and a job beside it."""
    root = write_folders(tmp_path_factory.mktemp("sweep") / "jobs", ["mlp"])
    write_folder(root / "conv", make_model("conv"), describe("conv", sweep=SWEEP))
    return root


@pytest.fixture(scope="module")
def sweep_run(jobs: Path) -> tuple[Path, Any]:
    out = jobs.parent / "out"
    return out, unified_command("run", jobs, "--out", out, "--scheduler", "round-robin:quantum=3", *ONE_SLOT)


def members(folder: Path) -> list[JobSpec]:
    return [*JobSpec.read(folder / "job.json").members()]


def test_every_member_comes_back_as_the_same_job_written_by_hand_would(sweep_run, jobs, tmp_path):
    out, done = sweep_run
    assert done.returncode == 0, done.stderr
    assert len(members(jobs / "conv")) == 4
    for member in members(jobs / "conv"):
        assert_equals_alone(out / member.name, "conv", **changes_of(member.from_sweep.values))
        result = json.loads((out / member.name / "result.json").read_text())
        assert result["sweep"] == {"name": "conv", "values": member.from_sweep.values}
    alone = write_folders(tmp_path / "alone", ["conv"], **changes_of(member.from_sweep.values))
    assert unified_command("run", alone / "conv", "--out", tmp_path / "out", *ONE_SLOT).returncode == 0
    by_hand = json.loads((tmp_path / "out" / "conv" / "result.json").read_text())
    assert by_hand["sweep"] is None
    assert by_hand["fingerprint"] == result["fingerprint"]
    assert by_hand["sha256"]["model.safetensors"] == result["sha256"]["model.safetensors"]


def test_the_table_is_best_first_on_the_terminal_and_in_every_file(sweep_run, jobs):
    out, done = sweep_run
    results = {member.name: json.loads((out / member.name / "result.json").read_text()) for member in members(jobs / "conv")}
    order = sorted(results, key=lambda name: results[name]["metrics"]["test_loss"])
    table = json.loads((out / "conv.sweep.json").read_text())
    assert (table["name"], table["fields"], table["ranked_by"]) == ("conv", [*SWEEP], "test_loss")
    assert [row["job"] for row in table["members"]] == order
    for row in table["members"]:
        assert row["state"] == "finished"
        assert row["metrics"].items() <= results[row["job"]]["metrics"].items()
        assert row["values"] == results[row["job"]]["sweep"]["values"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sweeps"] == {"conv": table}
    assert {name: job["sweep"] for name, job in summary["jobs"].items() if name != "mlp"} == {
        name: result["sweep"] for name, result in results.items()
    }
    assert summary["jobs"]["mlp"]["sweep"] is None
    with (out / "conv.sweep.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["job"] for row in rows] == order
    assert [json.loads(row["optimizer.lr"]) for row in rows] == [row["values"]["optimizer.lr"] for row in table["members"]]
    assert [float(row["accuracy"]) for row in rows] == [row["metrics"]["accuracy"] for row in table["members"]]
    shown = done.stdout[done.stdout.index("\nsweep conv: 4 jobs, best first by test_loss") :].splitlines()
    assert [line.split()[-1] for line in shown[3:7]] == order
    assert shown[2].split()[:3] == ["optimizer.lr", "seed", "accuracy"]
    assert "\nmlp " in done.stdout[done.stdout.index("\njob ") :]


def test_a_member_that_diverges_fails_alone_and_comes_last(tmp_path):
    root = write_folders(tmp_path / "jobs", ["conv"])
    write_folder(root / "sweep", make_model("conv"), describe("conv", name="rates", sweep={"optimizer.lr": [1e30, 0.05]}))
    done = unified_command("run", root / "sweep", "--out", tmp_path / "out", "--json")
    assert done.returncode == 3, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    good, bad = last["sweeps"]["rates"]["members"]
    assert (good["values"], good["state"], good["reason"]) == ({"optimizer.lr": 0.05}, "finished", None)
    assert (bad["values"], bad["state"]) == ({"optimizer.lr": 1e30}, "failed")
    assert "the loss became" in bad["reason"]
    assert_equals_alone(tmp_path / "out" / good["job"], "conv")


def test_members_that_keep_their_nans_stand_behind_those_with_a_loss(tmp_path):
    job = describe("conv", name="rates", on_nan="keep", sweep={"optimizer.lr": [1e30, 0.05, 0.01]})
    root = write_folders(tmp_path / "jobs", ["conv"])
    write_folder(root / "sweep", make_model("conv"), job)
    done = unified_command("run", root / "sweep", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "rates.sweep.json").read_text())["members"]
    assert rows[-1]["values"] == {"optimizer.lr": 1e30}
    assert rows[-1]["metrics"]["test_loss"] is None
    with (tmp_path / "out" / "rates.sweep.csv").open(newline="") as file:
        assert [row["test_loss"] == "" for row in csv.DictReader(file)] == [False, False, True]


def test_a_killed_sweep_goes_on_and_its_table_is_whole(jobs, tmp_path):
    out = tmp_path / "out"
    options = ["run", jobs / "conv", "--out", out, "--json", *ONE_SLOT]
    process = start_unified(*options)
    lines_until(process, lambda line: line["event"] == "JobFinished")
    process.kill()
    process.communicate()
    done = unified_command(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "conv.sweep.json").read_text())["members"]) == 4
    for member in members(jobs / "conv"):
        assert_equals_alone(out / member.name, "conv", **changes_of(member.from_sweep.values))


def test_a_dry_run_and_an_inspection_list_the_members(jobs):
    names = [member.name for member in members(jobs / "conv")]
    done = unified_command("run", jobs / "conv", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [job["name"] for job in plan["jobs"]] == names
    assert [*plan["shared"].values()] == [names]
    done = unified_command("inspect", jobs / "conv", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [member["name"] for member in told["members"]] == names
    assert told["members"][3]["sweep"]["values"] == {"optimizer.lr": 0.1, "seed": 2}
    assert len({member["step_seconds"] for member in told["members"]}) == 1, "they step alike: one of them was timed"
    done = unified_command("inspect", jobs / "conv")
    assert all(f"\n{name} " in f"\n{done.stdout}" for name in names)


def test_what_is_wrong_with_a_sweep_is_told_with_the_combination(jobs, tmp_path):
    root = write_folders(tmp_path / "jobs", ["conv"])
    sweep = {"optimizer.lr": [0.1, -1], "seed": [0, 1], "metric": [1]}
    write_folder(root / "fields", make_model("conv"), describe("conv", name="fields", sweep=sweep))
    write_folder(root / "values", make_model("conv"), describe("conv", name="values", sweep={"optimizer.lr": [0.1, -1]}))
    # Only the data tell that a batch of these cannot be filled, of two members that differ in their seeds.
    sizes = {"batch_size": [8, 64], "seed": [0, 1]}
    write_folder(root / "sizes", make_model("conv"), describe("conv", name="sizes", drop_last=True, sweep=sizes))
    done = unified_command("run", root, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    fields, sizes, values = done.stderr.splitlines()
    assert "job 'fields': sweep.metric: expected a field of the job" in fields
    assert "job 'sizes-002-batch_size64-seed0': batch_size: " in sizes
    assert (
        "job 'values': optimizer.lr: expected what torch.optim.SGD accepts, got -1 in the combination optimizer.lr=-1" in values
    )


@pytest.mark.parametrize("name", ["a.sweep.json", "a.sweep.csv"])
def test_a_job_cannot_take_the_name_of_a_sweeps_table(name, tmp_path):
    root = write_folders(tmp_path / "jobs", ["mlp"])
    write_folder(root / "other", make_model("mlp"), describe("mlp", name=name))
    done = unified_command("run", root, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "rename it" in done.stderr


def test_a_sweep_made_in_python_trains_like_the_folder():
    spec = make_spec("conv", sweep=SWEEP)
    results = {result.name: result for result in unified.train(spec, slots=1, stacking=False)}
    assert [*sorted(results)] == [member.name for member in spec.members()]
    for member in spec.members():
        batches.assert_equals_alone(results[member.name], "conv", **changes_of(member.from_sweep.values))
    with unified.Engine(slots=1) as engine:
        assert engine.submit(spec) == "conv"
        assert engine.submit_all([make_spec("mlp")]) == ["mlp"]
        with pytest.raises(unified.UnifiedError, match="two jobs named"):
            engine.submit(spec.members()[0])
        assert {result.name for result in engine.run()} == {*results, "mlp"}


def test_members_that_step_alike_are_measured_once(tmp_path):
    """Of a hundred members with two sizes of batch two are timed, on one thread and on several."""
    spec = make_spec("mlp", sweep={"seed": [*range(50)], "batch_size": [4, 8]})
    nursery = Nursery()
    try:
        folder, planner = RunFolder(path=tmp_path), Planner(devices=("cpu",), slots="auto", threads=None)
        intake = Intake(nursery=nursery, folder=folder, planner=planner, trust=False, resume=False)
        records = intake.read_specs([spec])
        intake.time_steps(records, 2)
    finally:
        nursery.close()
    assert len(records) == 100
    for num_threads in (1, 2):
        timed = {(record.submission.spec.batch_size, record.trial_seconds[num_threads]) for record in records}
        assert len(timed) == 2
        assert all(math.isfinite(seconds) and seconds > 0 for _, seconds in timed)
    assert len({record.submission.estimate for record in records}) == 2
