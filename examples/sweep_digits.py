"""One job file trains a whole sweep: learning rates and seeds of one network on scikit-learn's digits, with a table at the end.

python examples/sweep_digits.py [FOLDER]
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import unified
from unified.cli import main as unified_command

JOB = {
    "name": "digits",
    "model": "model.umodel",
    "data": {"train": "train.pt", "test": "test.pt"},
    "loss": "CrossEntropyLoss", "metrics": ["accuracy"],
    "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9},
    "epochs": 5, "batch_size": 32,
    "sweep": {"optimizer.lr": [0.1, 0.03, 0.01], "seed": [0, 1, 2]},
}  # fmt: skip


def write_job(folder: Path) -> None:
    folder.mkdir(parents=True)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    torch.save((images[:1500], labels[:1500]), folder / "train.pt")
    torch.save((images[1500:], labels[1500:]), folder / "test.pt")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    unified.export(model, torch.zeros(2, 64), folder / "model.umodel")
    (folder / "job.json").write_text(json.dumps(JOB, indent=2))


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "sweep")
    if root.exists():
        sys.exit(f"{root} is there already: delete it, or name another folder")
    write_job(root / "job")
    code = unified_command(["run", str(root / "job"), "--out", str(root / "results")])
    with (root / "results" / "digits.sweep.csv").open() as file:
        best = next(csv.DictReader(file))
    print(f"best: lr {best['optimizer.lr']}, seed {best['seed']}; its model is in {root}/results/{best['job']}")
    sys.exit(code)
