"""What ``fuse`` reads of finished jobs: names, models, metrics, data; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unified.errors import InvalidSubmission, UnifiedError
from unified.fusing.sources import FinishedJob, read_result, read_results
from unified.fusing.tasks import MetricScore, learning_rate, output_key

JOB = {
    "model": "model.umodel",
    "data": {"train": "../data/train.pt"},
    "loss": "CrossEntropyLoss",
    "metrics": ["accuracy"],
    "optimizer": {"name": "SGD", "lr": 0.5},
    "epochs": 1,
    "batch_size": 4,
}


def write_result(folder: Path, name: str = "", **changes: Any) -> Path:
    """Write a result as far as it is read without its model."""
    folder.mkdir(parents=True)
    name = name or folder.name
    job = JOB | {"name": name} | changes.pop("job", {})
    content = {"name": name, "state": "finished", "metrics": {"accuracy": 0.9}, "job": job} | changes
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "model.umodel").write_bytes(b"")
    return folder


def test_a_folder_of_results_stands_for_all_of_them(tmp_path):
    write_result(tmp_path / "one")
    write_result(tmp_path / "two")
    (tmp_path / "failed").mkdir()
    jobs = read_results([tmp_path])
    assert [job.name for job in jobs] == ["one", "two"]
    assert jobs[0].model == tmp_path / "one" / "model.umodel"
    assert jobs[0].metrics == {"accuracy": 0.9}


def test_tasks_choose_and_order_jobs(tmp_path):
    for name in ("a", "b", "c"):
        write_result(tmp_path / name)
    assert [job.name for job in read_results([tmp_path], ("c", "a"))] == ["c", "a"]
    with pytest.raises(UnifiedError, match=r"--tasks 'd' is none of the jobs there; there are: a, b, c"):
        read_results([tmp_path], ("a", "d"))


def test_names_become_those_of_tasks_and_differ(tmp_path):
    first = write_result(tmp_path / "run1" / "lenet.v2")
    second = write_result(tmp_path / "run2" / "lenet.v2")
    assert [job.name for job in read_results([first, second])] == ["lenet_v2", "lenet_v2-2"]


def test_a_result_named_twice_is_one(tmp_path):
    folder = write_result(tmp_path / "one")
    with pytest.raises(UnifiedError, match="expected two finished jobs or more, got only 'one'"):
        read_results([folder, folder, tmp_path])


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda folder: None, "nothing there; check the path"),
        (lambda folder: folder.mkdir(), "a folder without result.json: a job that is not finished"),
        (lambda folder: (folder.mkdir(), (folder / "job.json").write_text("{}")), "not trained yet; train it first"),
        (lambda folder: write_result(folder, state="failed"), "one that is failed"),
        (lambda folder: (write_result(folder) / "result.json").write_text("{"), "JSONDecodeError"),
        (
            lambda folder: (write_result(folder) / "model.umodel").unlink(),
            "weights only, as for a module handed in from Python",
        ),
    ],
)
def test_what_is_no_finished_job_is_refused(prepare, told, tmp_path):
    prepare(tmp_path / "job")
    with pytest.raises(InvalidSubmission, match=told):
        read_results([tmp_path / "job"])


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(InvalidSubmission) as caught:
        read_results([tmp_path / "gone", tmp_path / "lost"])
    assert [problem.job for problem in caught.value.problems] == ["gone", "lost"]


@pytest.mark.parametrize(
    ("optimizer", "rate"), [({"name": "Adam", "lr": 0.5}, 0.5), ("AdamW", 1e-3), ({"name": "SGD", "lr": 0.5}, None)]
)
def test_the_learning_rate_is_that_of_adam_or_none(optimizer, rate, tmp_path):
    job = read_result(write_result(tmp_path / "job", job={"optimizer": optimizer}))
    assert isinstance(job, FinishedJob)
    assert learning_rate(job) == rate


# ---- scores and outputs


def test_accuracy_is_told_for_each_sample():
    output, labels = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0]]), torch.tensor([0, 0, 1])
    assert MetricScore("accuracy")(output, labels).tolist() == [1, 0, 1]


def test_accuracy_of_one_logit_is_decided_at_zero():
    assert MetricScore("accuracy")(torch.tensor([[0.5], [-0.5]]), torch.tensor([1.0, 1.0])) == 0.5


def test_an_error_counts_downwards_in_units_of_the_models_own():
    output, labels = torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0])
    assert MetricScore("mae", 0.5)(output, labels).tolist() == [-2, -4]
    assert MetricScore("mse", 2.0)(output, labels).tolist() == [-0.5, -2]


class Answers(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = torch.nn.Linear(2, 3), kind

    def forward(self, x):
        y = self.layer(x)
        return {"tensor": y, "dict": {"hidden": x, "logits": y}, "tuple": (y, x)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "wanted", "key"),
    [("tensor", None, None), ("dict", None, "logits"), ("dict", "hidden", "hidden"), ("tuple", None, 0), ("tuple", 1, 1)],
)
def test_the_scored_output_is_the_one_that_was_trained(kind, wanted, key):
    model = Answers(kind).train()
    assert output_key("a", model, torch.zeros(2, 2), wanted) == key
    assert model.training


def test_a_model_that_does_not_take_the_data_is_named():
    with pytest.raises(UnifiedError, match=r"task 'a': its model does not take the data \(float32 \(5\)\)"):
        output_key("a", Answers("tensor"), torch.zeros(2, 5), None)
