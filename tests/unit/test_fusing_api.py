"""``unified.fuse``: models and data in, one module and a report out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unified
from tests.integration.fused_results import write_result
from unified.errors import InvalidSubmission, UnifiedError
from unified.fusing.gathering import gather, groups_of
from unified.fusing.sources import read_results

QUICK: dict[str, Any] = {"max_candidates": 2, "epochs": 1, "measure_seconds": 0.1, "metric": "flops", "batch_size": 16}
INPUTS = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
LABELS = {"sign": (INPUTS.sum(dim=1) > 0).long(), "size": INPUTS.norm(dim=1)}


def network(num_outputs: int, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, num_outputs))


class Words(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.middle, self.last = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.middle(self.table(ids))) * mask.unsqueeze(2)
        return {"hidden": hidden, "logits": self.last(hidden.sum(dim=1))}


def test_modules_with_labels_become_one_module_and_stay_as_they_are():
    models = {"sign": network(2), "size": network(1, seed=1)}
    models["sign"].train()
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    data = {
        "train": (INPUTS[:64], {k: v[:64] for k, v in LABELS.items()}),
        "test": (INPUTS[64:], {"sign": LABELS["sign"][64:]}),
    }

    def closeness(output: Tensor, labels: Tensor) -> Tensor:
        return -(output.flatten() - labels).abs()

    told: list[Any] = []
    fusion = unified.fuse(models, data, max_drop=0.9, scores={"size": closeness}, progress=told.append, **QUICK)
    assert fusion.folder is None
    with torch.no_grad():
        answers = fusion.module(INPUTS[:5])
        alone = fusion.module(INPUTS[:5], tasks=["size"])
    assert {task: tuple(answer.shape) for task, answer in answers.items()} == {"sign": (5, 2), "size": (5, 1)}
    assert torch.equal(alone["size"], answers["size"])
    (entry,) = fusion.report.best.values()
    assert {task.task: task.kind for task in entry.tasks} == {"sign": "accuracy", "size": "callable"}
    assert type(told[0]).__name__ == "Started"
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())
    assert models["sign"].training
    assert "no test data of size" in fusion.notes[0]


def test_inputs_by_name_fuse_without_labels(tmp_path):
    models = {"one": Words(0), "two": Words(1)}
    data = {"ids": torch.randint(9, (80, 5)), "mask": torch.ones(80, 5)}
    fusion = unified.fuse(models, data, max_drop=0.9, out=tmp_path / "out", **QUICK)
    (entry,) = fusion.report.best.values()
    assert {task.kind for task in entry.tasks} == {"agreement"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["threads"] == torch.get_num_threads()  # left alone
    few = {name: tensor[:3] for name, tensor in data.items()}
    archive = unified.load_umodel(tmp_path / "out" / "model.umodel").eval()
    with torch.no_grad():
        mine, theirs = fusion.module(**few), archive(**few)
    assert all(torch.equal(mine[task]["logits"], theirs[task]["logits"]) for task in models)
    assert {"model.pt2", "report.json", "report.html", "tree.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_given_threads_are_used_and_those_of_before_come_back(tmp_path):
    before = torch.get_num_threads()
    models = {"sign": network(2), "size": network(1, seed=1)}
    settings = QUICK | {"max_candidates": 1}
    unified.fuse(models, INPUTS, max_drop=0.9, out=tmp_path, threads=before + 1, **settings)
    assert json.loads((tmp_path / "report.json").read_text())["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs that trained on different samples, of which some are the same."""
    root = tmp_path_factory.mktemp("results")
    many = torch.randn(1200, 6, generator=torch.Generator().manual_seed(2))
    for name, rows in (("low", many[:720]), ("high", many[480:])):
        write_result(root / name, network(2, seed=len(name)), rows, (rows[:, 0] > 0).long())
    return root


def test_jobs_of_different_data_are_judged_on_their_own_rows(results):
    low, high = read_results([results], ("low", "high"))
    parts = gather([low, high], None, seed=0)
    labels = parts.train.labels
    both = (labels["low"] != -100) & (labels["high"] != -100)
    only = (labels["low"] != -100) ^ (labels["high"] != -100)
    assert both.sum() == 0  # the rows that both had are held out by one of them
    assert only.all()
    total = len(parts.train) + len(parts.validation) + len(parts.test)
    assert total == 1200
    assert groups_of([low, high]) == [[low, high]]


def test_results_fuse_from_their_folders(results):
    fusion = unified.fuse([results / "low", results / "high"], max_drop=0.9, **QUICK)
    assert list(fusion.report.best) == [0.9]
    assert "left out: they are in the test data too" in "".join(fusion.notes)


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (({"a": network(2), "b": network(2)},), {}, "give samples of their input as data"),
        (({"a": network(2)}, INPUTS), {}, "at least 2 tasks, got 1"),
        (({"a": network(2), "b": network(2)}, INPUTS), {"scores": {"c": max}}, "a score for 'c', which is no task"),
        (({"a": network(2), "b": network(2)}, INPUTS), {"policy": "best"}, "policy is one of"),
        (({"a": network(2), "b": network(2)}, INPUTS), {"colour": "red"}, "no settings"),
        (({"a": network(2), "b": network(2)}, INPUTS[:, :3]), {}, "its model does not take the data"),
        (({"a.b": network(2), "b": network(2)}, INPUTS), {}, "task 'a.b': a name is letters"),
    ],
)
def test_what_cannot_be_fused_is_said(arguments, settings, told):
    with pytest.raises(UnifiedError, match=told):
        unified.fuse(*arguments, **QUICK | settings)


def test_bad_data_is_told_with_its_problem():
    with pytest.raises(InvalidSubmission, match="finite numbers"):
        unified.fuse({"a": network(2), "b": network(2)}, torch.full((9, 6), torch.inf))
