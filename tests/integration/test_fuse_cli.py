"""``unified fuse`` as its users meet it: in a process of its own, from finished jobs to a model that torch alone can run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unified
from tests.integration.command_line import PATIENCE_SECONDS, environment, lines_until, start_unified
from tests.integration.fused_results import NUM_TEST, NUM_TRAIN, images_and_labels, write_result, write_results
from unified.cli import main
from unified.fusing.gathering import gather
from unified.fusing.sources import read_results

#: Costs in FLOPs are the same on every machine and in every run, so the whole search is.
QUICK = ("--max-drop", "0.1", "--metric", "flops", "--candidates", "4", "--epochs", "2", "--batch-size", "32", "--threads", "1")

#: What needs nothing of ours: loads the exported model and answers a batch of another size.
WITH_TORCH_ALONE = """
import sys, torch
model = torch.export.load(sys.argv[1] + "/model.pt2").module()
images = torch.load(sys.argv[1] + "/images.pt")
with torch.no_grad():
    torch.save(model(images), sys.argv[1] + "/answers.pt")
assert not {"unified", "fusion"} & set(sys.modules)
"""


def fuse(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unified", "fuse", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutional networks and a transformer, trained."""
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def two(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The two convolutional networks, fused."""
    out = tmp_path_factory.mktemp("fused") / "two"
    return out, fuse(results, "--tasks", "digit,parity", "--out", out, *QUICK)


def accuracy(answers: torch.Tensor, labels: torch.Tensor) -> float:
    return (answers.argmax(dim=1) == labels).float().mean().item()


def test_what_comes_out_runs_with_torch_alone_within_its_drop(two, results):
    out, done = two
    assert done.returncode == 0, done.stderr
    held_out = gather(read_results([results], ("digit", "parity")), None, seed=0).test
    images, labels = held_out.inputs, held_out.labels
    torch.save(images, out / "images.pt")
    subprocess.run([sys.executable, "-c", WITH_TORCH_ALONE, str(out)], check=True, cwd=out, timeout=PATIENCE_SECONDS)
    answers = torch.load(out / "answers.pt")
    assert list(answers) == ["digit", "parity"]
    (best,) = report_of(out)["best"]
    assert best["candidate"] > 0
    assert best["flops"] < report_of(out)["original"]["flops"]
    for task in best["tasks"]:
        name, expected = task["task"], labels[task["task"]]
        with torch.no_grad():
            teacher = unified.load_umodel(results / name / "model.umodel").eval()(images)
        assert len(answers[name]) == NUM_TEST // 2  # the other half judged candidates
        assert task["test_after"] == pytest.approx(accuracy(answers[name], expected))
        assert task["test_before"] == pytest.approx(accuracy(teacher, expected))
        assert accuracy(teacher, expected) - accuracy(answers[name], expected) <= 0.1 + 1e-6


def test_the_archive_answers_as_the_exported_program_does(two):
    out, _ = two
    images, _ = images_and_labels()
    with torch.no_grad():
        archive = unified.load_umodel(out / "model.umodel").eval()(images[:7])
        program = torch.export.load(out / "model.pt2").module()(images[:7])
        alone = torch.export.load(out / "tasks" / "parity.pt2").module()(images[:7])
    assert all(torch.equal(archive[task], program[task]) for task in ("digit", "parity"))
    assert torch.equal(alone, program["parity"])


def test_plain_lines_tell_of_every_candidate_and_end_with_tables(two):
    out, done = two
    assert done.stderr == ""
    assert "2 models: digit (" in done.stdout
    assert [f"candidate {number} " in done.stdout for number in range(1, 5)] == [True] * 4
    table = done.stdout[done.stdout.index("\ndrop allowed") :]
    assert "digit (" in table
    assert " with 1 CPU thread\n" in done.stdout
    assert done.stdout.endswith(f"the fused model and report.html are in {out}\n")
    assert "<svg" in (out / "report.html").read_text()


def test_a_killed_search_goes_on_to_the_same_model(two, results, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["fuse", str(results), "--tasks", "digit,parity", "--out", str(out), *QUICK, "--json"]
    process = start_unified(*arguments)
    seen = lines_until(process, lambda line: line["event"] == "CandidateDone")
    process.kill()
    process.communicate()
    assert seen[-1]["event"] == "CandidateDone"
    assert not (out / "report.json").exists()
    assert main([*arguments, "--resume"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1]["event"] == "Report"
    assert 1 not in [line["number"] for line in told if line["event"] == "CandidateDone"]
    weights, expected = load_file(out / "model.safetensors"), load_file(two[0] / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    keys = ("number", "key", "status", "checks")
    mine, theirs = ([{key: row[key] for key in keys} for row in report_of(at)["candidates"]] for at in (out, two[0]))
    assert mine == theirs


def test_without_threads_the_number_is_measured_and_kept_on_resuming(results, tmp_path, capsys):
    before = torch.get_num_threads()
    arguments = ["fuse", str(results), "--tasks", "digit,parity", "--out", str(tmp_path / "out"), *QUICK[:-2], "--json"]
    assert main(arguments) == 0
    table = tmp_path / "out" / "search" / "table.json"
    content = json.loads(table.read_text())
    number = json.loads(capsys.readouterr().out.splitlines()[-1])["threads"]
    assert number == content["conditions"]["num_threads"] == report_of(tmp_path / "out")["threads"]
    content["conditions"]["num_threads"] = before + 1
    table.write_text(json.dumps(content))
    assert main([*arguments, "--resume"]) == 0  # costs of another number would be refused
    assert report_of(tmp_path / "out")["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_models_of_different_families_fuse_without_a_label_in_sight(results, tmp_path):
    images, _ = images_and_labels()
    torch.save(images, tmp_path / "images.pt")
    options = ("--data", tmp_path / "images.pt", "--candidates", "2", "--epochs", "1", "--max-drop", "0.3", "--threads", "1")
    done = fuse(results, "--tasks", "parity,large", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    (best,) = report_of(tmp_path / "out")["best"]
    assert {task["kind"] for task in best["tasks"]} == {"agreement"}
    assert all(task["test_drop"] <= 0.3 for task in best["tasks"])
    with torch.no_grad():
        answers = torch.export.load(tmp_path / "out" / "model.pt2").module()(images[:3])
    assert {task: answer.shape for task, answer in answers.items()} == {"parity": (3, 2), "large": (3, 2)}


# ---- what is refused, in this process


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main([*map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_one_job_is_too_few(results, tmp_path, capsys):
    (line,) = lines_of(capsys, "fuse", results / "digit", "--out", tmp_path / "out")
    assert "expected two finished jobs or more, got only 'digit'" in line


def test_an_earlier_search_is_not_written_over(two, results, capsys):
    before = (two[0] / "model.umodel").stat().st_mtime_ns
    (line,) = lines_of(capsys, "fuse", results, "--out", two[0])
    assert "holds an earlier search" in line
    assert "--resume" in line
    assert (two[0] / "model.umodel").stat().st_mtime_ns == before


def test_a_search_of_something_else_is_not_gone_on_with(two, results, capsys):
    (line,) = lines_of(capsys, "fuse", results, "--out", two[0], "--resume")
    assert "was made for other models, data or settings" in line


def test_the_folder_of_a_job_is_no_place_for_the_fused_model(results, capsys):
    (line,) = lines_of(capsys, "fuse", results, "--out", results / "digit")
    assert "is the folder of a job" in line


def test_models_of_other_inputs_are_refused_with_both_signatures(results, tmp_path, capsys):
    write_result(tmp_path / "wide", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(80, 2)), *WIDE)
    (line,) = lines_of(capsys, "fuse", results / "digit", tmp_path / "wide", "--out", tmp_path / "out")
    expected = "tasks must take the same input signature: 'digit' float32 (1, 8, 8), 'wide' float32 (1, 8, 10)"
    assert line == f"unified: {expected}"


WIDE = (torch.zeros(NUM_TRAIN + NUM_TEST, 1, 8, 10), torch.zeros(NUM_TRAIN + NUM_TEST, dtype=torch.int64))


def test_data_that_is_gone_is_asked_for(results, tmp_path, capsys):
    folder = tmp_path / "moved"
    write_result(folder, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), *images_and_labels_of("parity"))
    (folder / "train.pt").unlink()
    (line,) = lines_of(capsys, "fuse", results / "digit", folder, "--out", tmp_path / "out")
    assert f"nothing at '{folder / 'train.pt'}'" in line
    assert "--data DIR" in line


def images_and_labels_of(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = images_and_labels()
    return images, labels[task]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-drop", "two"], "expected drops of a score from 0 up to 1"),
        (["--max-drop", "1"], "expected drops of a score from 0 up to 1"),
        (["--resume", "--fresh"], "give one of them"),
        (["--policy", "best"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_told(options, told, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fuse", "results", "--out", "fused", *options])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_options_of_fusing_need_fuse(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "jobs", "--out", "results", "--max-drop", "0.01"])
    assert caught.value.code == 2
    assert "--max-drop has no effect without --fuse" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fused", "fused-2"])
def test_a_job_called_as_the_fused_model_is_refused_before_it_is_trained(name, tmp_path, capsys):
    (tmp_path / "jobs" / "some").mkdir(parents=True)
    (tmp_path / "jobs" / "some" / "job.json").write_text(json.dumps({"name": name}))
    (line,) = lines_of(capsys, "run", tmp_path / "jobs", "--out", tmp_path / "results", "--fuse")
    assert f"job {name!r}" in line
    assert "rename the job" in line
    assert not (tmp_path / "results").exists()


# ---- the whole journey


def test_a_run_with_fuse_trains_returns_and_fuses_what_shares_an_input(tmp_path):
    images, labels = images_and_labels()
    jobs = tmp_path / "jobs"
    (jobs / "data").mkdir(parents=True)
    for name, size in (("digit", 10), ("parity", 2), ("other", 2)):
        (jobs / name).mkdir()
        inputs = images[:96] if name != "other" else torch.zeros(96, 3)
        torch.save((inputs, labels["parity" if name == "other" else name][:96]), jobs / "data" / f"{name}.pt")
        width = inputs[0].numel()
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(width, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(),
            torch.nn.Linear(32, size),
        )  # fmt: skip
        unified.export(model, inputs[:2], jobs / name / "model.umodel")
        job = {
            "name": name, "model": "model.umodel", "data": {"train": f"../data/{name}.pt"}, "loss": "CrossEntropyLoss",
            "optimizer": {"name": "Adam", "lr": 0.01}, "epochs": 2, "batch_size": 32,
        }  # fmt: skip
        (jobs / name / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "unified", "run", str(jobs), "--out", str(tmp_path / "results"), "--slots", "1"]
    command += ["--threads", "1", "--fuse", "--max-drop", "0.5", "--fuse-candidates", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "other is not fused: no other finished job takes the same input" in done.stdout
    out = tmp_path / "results" / "fused"
    assert f"fusing digit, parity into {out}" in done.stdout
    assert {path.name for path in (out / "tasks").iterdir()} == {
        f"{task}.{form}" for task in ("digit", "parity") for form in ("pt2", "safetensors")
    }
    assert unified.load_umodel(out / "model.umodel").eval()(images[:2])["digit"].shape == (2, 10)
    assert (out / "report.json").is_file()
