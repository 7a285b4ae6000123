"""The models of the benchmark, as the plain ``nn.Module`` classes that their owners would have written.

Shapes: images ``(B, C, H, W)``; token ids ``(B, T)``; logits ``(B, classes)`` or, for language models,
``(B, V, T)`` as ``nn.CrossEntropyLoss`` wants them (batch, channels, height, width, time, vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """LeNet-5 for images of 28x28 pixels, with BatchNorm and dropout (after LeCun et al., 1998)."""

    def __init__(self, *, classes: int = 10, dropout: float = 0.25) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 28, 28)`` to ``(B, classes)``."""
        return self.head(self.features(images).flatten(1))


def _conv_norm(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 (He et al., 2015)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_norm(in_channels, width, 3, stride), nn.ReLU(), _conv_norm(width, width))
        same = stride == 1 and in_channels == width
        self.shortcut = nn.Identity() if same else _conv_norm(in_channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, width, H / stride, W / stride)``."""
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: the block of ResNet-50."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.body = nn.Sequential(
            _conv_norm(in_channels, width, 1),
            nn.ReLU(),
            _conv_norm(width, width, 3, stride),
            nn.ReLU(),
            _conv_norm(width, out_channels, 1),
        )
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else _conv_norm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, 4 * width, H / stride, W / stride)``."""
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet for 32x32 images: the depth of the original, with ``width`` channels instead of 64."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], *, width: int, classes: int
    ) -> None:
        super().__init__()
        channels = width
        self.stem = nn.Sequential(_conv_norm(3, width), nn.ReLU())
        blocks: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride))
                channels = width * 2**stage * block.expansion
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 3, 32, 32)`` to ``(B, classes)``."""
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class CBAM(nn.Module):
    """Attention over channels, then over places (Woo et al., 2018)."""

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.ReLU(), nn.Linear(channels // reduction, channels)
        )
        self.place = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh ``(B, C, H, W)`` by channel and by place; the shape stays."""
        weight = torch.sigmoid(self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3))))
        x = x * weight[:, :, None, None]
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.place(summary))


class AttentiveVGG(nn.Module):
    """A small VGG with a CBAM module after each of its blocks, as the paper's custom VGG-16."""

    def __init__(self, *, widths: tuple[int, ...], classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in widths:
            layers += [_conv_norm(channels, width), nn.ReLU(), _conv_norm(width, width), nn.ReLU()]
            layers += [CBAM(width), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(channels * 9, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 28, 28)`` to ``(B, classes)``; three blocks bring 28 pixels down to 3."""
        return self.head(self.features(images).flatten(1))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward layers, with dropout on both branches."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.projection = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """Map ``(B, T, dim)`` to the same shape; ``mask`` ``(B, 1, 1, T)`` is true where a token is seen."""
        B, T, D = x.shape  # noqa: N806 - batch, time, features
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, D // self.heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask, is_causal=causal)
        x = x + self.dropout(self.projection(seen.transpose(1, 2).reshape(B, T, D)))
        return x + self.dropout(self.feed_forward(self.forward_norm(x)))


class TransformerLM(nn.Module):
    """A causal language model over words; returns ``(B, V, T)`` for ``nn.CrossEntropyLoss``."""

    def __init__(self, *, vocabulary: int, length: int, dim: int, heads: int, depth: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList([EncoderLayer(dim, heads, dropout) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Map word ids ``(B, T)`` to logits of the next word ``(B, V, T)``."""
        x = self.dropout(self.words(ids) + self.places.weight)
        for layer in self.layers:
            x = layer(x, None, causal=True)
        return self.head(self.norm(x)).transpose(1, 2)


class TextClassifier(nn.Module):
    """A BERT-like encoder: sees both ways, ignores padding (id 0), classifies by its first token."""

    def __init__(self, *, vocabulary: int, length: int, dim: int, heads: int, depth: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, dim, padding_idx=0), nn.Embedding(length, dim)
        self.layers = nn.ModuleList([EncoderLayer(dim, heads, dropout) for _ in range(depth)])
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.pooler, self.head = nn.Linear(dim, dim), nn.Linear(dim, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Map word ids ``(B, T)`` to logits ``(B, 2)``."""
        mask = (ids != 0)[:, None, None, :]
        x = self.dropout(self.words(ids) + self.places.weight)
        for layer in self.layers:
            x = layer(x, mask, causal=False)
        return self.head(self.dropout(torch.tanh(self.pooler(self.norm(x)[:, 0]))))


class RowEncoder(nn.Module):
    """A small transformer encoder that reads an 8x8 digit as eight tokens, one per row."""

    def __init__(self, *, dim: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.rows, self.places = nn.Linear(8, dim), nn.Embedding(8, dim)
        self.layers = nn.ModuleList([EncoderLayer(dim, heads, 0.1) for _ in range(depth)])
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 8, 8)`` to ``(B, 10)``."""
        x = self.rows(images.squeeze(1)) + self.places.weight
        for layer in self.layers:
            x = layer(x, None, causal=False)
        return self.head(x.mean(1))


def digit_mlp(*, hidden: tuple[int, ...], dropout: float = 0.0) -> nn.Module:
    """Return a perceptron on 8x8 digits: ``(B, 1, 8, 8)`` to ``(B, 10)``."""
    layers: list[nn.Module] = [nn.Flatten()]
    size = 64
    for width in hidden:
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 10))


def digit_conv(*, widths: tuple[int, ...], norm: bool = True) -> nn.Module:
    """Return a small convolutional net on 8x8 digits: ``(B, 1, 8, 8)`` to ``(B, 10)``."""
    layers: list[nn.Module] = []
    channels = 1
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(channels * 16, 10))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lenet": LeNet,
    "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2), width=16, classes=10),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3), width=16, classes=20),
    "vgg-cbam": lambda: AttentiveVGG(widths=(16, 32, 64)),
    "transformer-lm": lambda: TransformerLM(vocabulary=2000, length=32, dim=96, heads=4, depth=2),
    "bert": lambda: TextClassifier(vocabulary=4000, length=32, dim=128, heads=4, depth=4),
    "mlp-small": lambda: digit_mlp(hidden=(64,)),
    "mlp-wide": lambda: digit_mlp(hidden=(512, 256)),
    "mlp-deep": lambda: digit_mlp(hidden=(128, 128, 128, 128), dropout=0.1),
    "conv-small": lambda: digit_conv(widths=(8,), norm=False),
    "conv-norm": lambda: digit_conv(widths=(16, 32)),
    "conv-wide": lambda: digit_conv(widths=(32, 64)),
    "encoder-small": RowEncoder,
    "encoder-wide": lambda: RowEncoder(dim=64, heads=4, depth=3),
}
"""Every model by name; building one draws its initial weights from torch's default generator."""
