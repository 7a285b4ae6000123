"""Three users hand in models of different architectures as job folders; one command trains them all as one batch.

    python examples/digits_batch.py [FOLDER]

Writes FOLDER/jobs/{alice,bob,carol} (scikit-learn's digits: 1,797 real images of 8 x 8), then runs
``unified run FOLDER/jobs --out FOLDER/results``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unified
from unified.cli import main as unified_command


class Encoder(nn.Module):
    """A small transformer that reads an image as eight rows of eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(images.squeeze(1))).mean(dim=1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10),
    )  # fmt: skip


def write_data(folder: Path) -> None:
    folder.mkdir(parents=True)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    torch.save((images[:1500], labels[:1500]), folder / "train.pt")
    torch.save((images[1500:], labels[1500:]), folder / "test.pt")


def write_job(folder: Path, user: str, model: nn.Module, optimizer: dict[str, object], epochs: int) -> None:
    folder.mkdir(parents=True)
    unified.export(model, torch.zeros(2, 1, 8, 8), folder / "model.umodel")
    job = {
        "name": f"{user}-digits", "user": user, "model": "model.umodel",
        "data": {"train": "../data/train.pt", "test": "../data/test.pt"},
        "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "optimizer": optimizer,
        "epochs": epochs, "batch_size": 32,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job, indent=2))


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "digits")
    if root.exists():
        sys.exit(f"{root} is there already: delete it, or name another folder")
    torch.manual_seed(0)
    write_data(root / "jobs" / "data")
    write_job(root / "jobs" / "alice", "alice", perceptron(), {"name": "SGD", "lr": 0.1, "momentum": 0.9}, 20)
    write_job(root / "jobs" / "bob", "bob", convolutional(), {"name": "Adam", "lr": 0.002}, 12)
    write_job(root / "jobs" / "carol", "carol", Encoder(), {"name": "AdamW", "lr": 0.002}, 15)
    sys.exit(unified_command(["run", str(root / "jobs"), "--out", str(root / "results")]))
