"""Three tasks on Fashion-MNIST panels, and networks with one encoder and a head for each, for the benchmark of serving.

MTLsys (Khaund, Miano) has faces with age (a regression), gender and ethnicity (two classifications). UTKFace is not at hand;
the mix of kinds is kept on panels of four items (:mod:`benchmarks.merging_data`):

========  =================================================================================================
``tops``  how many of the four are tops (classes 0, 2, 4, 6): 0 to 4, a regression
``shoe``  whether any is a shoe (classes 5, 7, 9): two classes, positive in 76 %
``first`` class of the leftmost item: ten classes
========  =================================================================================================

The design has, for the count, the number of *different* classes; after six epochs a small network explained 6 % of its
variance, so that floors for its score would have compared noise.

Shapes: panels ``(N, 1, 28, 112)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.fusion_models import ResNet18
from benchmarks.merging_data import Items, draw_pictures, load_items
from serving.data import TaskData

OUTPUTS: Mapping[str, int] = {"tops": 1, "shoe": 2, "first": 10}
SHOES, TOPS = (5, 7, 9), (0, 2, 4, 6)
NUM_PANELS = {"train": 8000, "validation": 2000, "test": 2000}
WIDTHS = (16, 32, 64)
HIDDEN = 64


class PanelNetwork(nn.Module):
    """A shared encoder and a head of ReLU layers for each task (MTLsys, section 4.2: three layers).

    Args:
        encoder: Maps panels to ``(N, features)``.
        features: Of the encoder.
        depth: Linear layers of a head, at least 1.
        hidden: Units of each but the last.
        outputs: Of each task.
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        *,
        depth: int = 3,
        hidden: int = HIDDEN,
        outputs: Mapping[str, int] = OUTPUTS,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({task: _head(features, hidden, depth, size) for task, size in outputs.items()})

    def forward(self, panels: Tensor) -> dict[str, Tensor]:
        """Map ``(N, 1, 28, 112)`` to ``(N, outputs)`` by task."""
        features = self.encoder(panels)
        return {task: head(features) for task, head in self.heads.items()}


def small_network(seed: int = 0, *, widths: Sequence[int] = WIDTHS, depth: int = 3) -> PanelNetwork:
    """Return the network that the benchmark prunes: three convolutions with BatchNorm, 4 columns of features."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    for place, width in enumerate(widths):
        layers += [nn.Conv2d(before, width, 3, padding=1, stride=2 if place == 0 else 1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place else []
        before = width
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten())
    return PanelNetwork(encoder, 4 * before, depth=depth)


def resnet_network(seed: int = 0, *, width: int = 16, depth: int = 3) -> PanelNetwork:
    """Return the same heads on ResNet-18 of that many channels in its first stage (published: 64, pretrained)."""
    torch.manual_seed(seed)
    encoder = ResNet18(width=width, classes=1)
    encoder.conv1 = nn.Conv2d(1, width, 3, 2, 1, bias=False)
    encoder.fc = nn.Identity()
    return PanelNetwork(encoder, 8 * width, depth=depth)


NETWORKS = {"small": small_network, "resnet18": resnet_network}


def panel_data(data: Path, *, seed: int = 0, scale: float = 1.0) -> dict[str, TaskData]:
    """Draw the panels of a seed: parts ``train``, ``validation`` and ``test``; no item is in two of them.

    Args:
        data: Folder with ``fashion-mnist/``.
        seed: Of the draw.
        scale: Share of the usual number of panels.

    Raises:
        FileNotFoundError: There are no such data.
    """
    items = load_items(data)
    return {
        part: _drawn(items[part], max(64, round(scale * count)), torch.Generator().manual_seed(3 * seed + place))
        for place, (part, count) in enumerate(NUM_PANELS.items())
    }


def _drawn(items: Items, count: int, generator: torch.Generator) -> TaskData:
    inputs, classes = draw_pictures(items, count, generator)
    return TaskData(inputs=(inputs,), labels=labels_of(classes))


def labels_of(classes: Tensor) -> dict[str, Tensor]:
    """Return the labels of panels whose items have these classes, ``(N, 4)``."""
    return {
        "tops": torch.isin(classes, torch.tensor(TOPS)).sum(1).float(),
        "shoe": torch.isin(classes, torch.tensor(SHOES)).any(1).long(),
        "first": classes[:, 0].clone(),
    }


def _head(features: int, hidden: int, depth: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(features, hidden), nn.ReLU()]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, outputs))
