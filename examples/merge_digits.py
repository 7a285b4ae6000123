"""Two people train networks on the same images; merged, they become one that is cheap for either task and for both.

    python examples/merge_digits.py [FOLDER]

Which digit, and odd or even: on scikit-learn's digits (1,797 real images of 8 x 8). Writes FOLDER/merged with a model for every
subset of tasks and report.html; half a minute to a minute on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unified


def network(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, num_classes),
    )  # fmt: skip


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 15) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    return model.eval()


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "digits-merged")
    if root.exists():
        sys.exit(f"{root} is there already: delete it, or name another folder")
    torch.manual_seed(0)
    digits = load_digits()
    images, digit = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    labels = {"digit": digit, "parity": digit % 2}
    order = torch.randperm(len(images))
    rows = {"train": order[:1100], "validation": order[1100:1400], "test": order[1400:]}
    data = {part: (images[index], {task: values[index] for task, values in labels.items()}) for part, index in rows.items()}

    models = {
        task: train(network(int(values.max()) + 1), *(data["train"][0], data["train"][1][task]))
        for task, values in labels.items()
    }
    merged = unified.merge(
        models, data, max_drop=0.02, alpha=0.02, baselines=True, steps=30, threads=1, out=root / "merged",
    )  # fmt: skip
    for name, scheme in merged.report.schemes.items():
        costs = ", ".join(f"{'+'.join(record.tasks)} {record.flops / 1e3:.0f} kFLOP" for record in scheme.combinations)
        scores = ", ".join(f"{task} {score:.1%}" for task, score in scheme.scores.items())
        print(f"{name:>8}: {costs}; {scores}")
    only_parity = torch.export.load(root / "merged" / "tasks" / "parity.pt2").module()
    print("parity alone answers", tuple(only_parity(images[:2]).shape))
