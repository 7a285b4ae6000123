"""Finished jobs on scikit-learn's digits, as ``unified run`` leaves them, made without a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unified
from unified.dataset_files import reference

NUM_TRAIN, NUM_TEST = 480, 240
CLASSES = {"digit": 10, "parity": 2, "large": 2}


def images_and_labels() -> tuple[Tensor, dict[str, Tensor]]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[: NUM_TRAIN + NUM_TEST] / 16
    digit = torch.tensor(digits.target)[: NUM_TRAIN + NUM_TEST]
    return images, {"digit": digit, "parity": digit % 2, "large": (digit >= 5).long()}


class Patches(nn.Module):
    """A small transformer over four by four patches."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, stride=2)
        self.place = nn.Parameter(torch.zeros(1, 16, 16))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(dim=1))


def convolutional(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, num_classes),
    )  # fmt: skip


def trained(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    return model.eval()


def write_results(root: Path) -> Path:
    """Train three models and write their results under ``root``; return that folder."""
    torch.manual_seed(0)
    images, labels = images_and_labels()
    for name, classes in CLASSES.items():
        model = Patches(classes) if name == "large" else convolutional(classes)
        trained(model, images[:NUM_TRAIN], labels[name][:NUM_TRAIN], epochs=8)
        write_result(root / name, model, images, labels[name])
    return root


def write_result(folder: Path, model: nn.Module, images: Tensor, labels: Tensor, **changes: Any) -> None:
    """Write what a run leaves of a job, as far as fusion reads it."""
    folder.mkdir(parents=True)
    data = {"train": folder / "train.pt", "test": folder / "test.pt"}
    torch.save((images[:NUM_TRAIN], labels[:NUM_TRAIN]), data["train"])
    torch.save((images[NUM_TRAIN:], labels[NUM_TRAIN:]), data["test"])
    unified.export(model, images[:2], folder / "model.umodel")
    job = {
        "name": folder.name, "model": "model.umodel", "data": {"train": "train.pt", "test": "test.pt"},
        "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "optimizer": {"name": "Adam", "lr": 0.005},
        "epochs": 8, "batch_size": 32,
    }  # fmt: skip
    datasets = {name: describe(path, folder) for name, path in data.items()}
    content = {"name": folder.name, "state": "finished", "metrics": {"accuracy": 0.9}, "job": job, "datasets": datasets}
    (folder / "result.json").write_text(json.dumps(content | changes))


def describe(path: Path, folder: Path) -> dict[str, Any]:
    cache = folder.parent / ".cache"
    found = reference(path, columns=None, tokenizer=None, max_length=None, cache_dir=cache, job=folder.name)
    return asdict(found) | {"path": str(path)}
