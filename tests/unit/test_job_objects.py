import re

import pytest
import torch
from torch import nn

from tests.unit.jobs import LENET, changed
from unified.errors import InvalidSubmission
from unified.job import JobSpec, path_problems


def python_job(**fields):
    model, samples = nn.Linear(3, 2), (torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    base = {"name": "py", "model": model, "data": {"train": samples}, "loss": "CrossEntropyLoss", "epochs": 1}
    return JobSpec(**base | {"optimizer": {"name": "Adam", "betas": (0.8, 0.9)}, "batch_size": 2} | fields)


def test_python_hands_in_modules_and_tensors_as_they_are():
    model, inputs, targets = nn.Linear(3, 2), torch.zeros(5, 3), torch.zeros(5)
    job = python_job(model=model, data={"train": (inputs, targets), "test": [{"x": inputs}, targets]})
    assert job.model is model
    assert job.data.train[0] is inputs
    assert job.data.test[0]["x"] is inputs
    assert job.optimizer.kwargs == {"betas": [0.8, 0.9]}


def test_python_paths_may_be_path_objects(tmp_path):
    job = python_job(model=tmp_path / "m.umodel", data={"train": tmp_path / "a.pt"})
    assert job.model == str(tmp_path / "m.umodel")
    assert JobSpec.parse(job.to_json()) == job


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"model": nn.Linear}, "E-TYPE", "model"),
        ({"data": {"train": (torch.zeros(5, 3), torch.zeros(4))}}, "E-VALUE", "data.train"),
        ({"data": {"train": (torch.zeros(0, 3), torch.zeros(0))}}, "E-VALUE", "data.train"),
        ({"data": {"train": (torch.zeros(5, 3),)}}, "E-TYPE", "data.train"),
        ({"data": {"train": ({}, torch.zeros(5))}}, "E-TYPE", "data.train"),
        ({"data": {"train": ({3: torch.zeros(5)}, torch.zeros(5))}}, "E-TYPE", "data.train"),
        ({"data": {"train": (torch.tensor(1.0), torch.tensor(1.0))}}, "E-TYPE", "data.train"),
        ({"data": {"train": ([1, 2], torch.zeros(2))}}, "E-TYPE", "data.train"),
        ({"loss": {"name": "CrossEntropyLoss", "weight": torch.ones(2)}}, "E-TYPE", "loss.weight"),
        ({"optimizer": {"name": "SGD", "lr": torch.tensor(0.1)}}, "E-TYPE", "optimizer.lr"),
        ({"nme": 1}, "E-FIELD", "nme"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_python_mistakes_are_told_like_those_of_a_file(fields, code, field):
    with pytest.raises(InvalidSubmission) as caught:
        python_job(**fields)
    assert [(problem.code, problem.field) for problem in caught.value.problems] == [(code, field)]
    assert caught.value.problems[0].job == "py"


def test_columns_of_tensors_are_refused():
    data = {"train": (torch.zeros(5, 3), torch.zeros(5)), "columns": {"inputs": "x", "targets": "y"}}
    with pytest.raises(InvalidSubmission, match="tensors have no columns"):
        python_job(data=data)


def test_a_job_with_objects_is_no_json():
    with pytest.raises(TypeError, match="job 'py' holds Python objects"):
        python_job().to_json()
    assert python_job().fingerprint() == python_job(model="m", data={"train": "a"}).fingerprint()


def test_checking_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    JobSpec.parse(LENET)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"user": None},
        {"priority": 9},
        {"deadline_seconds": 3.0},
        {"checkpoint": {}},
        {"model": "elsewhere.umodel"},
        {"data": {"train": "x", "test": "y"}},
        {"drop_last": ...},
        {"loss": {"name": "CrossEntropyLoss"}},
    ],
    ids=str,
)
def test_the_fingerprint_ignores_what_does_not_determine_training(change):
    assert JobSpec.parse(changed(**change)).fingerprint("m") == JobSpec.parse(LENET).fingerprint("m")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"epochs": 4},
        {"batch_size": 65},
        {"optimizer": {"name": "SGD", "lr": 0.01}},
        {"loss": {"name": "CrossEntropyLoss", "weight": [1.0, 2.0]}},
        {"lr_scheduler": None},
        {"early_stopping": None},
        {"precision": "bf16"},
        {"stacking": "exact"},
        {"output": 0},
        {"data": {"train": "a", "test": "b", "columns": {"inputs": "x", "targets": "y"}}},
    ],
    ids=str,
)
def test_the_fingerprint_tells_what_determines_training(change):
    assert JobSpec.parse(changed(**change)).fingerprint("m") != JobSpec.parse(LENET).fingerprint("m")


def test_the_fingerprint_tells_files_by_their_content():
    job = JobSpec.parse(LENET)
    prints = {job.fingerprint(), job.fingerprint("a", "b"), job.fingerprint("ab"), job.fingerprint("b", "a")}
    assert len(prints) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in prints)


def test_objects_have_no_paths():
    assert path_problems(python_job()) == []
