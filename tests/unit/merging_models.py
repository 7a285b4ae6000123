"""Networks as people write them, for what reads, unites, zips and resizes them; and what tests ask of those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.merging.layers import Network
from fusion.merging.reading import read_network

IMAGE = (3, 16, 16)


class LeNet(nn.Module):
    """Convolutions and linear layers, with ``F.*`` calls and a ``view`` by the size of the batch."""

    def __init__(self, widths: Sequence[int] = (6, 8, 20, 12), outputs: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        a, b, c, d = widths
        self.conv1, self.conv2 = nn.Conv2d(3, a, 5, padding=2), nn.Conv2d(a, b, 5)
        self.fc1, self.fc2, self.head = nn.Linear(b * 4, c), nn.Linear(c, d), nn.Linear(d, outputs)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.fc1(x), inplace=True), self.dropout, self.training)
        return self.head(F.relu(self.fc2(x)))


class Normalising(nn.Module):
    """Normalizes its input by buffers before a LeNet."""

    mean: Tensor
    std: Tensor

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))
        self.body = LeNet(outputs=outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


class Shift(nn.Module):
    """Adds a parameter to each channel, which no layer of neurons has."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) + self.shift).mean((2, 3)))


def mlp(widths: Sequence[int] = (24, 16), outputs: int = 5, features: int = 20) -> nn.Module:
    """Linear layers."""
    layers: list[nn.Module] = []
    for before, after in pairwise((features, *widths)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def vgg(widths: Sequence[int | str] = (8, 8, "M", 12, "M"), outputs: int = 5, hidden: int = 16) -> nn.Module:
    """Convolutions with BatchNorm and pooling, then linear layers with dropout."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    top = [nn.Linear(channels * 4, hidden), nn.ReLU(True), nn.Dropout(0.3), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *top)


class Block(nn.Module):
    """A residual block, basic, or a bottleneck if ``inner`` is given; its activation before the layers if ``first``."""

    def __init__(self, before: int, after: int, stride: int = 1, inner: int | None = None, *, first: bool = False) -> None:
        super().__init__()
        if inner is None:
            pairs = [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.Conv2d(after, after, 3, 1, 1, bias=False)]
        else:
            pairs = [
                nn.Conv2d(before, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
                nn.Conv2d(inner, after, 1, bias=False),
            ]
        norms = [nn.BatchNorm2d(conv.in_channels if first else conv.out_channels) for conv in pairs]
        layers: list[nn.Module] = []
        for conv, norm in zip(pairs, norms, strict=True):
            layers += [norm, nn.ReLU(), conv] if first else [conv, norm, nn.ReLU()]
        self.body = nn.Sequential(*(layers if first else layers[:-1]))
        self.last = nn.Identity() if first else nn.ReLU()
        same = before == after and stride == 1
        self.skip = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.skip(x))


def resnet(
    blocks: Sequence[int] = (1, 1), widths: Sequence[int] = (8, 12), outputs: int = 5, *, bottleneck: bool = False,
    first: bool = False,
) -> nn.Module:  # fmt: skip
    """A residual network; blocks (2, 2, 2, 2) make ResNet-18, (3, 4, 6, 3) ResNet-34."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for number in range(count):
            stride = 2 if stage and not number else 1
            layers.append(Block(before, width, stride, width // 2 if bottleneck else None, first=first))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))


class SqueezeExcite(nn.Module):
    """Scales channels by what all of them are like."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.up(F.relu(self.down(scale))))


class Inverted(nn.Module):
    """An inverted residual with a depthwise convolution."""

    def __init__(self, width: int, inner: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), activation(),
            nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), activation(),
            SqueezeExcite(inner), nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mobile(width: int = 6, inner: int = 10, outputs: int = 5, activation: Callable[[], nn.Module] = nn.Hardswish) -> nn.Module:
    """Depthwise convolutions and squeeze-excite."""
    stem = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), activation()]
    body = [Inverted(width, inner, activation) for _ in range(2)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


class FullyConvolutional(nn.Module):
    """Ends in a convolution and a mean over positions."""

    def __init__(self, width: int = 8, outputs: int = 5) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, width, 3), nn.Conv2d(width, 10, 3, 2), nn.Conv2d(10, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu_(self.one(x))
        return self.head(F.silu(self.two(x))).mean(dim=(2, 3))


class TwoBranches(nn.Module):
    """Two parallel convolutions that are alike, added up, and the product with a gate."""

    def __init__(self, width: int = 8, outputs: int = 5) -> None:
        super().__init__()
        self.one, self.two, self.gate = (nn.Conv2d(3, width, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu() + self.two(x).relu()
        y *= torch.sigmoid(self.gate(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(y, (1, 1)), 1))


class Reused(nn.Module):
    """Runs one layer twice."""

    def __init__(self, width: int = 12, outputs: int = 5) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(20, width), nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.again(self.again(x).relu()).relu())


class Line(nn.Module):
    """One-dimensional convolutions."""

    def __init__(self, width: int = 8, outputs: int = 5) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv1d(3, width, 5), nn.BatchNorm1d(width), nn.Conv1d(width, 6, 3, stride=2)
        self.head = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.one(x))), 2)
        return self.head(F.relu(self.two(x)).mean(-1))


class Attention(nn.Module):
    """Convolutions, then attention over positions."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)
        self.narrow = nn.Conv2d(6, 8, 3, 2)
        self.mixing = Mixing()
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixing(F.relu(self.narrow(F.relu(self.conv(x))))))


class Mixing(nn.Module):
    """Attention over positions, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return mixed.mean(1)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalization layers statistics and weights as after training; returns the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (module.running_mean, module.bias):
                if value is not None:
                    value.data = 0.3 * torch.randn(value.shape, generator=generator)
            for value in (module.running_var, module.weight):
                if value is not None:
                    value.data = 0.5 + torch.rand(value.shape, generator=generator)
    return model.eval()


def made(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network of reproducible weights in evaluation mode."""
    torch.manual_seed(seed)
    return shaken(build(), seed)


def permuted(model: nn.Module, orders: Sequence[tuple[Sequence[nn.Module], Sequence[nn.Module]]], seed: int = 1) -> None:
    """Shuffle neurons in place: for each pair those of the makers (and their norms) along with what the readers take."""
    generator = torch.Generator().manual_seed(seed)
    for makers, readers in orders:
        first = makers[0].get_parameter("weight")
        order = torch.randperm(len(first), generator=generator)
        for module in makers:
            for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if value.ndim:
                    value.data = value.data[order]
        for module in readers:
            weight = module.get_parameter("weight")
            by_neuron = weight.data.reshape(len(weight), len(order), -1)[:, order]
            weight.data = by_neuron.reshape(weight.shape)


def images(count: int = 8, seed: int = 0) -> Tensor:
    """Return inputs for the networks of images."""
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 8, features: int = 20, seed: int = 0) -> Tensor:
    """Return inputs for the networks of features."""
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def read_all(models: dict[str, nn.Module], example: Tensor) -> list[Network]:
    """Read networks by the names of their tasks."""
    return [read_network(model, example[:2], name=name) for name, model in models.items()]
