"""Train plain ``nn.Module`` objects side by side from Python, and take each result as it comes.

python examples/python_api.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import unified

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
data = {"train": (images[:1500], labels[:1500]), "test": (images[1500:], labels[1500:])}


def perceptron(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


models = {f"width-{width}": perceptron(width) for width in (16, 64, 256)}
jobs = [
    unified.JobSpec(
        name=name,
        model=model,
        data=data,  # one copy in memory, however many jobs name it
        loss="CrossEntropyLoss",
        metrics=["accuracy"],
        optimizer={"name": "AdamW", "lr": 0.005},
        lr_scheduler={"name": "CosineAnnealingLR", "T_max": 10},
        epochs=10,
        batch_size=32,
    )
    for name, model in models.items()
]

for result in unified.train(jobs, scheduler="sjf"):
    trained = result.load_into(models[result.name])
    with torch.no_grad():
        accuracy = (trained(images[1500:]).argmax(dim=1) == labels[1500:]).float().mean().item()
    print(f"{result.name}: accuracy {accuracy:.3f} after {result.timing.completion:.1f} s")
    assert abs(accuracy - result.metrics["accuracy"]) < 1e-6
