"""The models of the fusion benchmark, written as their owners would: VGG, ResNet, ViT and a BERT-like classifier, narrowed.

Shapes: images ``(B, 1, 32, 32)``; token ids ``(B, T)`` with 0 as padding; logits ``(B, classes)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_VGG_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}


class VGG(nn.Module):
    """VGG with BatchNorm (Simonyan and Zisserman, 2015), its widths divided.

    Args:
        depth: 11, 13 or 16.
        width: Channels of the first stage; published: 64.
        classes: Outputs.
    """

    def __init__(self, depth: int, *, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage, repeats in enumerate(_VGG_STAGES[depth]):
            for _ in range(repeats):
                out = width * min(2**stage, 8)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, 4 * width), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(4 * width, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 32, 32)`` to ``(B, classes)``."""
        return self.classifier(self.features(images).flatten(1))


class _BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 for small images (He et al., 2016), narrowed.

    Args:
        width: Channels of the first stage; published: 64.
        classes: Outputs.
    """

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(4):
            out = width * 2**stage
            first = _BasicBlock(channels, out, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, _BasicBlock(out, out, 1)))
            channels = out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 32, 32)`` to ``(B, classes)``."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small vision transformer (Dosovitskiy et al., 2021) with a class token.

    Args:
        dim: Of its tokens.
        depth: Number of layers.
        classes: Outputs.
    """

    def __init__(self, *, dim: int, depth: int, classes: int, heads: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (32 // patch) ** 2 + 1, dim) * 0.02)
        self.layers = nn.ModuleList(_Layer(dim, heads, 0.0) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 32, 32)`` to ``(B, classes)``."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class TextClassifier(nn.Module):
    """A BERT-like classifier of word ids; padding is 0 and is attended to by nobody.

    Args:
        vocabulary: Number of ids.
        length: Words of a sentence.
        dim: Of its tokens.
        depth: Number of layers.
    """

    def __init__(self, *, vocabulary: int, length: int, dim: int, depth: int, classes: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.words.weight, std=0.02)  # as BERT; from 1 a few thousand sentences are learnt by heart
        self.dropout = nn.Dropout(0.3)
        self.position = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.layers = nn.ModuleList(_Layer(dim, heads, 0.1) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ``(B, length)`` to ``(B, classes)``."""
        present = ids != 0
        x = self.dropout(self.words(ids) + self.position)
        for layer in self.layers:
            x = layer(x, present[:, None, None, :])
        weight = present.unsqueeze(-1).to(x.dtype)
        return self.head(self.dropout((self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1.0)))
