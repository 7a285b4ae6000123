"""Multi-task networks with all kinds of layers, for the tests of reading, storing and pruning, with example inputs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, fx, nn

from fusion.graph.captured import plain
from serving.networks.reading import read_network


def panels(batch: int = 4) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 1, 8, 12, generator=torch.Generator().manual_seed(0)),)


def texts(batch: int = 4) -> tuple[Tensor, ...]:
    return (torch.randint(0, 20, (batch, 5), generator=torch.Generator().manual_seed(0)),)


class Panels(nn.Module):
    """A residual encoder that writes out its width, and three heads, one of them a count."""

    def __init__(self, width: int = 8, dropout: float = 0.3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.width = width
            self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding="same"), nn.BatchNorm2d(width))
            self.wide = nn.Conv2d(width, 2 * width, 3, 2, 1)
            self.dropout = nn.Dropout(dropout)
            self.features = nn.Linear(2 * width * 6, 16)
            self.heads = nn.ModuleDict({"shoe": self.head(2), "first": self.head(10), "count": self.head(1)})

    def head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, num_outputs))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = self.dropout(self.wide(x).relu()).view(-1, 2 * self.width * 6)
        x = self.features(x).relu()
        outputs = {name: head(x) for name, head in self.heads.items()}
        return outputs | {"count": outputs["count"].squeeze(-1)}


class Branches(nn.Module):
    """Depth-wise, grouped and transposed convolutions, a group norm and a concatenation; a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
            self.norm = nn.GroupNorm(4, 16)
            self.up = nn.ConvTranspose2d(24, 6, 2, stride=2, output_padding=0)
            self.twice = nn.Linear(6, 6)
            self.scale = nn.Parameter(torch.full((6,), 1.5))
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = self.up(torch.cat([x, self.norm(self.grouped(self.depthwise(x)))], 1)).mean((2, 3))
        x = self.twice(self.twice(x).relu()) * self.scale
        return {"left": self.left(x), "right": self.right(x).log_softmax(-1)}


class Texts(nn.Module):
    """Words and their positions through an encoder with attention; a head for each of two tasks."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.words = nn.Embedding(20, 8)
            self.places = nn.Parameter(torch.randn(1, 5, 8))
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
            self.topic, self.mood = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.encoder(self.words(ids) + self.places)
        return {"topic": self.topic(x.mean(1)), "mood": self.mood(x[:, 0])}


class Named(nn.Module):
    """Another network's outputs under the names of tasks."""

    def __init__(self, body: nn.Module, *tasks: str) -> None:
        super().__init__()
        self.body = body
        self.tasks = tasks

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        outputs = plain(self.body(*inputs))
        return dict(zip(self.tasks, outputs if isinstance(outputs, tuple) else (outputs,), strict=False))


MODELS = {"panels": (Panels, panels), "branches": (Branches, panels), "texts": (Texts, texts)}


@functools.cache
def network_of(name: str) -> fx.GraphModule:
    """Return one of the models as a network; it may not be changed."""
    make, inputs = MODELS[name]
    return read_network(make(), inputs(), label=name)
