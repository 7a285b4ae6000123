"""Write ``lenet-v1.umodel`` and what comes of it, ``lenet-v1.json``: run once, at commit 2302b7e, which wrote version 1 first.

``python tests/data/lenet_v1.py`` in the root of that commit's tree. Nothing random is drawn in training, and the inputs are
made by formula, so that what comes of it is the same wherever it runs, but for the rounding of other CPUs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return inputs (8, 1, 28, 28) and targets (8,) of a step."""
    return torch.sin(torch.arange(8 * 784.0) * (0.37 + step)).reshape(8, 1, 28, 28), torch.arange(8) * (step + 3) % 10


def train_and_evaluate(model: nn.Module) -> dict[str, object]:
    """Take three steps of training; return their losses and what the model then gives for a fourth batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(3):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        return {"losses": losses, "outputs": model(batch(3)[0]).tolist()}


def main() -> None:
    """Write both files beside this one."""
    import unified
    from tests.zoo import lenet

    model = lenet().model
    model.drop = nn.Identity()
    folder = Path(__file__).parent
    path = unified.export(model, torch.zeros(2, 1, 28, 28), folder / "lenet-v1.umodel")
    (folder / "lenet-v1.json").write_text(json.dumps(train_and_evaluate(unified.load_umodel(path))) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
