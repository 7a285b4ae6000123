"""Models as users write them, small: the habits of hand-written ``forward`` methods that a parser has to cope with.

Images are ``(B, 3, 32, 32)``, sequences ``(B, T, C)``, unless a class says otherwise.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FunctionalCnn(nn.Module):
    """Activations and pooling as functions, so that no module stands for them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc1 = nn.Linear(16 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        x = x.view(-1, 16 * 4 * 4)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.5, self.training))


class TopSkip(nn.Module):
    """A skip written in the model's own forward, around modules that know nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.tail = nn.Sequential(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        x = self.stem(x)
        x = self.body(x) + x
        x = self.tail(x)
        x = x + self.last(x)
        return self.head(x.mean((2, 3)))


class ReusedRelu(nn.Module):
    """One ReLU and one pooling module, called in several places; the order of declaration is not that of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(32, 10)
        self.conv3 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.pool(self.relu(self.conv3(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class LoopCnn(nn.Module):
    """Convolutions and norms in two lists, walked side by side."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 16]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i % 2 == 0:
                x = F.avg_pool2d(x, 2)
        return self.head(x.mean(dim=[-2, -1]))


class InPlaceSlices(nn.Module):
    """Writes into slices of what it has just computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        y = self.conv1(x)
        y[:, :4] *= 0.5
        z = self.conv2(y)
        z[:, :, 0] = 0.0
        z += y
        z = self.conv3(z.relu_())
        z[:, ::2].clamp_(max=1.0)
        return self.head(z.flatten(2).mean(-1))


class LstmClassifier(nn.Module):
    """Two layers of LSTM over a sequence of vectors: one operator for nearly all of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 24, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, 6)`` to logits ``(B, 5)``."""
        out, (hidden, _) = self.lstm(x)
        return self.head(out[:, -1] + hidden[-1])


class UNet(nn.Module):
    """Every stage on the way down is alive until its twin on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _double(3, 8), _double(8, 16), _double(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge2, self.merge1 = _double(32, 16), _double(16, 8)
        self.head = nn.Sequential(_double(8, 8), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of logits ``(B, 2, 32, 32)``."""
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.middle(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(x), second], dim=1))
        x = self.merge1(torch.cat([self.up1(x), first], dim=1))
        return self.head(x)


class Mlp(nn.Module):
    """Layers of perceptrons with LayerNorm and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 32)
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 20)`` to logits ``(B, 4)``."""
        return self.head(F.relu(self.layers(x)))


class EncoderLayers(nn.Module):
    """``nn.TransformerEncoderLayer`` over patches, with a learned position and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 10)``."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


class BranchOnValue(nn.Module):
    """Goes one way or the other by what the data say: to be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(20, 8), nn.Linear(20, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 20)`` to logits ``(B, 4)``."""
        if x.mean() > 0:
            return self.head(self.high(x))
        return self.head(self.low(x))


class BranchOnItem(nn.Module):
    """Repeats a layer as often as the data say: to be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 20)`` to logits ``(B, 4)``."""
        for _ in range(int(x.abs().max().item()) + 1):
            x = torch.tanh(self.layer(x))
        return self.head(x)


def _double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
