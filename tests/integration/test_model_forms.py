"""One batch with a job of each form that needs no trust, in through every door, and back in its own form."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import unified
from tests.integration.batches import TEST, TRAIN, assert_equals_alone, describe, make_model
from tests.integration.command_line import assert_equals_alone as assert_files_equal_alone
from tests.integration.command_line import unified_command, write_data
from tests.unit.job_folders import AT_ONCE, make_queue
from tests.unit.pretrained_folders import make_model as make_pretrained
from tests.unit.pretrained_folders import save
from unified.answering.members import check_alike, read_answerers
from unified.inspection import inspect
from unified.messages import Inspect, Inspected
from unified.queue.spool import scan
from unified.queue.submitting import submit_folder

LAYERS = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": 64, "out_features": 16},
    {"name": "ReLU"},
    {"name": "Dropout", "p": 0.2},
    {"name": "Linear", "in_features": 16, "out_features": 3},
]
DECLARED = {"architecture": {"layers": LAYERS}}

#: name of the job -> what its job.json says of its model
FORMS: dict[str, dict[str, Any]] = {
    "archive": {"model": "model.umodel"},
    "module": {"model": "whole.pth"},
    "tensors": {"model": "weights.pt"} | DECLARED,
    "safetensors": {"model": "weights.safetensors"} | DECLARED,
    "pretrained": {"model": "vit"},
}
SAME = ("archive", "module", "tensors", "safetensors")  # the same perceptron


def write_model(name: str, folder: Path) -> None:
    model, path = make_model("mlp"), folder / FORMS[name]["model"]
    match name:
        case "archive":
            unified.export(model, TRAIN[0][:2], path)
        case "module":
            torch.save(model, path)
        case "tensors":
            torch.save(model.state_dict(), path)
        case "safetensors":
            save_file(model.state_dict(), path)
        case _:
            save(make_pretrained("vit"), path)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("forms") / "jobs")
    for name, model in FORMS.items():
        (root / name).mkdir()
        write_model(name, root / name)
        data = {"train": "../data/train.pt", "test": "../data/test.pt"}
        job = describe("mlp", name=name, stacking="exact", optimizer={"name": "SGD", "lr": 0.1}) | {"data": data} | model
        (root / name / "job.json").write_text(json.dumps(job))
    return root


@pytest.fixture(scope="module")
def results(jobs: Path) -> Path:
    out = jobs.parent / "out"
    done = unified_command("run", jobs, "--out", out, "--slots", 1, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", SAME)
def test_each_form_trains_as_alone(name, results):
    assert_files_equal_alone(results / name, "mlp", optimizer={"name": "SGD", "lr": 0.1})


def test_each_form_comes_back_in_its_own(results):
    common = {"metrics.jsonl", "model.safetensors", "result.json", "state_dict.pt"}
    more = {"archive": {"model.umodel"}, "module": {"model.pt"}, "pretrained": {"config.json"}}
    for name in FORMS:
        assert {path.name for path in (results / name).iterdir()} == common | more.get(name, set())
    weights = torch.load(results / "module" / "state_dict.pt", weights_only=True)
    module = torch.load(results / "module" / "model.pt", weights_only=False)
    assert type(module) is nn.Sequential
    assert all(torch.equal(module.state_dict()[key], value) for key, value in weights.items())
    weights = torch.load(results / "pretrained" / "state_dict.pt", weights_only=True)
    again = type(make_pretrained("vit")).from_pretrained(results / "pretrained").state_dict()
    assert list(again) == list(weights)
    assert all(torch.equal(again[key], value) for key, value in weights.items())


def test_results_of_every_form_are_models_to_go_on_with(results):
    members = read_answerers([results / name for name in FORMS], trust=False)
    check_alike([member for member in members if member.name in SAME[1:]])
    assert type(members[-1].model) is type(make_pretrained("vit"))


def looked_at(folder: Path, cache: Path) -> Inspected:
    request = Inspect(folder=folder, cache=cache, trust=False, staged=False, device_type="cpu", num_threads=0, within_bytes=0)
    [found] = inspect(request)
    assert not found.problems
    return found


def test_jobs_of_one_architecture_may_step_as_one_whatever_their_form(jobs, tmp_path):
    found = {}
    for name in ("module", "tensors", "safetensors"):
        shutil.copytree(jobs / name, tmp_path / name)
        job = json.loads((jobs / name / "job.json").read_text())
        (tmp_path / name / "job.json").write_text(json.dumps(job | {"stacking": "auto"}))
        (tmp_path / "data").exists() or shutil.copytree(jobs / "data", tmp_path / "data")
        found[name] = looked_at(tmp_path / name, tmp_path / "cache").submission
    keys = {submission.stack_key for submission in found.values() if submission is not None}
    assert len(keys) == 1
    assert None not in keys


@pytest.mark.parametrize("door", ["submitted", "dropped"])
@pytest.mark.parametrize("name", FORMS)
def test_a_queue_takes_every_form(name, door, jobs, tmp_path):
    root, store = make_queue(tmp_path / "root")
    if door == "submitted":  # its model beside it, too
        folder = tmp_path / "mine"
        folder.mkdir()
        job = json.loads((jobs / name / "job.json").read_text())
        job |= {"model": str(jobs / name / job["model"]), "data": {"train": str(jobs / "data" / "train.pt")}}
        (folder / "job.json").write_text(json.dumps(job))
        row = submit_folder(root, store, folder, by="alice", config=AT_ONCE).job
    else:
        shutil.copytree(jobs / "data", root.data, dirs_exist_ok=True)
        shutil.copytree(jobs / name, root.incoming / f"{name}.job")
        [taken] = scan(root, store, AT_ONCE, now=time.time() + 1)
        row = taken.job
    assert row is not None
    found = looked_at(root.spec(row.id), tmp_path / "cache").submission
    assert found is not None
    assert found.model.path.exists()
    store.close()


@pytest.mark.slow
def test_python_takes_weights_with_an_architecture(jobs):
    job = describe("mlp", name="weights") | DECLARED | {"data": {"train": TRAIN, "test": TEST}}
    [result] = unified.train(unified.JobSpec(model=jobs / "safetensors" / "weights.safetensors", **job), slots=1)
    assert_equals_alone(result, "mlp")
