"""``unified merge`` as its users meet it: in a process of its own, from finished jobs to models that torch alone can run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import unified
from tests.integration.command_line import PATIENCE_SECONDS, environment
from tests.integration.fused_results import CLASSES, NUM_TRAIN, convolutional, images_and_labels, trained, write_result
from unified.cli import main
from unified.inspect_command import inspect

QUICK = ("--steps", "2", "--alpha", "0.2", "--max-drop", "0.2", "--threads", "1")

#: What needs nothing of ours: loads an exported model and answers a batch of another size.
WITH_TORCH_ALONE = """
import sys, torch
model = torch.export.load(sys.argv[1]).module()
print({task: tuple(answer.shape) for task, answer in model(torch.zeros(7, 1, 8, 8)).items()})
assert not {"unified", "fusion"} & set(sys.modules)
"""


def merge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unified", "merge", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)


def failing(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["merge", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("unified: ") for line in captured.err.splitlines())
    return captured.err


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutional networks, trained on the same images."""
    root = tmp_path_factory.mktemp("results")
    torch.manual_seed(0)
    images, labels = images_and_labels()
    for name in ("digit", "parity"):
        model = trained(convolutional(CLASSES[name]), images[:NUM_TRAIN], labels[name][:NUM_TRAIN], epochs=4)
        write_result(root / name, model, images, labels[name])
    return root


@pytest.fixture(scope="module")
def two(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("merged") / "two"
    return out, merge(results, "--out", out, *QUICK, "--baselines", "--json")


def test_events_are_lines_of_json_and_the_last_is_the_report(two):
    out, done = two
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "Started"
    assert kinds[-2:] == ["Finished", "Report"]
    assert {"StageBegan", "RoundEnded", "AlphaTried"} <= set(kinds)
    assert {event["scheme"] for event in events if event["event"] == "RoundEnded"} == {"PAM", "B1", "B2"}
    written = json.loads((out / "report.json").read_text())
    assert events[-1]["schemes"] == written["schemes"]
    assert written["is_held_out"]
    assert written["gains"].keys() == {"original", "B1", "B2"}


def test_what_comes_out_runs_with_torch_alone_and_as_a_model_of_ours(two):
    out, _ = two
    command = [sys.executable, "-c", WITH_TORCH_ALONE, str(out / "model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=out, timeout=PATIENCE_SECONDS)
    assert done.stdout.strip() == "{'digit': (7, 10), 'parity': (7, 2)}"
    images, _ = images_and_labels()
    whole = unified.load_umodel(out / "model.umodel").eval()(images[:5])
    for task in ("digit", "parity"):
        alone = torch.export.load(out / "tasks" / f"{task}.pt2").module()(images[:5])
        torch.testing.assert_close(alone, whole[task], rtol=1e-5, atol=1e-5)  # sums in another order
    page = (out / "report.html").read_text()
    assert "PAM: merged, then pruned" in page


def test_it_is_trained_on_as_a_job_of_its_own(two, tmp_path):
    """The model of all tasks is taken by a job, as any other model is."""
    out, _ = two
    images, labels = images_and_labels()
    job = tmp_path / "again"
    job.mkdir()
    shutil.copy(out / "model.umodel", job / "model.umodel")
    torch.save((images[:64], labels["digit"][:64]), job / "train.pt")
    content = {
        "name": "again", "model": "model.umodel", "data": {"train": "train.pt"}, "loss": "CrossEntropyLoss", "output": "digit",
        "optimizer": {"name": "Adam", "lr": 0.001}, "epochs": 1, "batch_size": 32,
    }  # fmt: skip
    (job / "job.json").write_text(json.dumps(content))
    assert inspect(job, trust=False, as_json=True) == 0


def test_people_get_lines_and_a_table(results, tmp_path):
    done = merge(results, "--out", tmp_path / "out", *QUICK, "--prune", "none")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 models: digit ")
    assert any(line.startswith("digit+parity  the original networks") for line in lines)
    assert lines[-1] == f"the merged model and report.html are in {tmp_path / 'out'}"


def test_results_whose_inputs_differ_are_refused(results, tmp_path, capsys):
    images, labels = images_and_labels()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    write_result(tmp_path / "flat", flat, images.flatten(1), labels["parity"])
    said = failing(results / "digit", tmp_path / "flat", "--out", tmp_path / "out", *QUICK, capsys=capsys)
    assert "tasks must take the same input signature" in said
    assert not (tmp_path / "out").exists()


def test_kernel_sizes_that_cannot_correspond_are_refused(results, tmp_path, capsys):
    images, labels = images_and_labels()
    other = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    write_result(tmp_path / "five", other, images, labels["large"])
    said = failing(results / "digit", tmp_path / "five", "--out", tmp_path / "out", *QUICK, capsys=capsys)
    assert "no corresponding layer" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"digit": torch.arange(200) % 10}, "task 'parity': "),
        ({"digit": torch.arange(200) % 10, "parity": torch.zeros(200, dtype=torch.int64)}, "parity"),
        ({"digit": torch.arange(200) % 10, "parity": torch.arange(200) % 3}, "expected one class below that number"),
    ],
)
def test_labels_that_do_not_serve_are_refused(labels, expected, results, tmp_path, capsys):
    torch.save({"inputs": torch.rand(200, 1, 8, 8), "targets": labels}, tmp_path / "samples.pt")
    said = failing(results, "--data", tmp_path / "samples.pt", "--out", tmp_path / "out", *QUICK, capsys=capsys)
    assert expected in said


def test_a_folder_with_something_in_it_is_refused(results, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert "expected a new or an empty folder" in failing(results, "--out", tmp_path, *QUICK, capsys=capsys)
