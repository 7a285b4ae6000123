"""Eight networks of one architecture, trained with different seeds, answer as one module: an ensemble at the price of one call.

    python examples/stack_digits.py [FOLDER]

On scikit-learn's digits (1,797 real images of 8 x 8). Writes FOLDER/digits.pt2, which needs torch alone; half a minute at most.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unified

NUM_MEMBERS = 8


def data() -> dict[str, tuple[Tensor, Tensor]]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    return {"train": (images[:900], labels[:900]), "test": (images[900:], labels[900:])}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 10),
    )  # fmt: skip


def train(models: dict[str, nn.Module], samples: dict[str, tuple[Tensor, Tensor]]) -> None:
    jobs = [
        unified.JobSpec(
            name=name, model=model, data=samples, loss="CrossEntropyLoss", metrics=["accuracy"],
            optimizer={"name": "Adam", "lr": 0.004}, epochs=4, batch_size=32, seed=seed,
        )
        for seed, (name, model) in enumerate(models.items())
    ]  # fmt: skip
    for result in unified.train(jobs):
        result.load_into(models[result.name])
        print(f"{result.name}: accuracy {result.metrics['accuracy']:.4f} alone")


def accuracy(answers: Tensor, labels: Tensor) -> float:
    return float((answers.argmax(dim=-1) == labels).float().mean())


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "digits-stacked")
    samples = data()
    models = {f"seed-{seed}": network(seed) for seed in range(NUM_MEMBERS)}
    train(models, samples)
    images, labels = samples["test"]

    stacked = unified.stack(models, images[:64], one_input=True, out=folder / "digits.pt2", threads=1)
    report = stacked.report
    print(
        f"as one: {report.speedup:.1f} times as fast, answers apart by {report.relative_difference:.1g} of the largest at most"
    )

    served = torch.export.load(folder / "digits.pt2").module()  # where it is served, nothing of ours is needed
    with torch.no_grad():
        answers = served(images).softmax(dim=-1)  # (members, batch, classes)
        print(f"ensemble of {NUM_MEMBERS}: accuracy {accuracy(answers.mean(dim=0), labels):.4f}")
        few = stacked.stack(images, members=[0, 1, 2]).softmax(dim=-1)  # the others cost nothing
        print(f"of the first three: accuracy {accuracy(few.mean(dim=0), labels):.4f}")
