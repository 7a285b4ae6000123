"""Layers of two made-up networks for the tests of merging: values of neurons and the labels that they were made from."""

from __future__ import annotations

import torch
from torch import Tensor


def two_nets(seed: int, *, samples: int = 96, neurons: int = 6, bits: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return values ``(samples, 2 * neurons)`` and the labels ``(samples, bits)`` of both nets' tasks.

    Each neuron is a noisy bit of its own net's task; the second net's values are ten times as large.
    """
    generator = torch.Generator().manual_seed(seed)
    labels_a, labels_b = (torch.randint(0, 2, (samples, bits), generator=generator) for _ in range(2))
    clean = torch.cat([_copies(labels_a, neurons), 10 * _copies(labels_b, neurons)], dim=1)
    noise = torch.randn(clean.shape, generator=generator) * torch.tensor([0.3] * neurons + [3.0] * neurons)
    return clean + noise, labels_a, labels_b


def _copies(labels: Tensor, count: int) -> Tensor:
    return labels[:, [number % labels.shape[1] for number in range(count)]].float()
