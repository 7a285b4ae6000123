"""The command line end to end: real processes, real job folders, and results on disk that equal the plain loop bit for bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn

import unified
from tests.integration.batches import (
    MEMBERS,
    TEST,
    Conv,
    alone,
    describe,
    make_model,
    write_folder,
    write_folders,
)
from tests.integration.command_line import (
    RESULT_FILES,
    assert_equals,
    assert_equals_alone,
    environment,
    rows_of,
    unified_command,
)
from tests.plain import train_alone
from unified.run_state import RunFolder
from unified.submission.umodel_read import load_umodel

Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job folder for each member of the batch."""
    return write_folders(tmp_path_factory.mktemp("batch") / "jobs")


# ---- a run that goes well


@pytest.fixture(scope="module")
def plain_run(jobs: Path) -> tuple[Path, Any]:
    """All jobs in one hybrid, in turns of three steps, with plain lines for output."""
    out = jobs.parent / "plain"
    options = ["--scheduler", "round-robin:quantum=3", "--slots", 1, "--threads", 1]
    return out, unified_command("run", jobs, "--out", out, *options)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_job_folder_comes_back_as_if_it_had_trained_alone(name, plain_run):
    out, done = plain_run
    assert done.returncode == 0, done.stderr
    assert_equals_alone(out / name, name)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_files_of_a_result_are_complete_and_agree(name, plain_run):
    folder = plain_run[0] / name
    assert {path.name for path in folder.iterdir()} == RESULT_FILES
    weights = torch.load(folder / "state_dict.pt", weights_only=True)
    returned = load_umodel(folder / "model.umodel")
    assert list(returned.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in returned.state_dict().items())
    original = make_model(name).eval()
    original.load_state_dict(weights, strict=True)
    with torch.no_grad():
        assert torch.equal(returned.eval()(TEST[0]), original(TEST[0]))
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"] == rows_of(folder)[-1]
    assert set(result["sha256"]) == RESULT_FILES - {"result.json"}
    assert set(result["ran_beside"]) == set(MEMBERS) - {name}


def test_a_run_leaves_a_summary_and_a_picture(plain_run):
    out, _ = plain_run
    summary = json.loads((out / "summary.json").read_text())
    assert summary["run"]["num_finished"] == len(MEMBERS)
    assert summary["run"]["scheduler"] == "round-robin:quantum=3"
    assert all(job["turns"] > 1 for job in summary["jobs"].values())
    picture = (out / "timeline.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")


def test_plain_lines_tell_the_story_and_end_with_a_table(plain_run):
    out, done = plain_run
    assert done.stderr == ""
    for name in MEMBERS:
        assert f"{name}  finished: accuracy" in done.stdout
    table = done.stdout[done.stdout.index("\njob ") :]
    assert all(f"\n{name} " in table for name in MEMBERS)
    assert done.stdout.endswith(f"results, summary.json and timeline.png are in {out}\n")


