"""The models that stacks are held against: small, and each with something that could go wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import zoo
from tests.zoo import Case, case, images


class PlainLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3), nn.Tanh(), nn.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class ConvNormDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, 2), nn.BatchNorm2d(8, momentum=None)
        self.drop1, self.drop2 = nn.Dropout2d(0.2), nn.Dropout(0.3)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(F.relu(self.norm1(self.conv1(x)), inplace=True))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(self.drop2(x).flatten(1))


class Separable(nn.Module):
    """MobileNet's block: expand, filter each channel, project, add."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depth(self.expand(x)))


def depthwise() -> Case:
    torch.manual_seed(7)
    stem, block = nn.Conv2d(3, 6, 3, 2, 1), Separable(6, 12)
    model = nn.Sequential(stem, block, nn.GroupNorm(2, 6), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return case(model, images(3, 12, 5))


def plain_lenet() -> Case:
    torch.manual_seed(8)
    return case(PlainLeNet(), images(1, 18))


def conv_norm() -> Case:
    torch.manual_seed(9)
    return case(ConvNormDropout(), images(3, 8, 5))


def resnet18() -> Case:
    torch.manual_seed(2)
    return case(zoo.ResNet18(width=4), images(3, 48))


MODELS: dict[str, Callable[[], Case]] = {
    "mlp": zoo.mlp,
    "lenet": plain_lenet,
    "conv, norm, dropout": conv_norm,
    "resnet18": resnet18,
    "depthwise": depthwise,
    "encoder": zoo.encoder,
    "bert": zoo.bert,
    "lstm": zoo.lstm,
    "gpt2": zoo.gpt2,
}
