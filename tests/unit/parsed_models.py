"""Small models, one for each thing that makes taking a model apart hard."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.graph.block import BlockSequence
from fusion.graph.parse import parse


def images(batch: int = 4, *, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(batch))


def rows(batch: int = 4, width: int = 6) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))


def sentences(batch: int = 4, length: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(1, 30, (batch, length), generator=torch.Generator().manual_seed(batch))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(96, 5),
    )


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """Residuals, in-place writes and functional heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(ResidualBlock(4), ResidualBlock(4))
        self.layer2 = nn.Sequential(ResidualBlock(4), ResidualBlock(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.stem(x), inplace=True)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Layer(nn.Module):
    """A transformer layer with a mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B, T, C = x.shape  # batch, tokens, channels
        q, k, v = self.qkv(self.norm1(x)).reshape(B, T, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1 if self.training else 0.0)
        x = x + self.project(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Tokens, a class token and an embedding of positions."""

    def __init__(self, dim: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim, generator=torch.Generator().manual_seed(0)))
        self.positions = nn.Parameter(torch.randn(1, 5, dim, generator=torch.Generator().manual_seed(1)))
        self.layers = nn.Sequential(*[Layer(dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


class TextModel(nn.Module):
    """Ids and a mask by keyword, a head tied to the embedding, a dictionary as output."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(30, dim)
        self.positions = nn.Embedding(16, dim)
        self.layers = nn.ModuleList([Layer(dim), Layer(dim)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        allowed = (attention_mask[:, None, None, :] > 0).expand(-1, -1, input_ids.shape[1], -1)
        for layer in self.layers:
            x = layer(x, allowed)
        return {"logits": self.head(self.norm(x)), "cache": None}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 6)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(input_ids))[0][:, -1])


class StochasticDepth(nn.Module):
    """A mask for whole samples in training, nothing at all in evaluation; and writes into views."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.scale = torch.full((8,), 1.5)  # a tensor that is no buffer

    def drop(self, x: Tensor, rate: float = 0.3) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty(x.shape[0], 1).bernoulli_(1 - rate)
        return x * mask.div_(1 - rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + self.drop(torch.relu(layer(x)))
        x[:, :4] *= 0.5
        return self.head(torch.relu(x * self.scale))


class AuxiliaryHead(nn.Module):
    """Two outputs in training, one in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.conv = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)
        self.aux = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        z = self.head(self.conv(y).mean((2, 3)))
        return (z, self.aux(y.mean((2, 3)))) if self.training else z


class TwoTowers(nn.Module):
    """Two float inputs that both begin a path, and three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.right = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8))
        self.join = nn.Linear(8, 4)
        self.first = nn.Linear(4, 2)
        self.second = nn.Linear(4, 3)

    def forward(self, picture: Tensor, table: Tensor) -> dict[str, Any]:
        other = self.right(table)
        h = torch.relu(self.join(self.left(picture) + other))
        return {"first": self.first(h), "rest": (self.second(h), [h.mean(1)])}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the message names
            return self.linear(x)
        return x


class Folding(nn.Module):
    """Batch and time in one dimension, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape  # batch, time, channels
        y = torch.relu(self.second(torch.relu(self.first(x.reshape(B * T, C)))))
        return self.head(y.view(B, T, -1).mean(1))


class BoundToBatch(nn.Module):
    """Works for a batch of four only."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x, torch.zeros(1, 4, 8))
        return self.head(y[:, -1].view(4, -1))


class KnowsItsBatch(nn.Module):
    """Its result depends on how many samples come together."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x) / math.sqrt(x.shape[0])))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "cnn": (small_cnn, images),
    "resnet": (ResNet, images),
    "vit": (ViT, images),
    "text": (TextModel, sentences),
    "lstm": (Recurrent, lambda batch: sentences(batch)["input_ids"]),
    "mlp": (small_mlp, rows),
    "depth": (StochasticDepth, rows),
    "towers": (TwoTowers, lambda batch: {"picture": rows(batch), "table": rows(batch, 5)}),
}


@cache
def taken_apart(name: str) -> tuple[nn.Module, Callable[[int], Any], BlockSequence]:
    """A model of the zoo in evaluation, a maker of its inputs, and its blocks; shared between tests, so not to be changed."""
    make, inputs = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    return model, inputs, parse(model, inputs(4), name=name, primary="picture" if name == "towers" else None)