def test_a_run_is_laid_beside_its_simulation(plain_run):
    """Before the run is resumed below: one that was resumed cannot be replayed."""
    out, _ = plain_run
    done = unified_command("simulate", out, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    whole = told["groups"][0]
    assert (whole["group"], whole["num_jobs"], told["left_out"]) == ("all", len(MEMBERS), 0)
    summary = json.loads((out / "summary.json").read_text())["run"]
    assert told["scheduler"] == summary["scheduler"]
    assert whole["engine"] == pytest.approx(summary["completion_seconds"], rel=0.01)
    assert 0.7 < whole["ratio"] < 1.4, "the same jobs, the same policy, lengths as they were measured"
    shown = unified_command("simulate", out)
    assert f"{len(MEMBERS)} jobs under {summary['scheduler']} on " in shown.stdout


def test_an_earlier_run_is_not_written_over(plain_run, jobs):
    out, _ = plain_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name == "result.json"}
    done = unified_command("run", jobs, "--out", out)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "holds an earlier run" in line
    assert "--resume" in line
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_resuming_a_run_that_is_done_trains_nothing(plain_run, jobs):
    out, _ = plain_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name == "result.json"}
    done = unified_command("run", jobs, "--out", out, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["job"] for line in told if line["event"] == "JobFinished"} == set(MEMBERS)
    assert not [line for line in told if line["event"] == "TurnStarted"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    sealed = {name: json.loads((out / name / "result.json").read_text())["completion_seconds"] for name in MEMBERS}
    took = {line["job"]: line["completion_seconds"] for line in told if line["event"] == "JobFinished"}
    assert took == pytest.approx(sealed)


# ---- a run in which one job fails, and others bring tables


@pytest.fixture(scope="module")
def mixed_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose loss explodes, between sound ones: one of tensors, one of a CSV file, one of a Hugging Face folder."""
    root = write_folders(tmp_path_factory.mktemp("mixed") / "jobs", ["lstm"])
    exploding = describe("conv", name="exploding", optimizer={"name": "SGD", "lr": 1e30}, epochs=30)
    write_folder(root / "exploding", make_model("conv"), exploding)
    write_folder(root / "keeping", make_model("conv"), exploding | {"name": "keeping", "epochs": 2, "on_nan": "keep"})
    write_table(root / "data" / "points.csv", POINTS)
    datasets.DatasetDict(
        train=as_dataset(POINTS[0][:20], POINTS[1][:20]), test=as_dataset(POINTS[0][20:], POINTS[1][20:])
    ).save_to_disk(root / "data" / "points")
    for name, data in TABLE_JOBS.items():
        (root / name).mkdir()
        unified.export(seeded_points_model(), POINTS[0][:2], root / name / "model.umodel")
        job = POINTS_JOB | {"name": name, "model": "model.umodel", "data": data}
        (root / name / "job.json").write_text(json.dumps(job))
    return root


def make_points() -> Pair:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(30, 2, generator=generator), torch.randint(3, (30,), generator=generator)


POINTS = make_points()
POINTS_JOB: dict[str, Any] = {
    "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "optimizer": {"name": "SGD", "lr": 0.1},
    "epochs": 3, "batch_size": 4, "seed": 3, "priority": -1,
}  # fmt: skip
TABLE_JOBS = {
    "csv": {"train": "../data/points.csv", "columns": {"inputs": ["height", "width"], "targets": "kind"}},
    "hugging-face": {
        "train": "../data/points", "test": "../data/points", "columns": {"inputs": "point", "targets": "kind"},
    },
}  # fmt: skip


def seeded_points_model() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


def write_table(path: Path, points: Pair) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "width", "comment", "height"])
        for (height, width), kind in zip(points[0].tolist(), points[1].tolist(), strict=True):
            writer.writerow([kind, width, "not a number", height])


def as_dataset(inputs: Tensor, targets: Tensor) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"kind": targets.tolist(), "point": inputs.tolist()})


@pytest.fixture(scope="module")
def mixed_run(mixed_jobs: Path) -> tuple[Path, Any, list[dict[str, Any]]]:
    """Two slots, priorities, events as JSON lines."""
    out = mixed_jobs.parent / "out"
    options = ["--scheduler", "priority", "--slots", 2, "--threads", 1, "--json", "--deterministic"]
    done = unified_command("run", mixed_jobs, "--out", out, *options)
    return out, done, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_job_that_fails_is_told_by_exit_code_reason_and_log(mixed_run):
    out, done, told = mixed_run
    assert done.returncode == 3
    (failure,) = [line for line in told if line["event"] == "JobFailed"]
    assert failure["job"] == "exploding"
    assert failure["reason"].startswith("the loss became ")
    assert "NonFiniteLossError" in Path(failure["log"]).read_text()
    assert Path(failure["log"]) == out / "exploding" / "job.log"
    assert not (out / "exploding" / "result.json").exists()
    assert told[-1]["jobs"]["exploding"]["reason"] == failure["reason"]


def test_a_job_that_keeps_its_nans_gets_them_back(mixed_run):
    folder = mixed_run[0] / "keeping"
    weights, _ = alone("conv", optimizer={"name": "SGD", "lr": 1e30}, epochs=2)
    found = torch.load(folder / "state_dict.pt", weights_only=True)
    assert any(value.isnan().any() for value in found.values() if value.is_floating_point())
    torch.testing.assert_close(found, weights, rtol=0, atol=0, equal_nan=True)
    assert [row["train_loss"] for row in rows_of(folder)] == [None, None]
    assert "NaN" not in (folder / "result.json").read_text() + (folder / "metrics.jsonl").read_text()


def test_its_neighbour_does_not_notice(mixed_run):
    assert_equals_alone(mixed_run[0] / "lstm", "lstm")


def test_a_csv_with_named_columns_trains_as_its_tensors_do(mixed_run):
    expected = train_alone(seeded_points_model(), POINTS_JOB, POINTS)
    assert_equals(mixed_run[0] / "csv", *expected)


def test_a_hugging_face_folder_trains_as_its_tensors_do(mixed_run):
    train, test = (POINTS[0][:20], POINTS[1][:20]), (POINTS[0][20:], POINTS[1][20:])
    assert_equals(mixed_run[0] / "hugging-face", *train_alone(seeded_points_model(), POINTS_JOB, train, test))


def test_json_lines_end_with_the_summary_and_count_epochs_right(mixed_run):
    out, done, told = mixed_run
    assert done.stderr == "unified: job 'csv': metrics have no effect without data.test\n"
    assert [line["event"] for line in told if line["event"] in {"RunStarted", "RunEnded"}] == [
        "RunStarted",
        "RunEnded",
    ]
    assert told[-1]["event"] == "Summary"
    assert json.loads((out / "summary.json").read_text()) == {k: v for k, v in told[-1].items() if k != "event"}
    submitted = {line["job"]: line for line in told if line["event"] == "JobSubmitted"}
    assert set(submitted) == {"lstm", "exploding", "keeping", *TABLE_JOBS}
    for line in told:
        if line["event"] == "StepsDone":
            assert line["epoch"] == -(-line["step"] // submitted[line["job"]]["steps_per_epoch"])


# ---- before a run


def test_a_dry_run_tells_order_memory_and_sharing_and_starts_nothing(jobs, tmp_path):
    done = unified_command("run", jobs, "--dry-run", "--scheduler", "sjf", env=environment(TMPDIR=str(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    sizes = {name: sum(p.numel() for p in make_model(name).parameters()) for name in MEMBERS}
    _, *order = done.stdout.partition("\nslots\n")[0].splitlines()
    rows = {line.split()[1]: line for line in order}
    assert list(rows) == sorted(sorted(MEMBERS), key=sizes.__getitem__)
    assert all(" KiB" in row for row in rows.values())
    shared = done.stdout[done.stdout.index("shared data") :].splitlines()
    assert len(shared) == 2
    assert set(shared[1].partition("loaded once): ")[2].split(", ")) == set(MEMBERS)
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_what_a_folder_holds(jobs):
    done = unified_command("inspect", jobs / "conv")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"({sum(p.numel() for p in Conv().parameters())})" in done.stdout
    assert "model.umodel (umodel)" in done.stdout
    assert "../data/train.pt: 45 samples" in done.stdout
    as_json = json.loads(unified_command("inspect", jobs / "conv", "--json").stdout)
    assert (as_json["name"], as_json["num_steps"], as_json["problems"]) == ("conv", 18, [])
    assert as_json["estimate"]["peak_bytes"] > as_json["estimate"]["resident_bytes"] > 0


BAD_FIELDS = {
    "loss": "CrossEntropyLos",
    "epochs": "three",
    "batch_size": 0,
    "optimizer": {"name": "SGD", "learning_rate": 0.1},
    "clip": 1.0,
    "metrics": ["acuracy"],
}


def test_inspect_tells_everything_that_is_wrong_at_once(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    good = describe("conv", name="bad") | {"model": "model.umodel", "data": {"train": "train.pt"}}
    (folder / "job.json").write_text(json.dumps(good | BAD_FIELDS))
    done = unified_command("inspect", folder)
    verdicts = [line.split() for line in done.stdout.splitlines()]
    assert (done.returncode, [words[1] for words in verdicts if "refused" in words]) == (1, ["schema", "hyperparameters"])
    lines = done.stderr.splitlines()
    assert all(line.startswith("unified: [E-") and "job 'bad'" in line for line in lines)
    for field in ("loss", "epochs", "batch_size", "optimizer.learning_rate", "clip", "metrics[0]"):
        assert [line for line in lines if f": {field}" in line], (field, lines)


def test_inspect_tells_every_missing_file_at_once(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    files = {"model": "model.umodel", "data": {"train": "train.pt", "test": "../../outside.pt"}}
    (folder / "job.json").write_text(json.dumps(describe("conv", name="bare") | files))
    done = unified_command("inspect", folder, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    problems = json.loads(done.stdout)["problems"]
    assert [problem["field"] for problem in problems][:2] == ["model", "data.train"]


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("round-robbin", "did you mean 'round-robin'?"),
        ("sjf:lenght=epochs", "did you mean 'length'?"),
        ("nowhere:Policy", "no scheduler is called 'nowhere'"),
    ],
)
def test_an_unknown_scheduler_is_one_line_with_the_nearest_name(spelling, told, jobs, tmp_path):
    done = unified_command("run", jobs, "--out", tmp_path / "out", "--scheduler", spelling)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def test_results_are_not_written_over_the_job_folders(jobs):
    done = unified_command("run", jobs, "--out", jobs)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "results go to a folder of their own" in line


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_jobs(jobs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = unified_command("run", jobs, "--out", tmp_path / "file")
    assert (done.returncode, done.stdout) == (1, "")
    expected = "cannot be a folder for results: Not a directory; choose another --out folder"
    assert done.stderr == f"unified: {tmp_path / 'file'} {expected}\n"


@pytest.mark.parametrize("name", ["summary.json", "timeline.png"])
def test_a_job_cannot_take_the_name_of_a_file_of_the_run(name, tmp_path):
    with pytest.raises(unified.UnifiedError, match="rename it"):
        RunFolder(path=tmp_path).check_may_start(name, resume=False)
