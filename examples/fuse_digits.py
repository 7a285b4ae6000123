"""Three people train models of their own on the same images; fused, they become one that is faster and answers all three.

    python examples/fuse_digits.py [FOLDER]

Which digit, odd or even, five and more: on scikit-learn's digits (1,797 real images of 8 x 8).
Writes FOLDER/jobs, then runs ``unified run FOLDER/jobs --out FOLDER/results --fuse``; about half a minute on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import unified
from unified.cli import main as unified_command


def network(width: int, depth: int, num_classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for level in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if level == depth // 2 else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes))


def write_data(folder: Path) -> dict[str, int]:
    folder.mkdir(parents=True)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    digit = torch.tensor(digits.target)
    labels = {"digit": digit, "parity": digit % 2, "large": (digit >= 5).long()}
    for name, values in labels.items():
        torch.save((images[:1200], values[:1200]), folder / f"{name}-train.pt")
        torch.save((images[1200:], values[1200:]), folder / f"{name}-test.pt")
    return {name: int(values.max()) + 1 for name, values in labels.items()}


def write_job(folder: Path, name: str, model: nn.Module) -> None:
    folder.mkdir()
    unified.export(model, torch.zeros(2, 1, 8, 8), folder / "model.umodel")
    job = {
        "name": name, "model": "model.umodel",
        "data": {"train": f"../data/{name}-train.pt", "test": f"../data/{name}-test.pt"},
        "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "optimizer": {"name": "Adam", "lr": 0.004},
        "epochs": 6, "batch_size": 32,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job, indent=2))


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "digits-fused")
    if root.exists():
        sys.exit(f"{root} is there already: delete it, or name another folder")
    torch.manual_seed(0)
    sizes = write_data(root / "jobs" / "data")
    for name, (width, depth) in {"digit": (16, 4), "parity": (16, 4), "large": (12, 3)}.items():
        write_job(root / "jobs" / name, name, network(width, depth, sizes[name]))
    code = unified_command(
        ["run", str(root / "jobs"), "--out", str(root / "results"), "--fuse", "--max-drop", "0.03", "--fuse-candidates", "8"]
    )
    if code == 0:
        fused = unified.load_umodel(root / "results" / "fused" / "model.umodel").eval()
        answers = fused(torch.zeros(1, 1, 8, 8))
        print({task: tuple(answer.shape) for task, answer in answers.items()})
    sys.exit(code)
