"""The five models of the stacking benchmark, each N times with weights, data and learning rate of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import BasicBlock, ResNet, TextClassifier, digit_conv, digit_mlp


class LeNet5(nn.Sequential):
    """LeNet-5 for images of 28x28 pixels, plain (LeCun et al., 1998)."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An architecture and what it eats.

    Attributes:
        build: Makes one model; draws its weights from torch's default generator.
        batch_size: Samples in a training step.
        draw: Makes a batch of inputs of that many samples.
        classes: Number of classes.
        text: The model in a few words.
    """

    build: Callable[[], nn.Module]
    batch_size: int
    draw: Callable[[int], Tensor]
    classes: int
    text: str


KINDS: dict[str, Kind] = {
    "mlp": Kind(
        build=lambda: digit_mlp(hidden=(128, 128)),
        batch_size=32,
        draw=lambda count: torch.randn(count, 1, 8, 8),
        classes=10,
        text="64-128-128-10, batch 32",
    ),
    "lenet": Kind(
        build=LeNet5,
        batch_size=32,
        draw=lambda count: torch.randn(count, 1, 28, 28),
        classes=10,
        text="LeNet-5, 28x28, batch 32",
    ),
    "conv-norm": Kind(
        build=lambda: digit_conv(widths=(16, 32)),
        batch_size=32,
        draw=lambda count: torch.randn(count, 1, 8, 8),
        classes=10,
        text="conv 16 + BatchNorm, conv 32 + BatchNorm, 8x8, batch 32",
    ),
    "resnet18": Kind(
        build=lambda: ResNet(BasicBlock, (2, 2, 2, 2), width=16, classes=10),
        batch_size=16,
        draw=lambda count: torch.randn(count, 3, 32, 32),
        classes=10,
        text="ResNet-18 of width 16, 32x32, batch 16",
    ),
    "encoder": Kind(
        build=lambda: TextClassifier(vocabulary=1000, length=16, dim=32, heads=4, depth=2),
        batch_size=16,
        draw=lambda count: torch.randint(1, 1000, (count, 16)),
        classes=2,
        text="transformer encoder, 2 layers of 32, 16 tokens, batch 16",
    ),
    "encoder-64": Kind(
        build=lambda: TextClassifier(vocabulary=1000, length=32, dim=64, heads=4, depth=2),
        batch_size=32,
        draw=lambda count: torch.randint(1, 1000, (count, 32)),
        classes=2,
        text="transformer encoder, 2 layers of 64, 32 tokens, batch 32",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """N models of one kind with a batch each.

    Attributes:
        inputs: ``(models, batch, ...)``.
        targets: ``(models, batch)``.
    """

    models: list[nn.Module]
    inputs: Tensor
    targets: Tensor

    def optimizers(self, *, fused: bool = True) -> list[torch.optim.Optimizer]:
        """Return each model's own optimizer, SGD with momentum, each with another learning rate."""
        return [
            torch.optim.SGD(model.parameters(), lr=0.01 * (1 + index / 100), momentum=0.9, fused=fused)
            for index, model in enumerate(self.models)
        ]


def populate(name: str, num_models: int, *, batch_size: int | None = None) -> Population:
    """Return ``num_models`` models and batches, seeded; without dropout, so that all ways compute the same."""
    kind = KINDS[name]
    torch.manual_seed(0)
    models = []
    for _ in range(num_models):
        model = kind.build()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        models.append(model)
    size = batch_size or kind.batch_size
    inputs = torch.stack([kind.draw(size) for _ in range(num_models)])
    targets = torch.randint(0, kind.classes, (num_models, size))
    return Population(models=models, inputs=inputs, targets=targets)


def loss_of(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of a batch."""
    return F.cross_entropy(module(inputs), targets)
