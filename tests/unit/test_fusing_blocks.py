"""``unified inspect --blocks``: what a model is made of, from a file, a job folder or a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import unified
from unified.cli import main

JOB = {
    "data": {"train": "train.pt"},
    "loss": "CrossEntropyLoss",
    "optimizer": "Adam",
    "epochs": 1,
    "batch_size": 4,
}


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
    )


class Pictures(nn.Sequential):
    """A class of one's own, which a pickle only names."""


def blocks_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, object]]:
    assert main(["inspect", *map(str, arguments), "--blocks", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["blocks"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unified.export(convolutional(), torch.zeros(2, 1, 8, 8), tmp_path_factory.mktemp("model") / "model.umodel")


def test_an_archive_says_itself_what_it_takes(archive, capsys):
    rows = blocks_of(capsys, archive)
    assert [(row["kind"], row["input"], row["output"]) for row in rows] == [
        ("conv", "1x8x8 chw", "4x8x8 chw"),
        ("conv", "4x8x8 chw", rows[1]["output"]),
        ("linear", rows[1]["output"], None),
    ]
    assert [row["parameters"] for row in rows] == [40, 296, 1539]
    assert [row["flops"] for row in rows] == [2 * 64 * 9 * 4, 2 * 64 * 9 * 4 * 8, 2 * 512 * 3]
    assert all(row["latency_seconds"] > 0 for row in rows)


def test_people_get_a_table_with_a_sum(archive, capsys):
    assert main(["inspect", str(archive), "--blocks"]) == 0
    head, *rows, total = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note")]
    assert head.split() == ["#", "block", "kind", "takes", "makes", "parameters", "FLOPs", "latency", "spread"]
    assert len(rows) == 3
    assert total.split()[:2] == ["all", "1.88"]


class Words(nn.Module):
    """Takes two inputs by name, of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.last = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(self.table(ids))).mul(mask.unsqueeze(2)).sum(dim=1))


def write_job(folder: Path, model: str, data: object) -> Path:
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(JOB | {"name": folder.name, "model": model}))
    torch.save(data, folder / "train.pt")
    return folder


def test_a_job_folder_needs_no_result(tmp_path, capsys):
    inputs = {"ids": torch.randint(7, (8, 5)), "mask": torch.ones(8, 5)}
    folder = write_job(tmp_path / "words", "model.umodel", (inputs, torch.zeros(8, dtype=torch.int64)))
    unified.export(Words(), inputs, folder / "model.umodel")
    assert blocks_of(capsys, folder)[0]["kind"] == "embedding"


def test_a_trusted_file_is_shown_what_its_job_trains_on(tmp_path, capsys):
    folder = write_job(tmp_path / "pickled", "model.pt", (torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)))
    torch.save(Pictures(*convolutional()), folder / "model.pt")
    assert len(blocks_of(capsys, folder, "--trust")) == 3
    assert main(["inspect", str(folder), "--blocks"]) == 1
    assert "E-CLASS" in capsys.readouterr().err


def test_nothing_there_is_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "gone"), "--blocks"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a job folder, a result of one, or a .umodel, got nothing there" in line
