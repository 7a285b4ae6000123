"""Further models as users write them, small: recurrence, several inputs and outputs, ties, experts, other data than pictures.

Images are ``(B, 3, 32, 32)``, sequences ``(B, T, C)``, ids ``(B, T)`` of a vocabulary of 50, unless a class says otherwise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

VOCABULARY = 50


class GruTagger(nn.Module):
    """Ids to a label at each position, through an embedding and a bidirectional GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16, padding_idx=0)
        self.gru = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(32, 32)
        self.head = nn.Linear(32, 7)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``(B, T, 7)``."""
        out, _ = self.gru(self.embed(ids))
        return self.head(F.relu(self.hidden(out)))


class DictOutput(nn.Module):
    """Two heads under names, beside numbers that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        self.age, self.gender = nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``age`` ``(B, 1)`` and ``gender`` ``(B, 2)``."""
        feature = self.trunk(x).amax((2, 3))
        return {"age": self.age(feature).sigmoid() * 100, "gender": self.gender(feature)}


class TiedWeights(nn.Module):
    """A language model whose output layer is its embedding, and whose two blocks are one and the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 24)
        self.block = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.out = nn.Linear(24, VOCABULARY, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``(B, T, 50)``."""
        length = ids.shape[1]
        mask = torch.triu(torch.full((length, length), float("-inf"), device=ids.device), diagonal=1)
        x = self.embed(ids) * math.sqrt(24)
        for _ in range(2):
            x = self.block(x, src_mask=mask)
        return self.out(self.norm(x))


class SeveralInputs(nn.Module):
    """A picture and a vector of facts about it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)
        self.facts = nn.Linear(5, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        """Map ``(B, 3, 32, 32)`` and ``(B, 5)`` to logits ``(B, 3)``."""
        x = self.conv2(F.relu(self.conv1(image))).relu().mean((2, 3))
        x = x * torch.sigmoid(self.facts(facts))
        return self.head(F.relu(self.mix(x)))


class Siamese(nn.Module):
    """One trunk for two pictures; the answer is their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 16)
        )
        self.head = nn.Linear(16, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return a logit ``(B, 1)``."""
        return self.head((self.trunk(one) - self.trunk(other)).abs())


class EinsumAttention(nn.Module):
    """Attention spelled out with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 16)
        self.layers = nn.ModuleList(_EinsumLayer(16, 4) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, 6)`` to logits ``(B, 5)``."""
        x = self.inward(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class ConvAutoencoder(nn.Module):
    """Down by strides, up by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 16, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 4, 1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4, 16, 4, 2, 1), nn.ELU(), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ELU(), nn.Conv2d(8, 3, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture again ``(B, 3, 32, 32)`` and its code ``(B, 4, 8, 8)``."""
        code = self.encoder(x)
        return torch.sigmoid(self.decoder(code)), code


class MaskedMean(nn.Module):
    """Ids and their mask, by name; the mask enters late."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.position = nn.Embedding(64, 16)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits ``(B, 3)``."""
        places = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.layers(self.embed(input_ids) + self.position(places))
        weight = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


class UnrolledCell(nn.Module):
    """An LSTM cell in a Python loop over time, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 12)
        self.cell = nn.LSTMCell(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, 6)`` to ``(B, T, 2)``."""
        x = self.inward(x)
        hidden = cell = x.new_zeros(x.size(0), 12)
        out = []
        for step in range(x.size(1)):
            hidden, cell = self.cell(x[:, step], (hidden, cell))
            out.append(hidden)
        return self.head(torch.stack(out, dim=1))


class NormedResidual(nn.Module):
    """GroupNorm, weight norm, drop path by hand, checkpointed blocks and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.blocks = nn.ModuleList(_Residual(16) for _ in range(3))
        self.up = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 3, 64, 64)``."""
        small = x
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.up(x) + F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)


class Heads(NamedTuple):
    """The output of ``FourierMixer``."""

    logits: Tensor
    feature: Tensor


class FourierMixer(nn.Module):
    """Mixes tokens by a Fourier transform; returns a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 16)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in "ab"
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Heads:
        """Map ``(B, T, 6)`` to logits ``(B, 5)`` and the feature ``(B, T, 16)``."""
        x = self.inward(x)
        for mlp in self.mlps:
            x = x + torch.fft.fft2(x).real
            x = x + mlp(x)
        return Heads(self.head(x.amax(1)), x)


class SoundNet(nn.Module):
    """One-dimensional convolutions over ``(B, 1, 256)``, scaled by a buffer of the training data's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.1))
        self.register_buffer("scale", torch.full((1, 1, 1), 2.0))
        self.body = nn.Sequential(
            nn.Conv1d(1, 8, 9, stride=4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 9, stride=4), nn.BatchNorm1d(16)
        )
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities ``(B, 6)``."""
        x = self.body((x - self.mean) / self.scale)
        return F.log_softmax(self.head(F.adaptive_max_pool1d(x, 1).squeeze(-1)), dim=-1)


class SoftExperts(nn.Module):
    """A gate weighs four experts, chosen with ``topk`` and ``where`` instead of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(20, 16)
        self.gate = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 20)`` to logits ``(B, 4)``."""
        x = torch.relu(self.inward(x))
        gate = self.gate(x)
        least = gate.topk(2, dim=-1).values[:, -1:]
        weight = torch.where(gate >= least, gate, torch.full_like(gate, -1e9)).softmax(-1)
        mixed = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(x + (weight.unsqueeze(-1) * mixed).sum(1))


class Video(nn.Module):
    """Pictures of a clip ``(B, 4, 3, 16, 16)`` folded into the batch, then put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.time = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, 3)``."""
        num_clips, num_frames = x.shape[:2]
        x = self.frame(x.flatten(0, 1)).mean((2, 3))
        x = x.view(num_clips, num_frames, -1).transpose(1, 2)
        return self.head(F.relu(self.time(x)).mean(-1))


class _EinsumLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Parameter(torch.randn(3, heads, width, width // heads) / math.sqrt(width))
        self.out = nn.Parameter(torch.randn(heads, width // heads, width) / math.sqrt(width))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("btc,nhcd->nbhtd", self.norm(x), self.qkv)
        weight = torch.einsum("bhtd,bhsd->bhts", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        x = x + torch.einsum("bhts,bhsd,hdc->btc", weight, v, self.out)
        return x + self.mlp(x)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.silu(self.norm(x)))
        if self.training:
            y = y * (torch.rand(y.shape[0], 1, 1, 1, device=y.device) > 0.1)
        return x + y
