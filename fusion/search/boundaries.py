"""What the blocks of models take, over a few hundred samples, cut down to what can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.graph.feature import Feature, Layout
from fusion.search.flops import blocks_of
from fusion.search.space import BlockId
from fusion.timer import evaluating

if TYPE_CHECKING:
    from fusion.graph.block import BlockSequence

MAX_SIDE = 8  # larger maps are pooled
MAX_CHANNELS = 64  # of more, the principal components are taken
MAX_ROWS = 1024  # of the first batch, to find them from
MAX_BATCH = 128
MAX_ELEMENTS = 2**26  # of all features of a batch


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """What a block takes.

    Attributes:
        block: Who takes it.
        original: What it is.
        feature: What is left of it: fewer places and channels.
        values: ``(samples, *feature.shape)`` on the CPU; None if they are no floats.
    """

    block: BlockId
    original: Feature
    feature: Feature
    values: Tensor | None


def collect_boundaries(sequences: Sequence[BlockSequence], inputs: Sequence[Tensor]) -> list[Boundary]:
    """Run the models once in eval mode and keep what each block takes.

    Args:
        sequences: The models in blocks; their modes are as before afterwards.
        inputs: Raw inputs ``(samples, ...)`` in the order of the signature.
    """
    found = []
    for task, sequence in enumerate(sequences):
        blocks = blocks_of(sequence)
        collectors = [_Collector(block.input) for block in blocks]
        with evaluating(sequence), torch.no_grad():
            for batch in _batches(sequence, inputs):
                for collector, value in zip(collectors, sequence.features(batch), strict=True):
                    collector.add(value)
        found += [
            Boundary(BlockId(task, block.index), block.input, collector.feature, collector.values())
            for block, collector in zip(blocks, collectors, strict=True)
        ]
    return found


def _batches(sequence: BlockSequence, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    per_sample = sum(math.prod(block.input.shape) for block in blocks_of(sequence))
    size = min(MAX_BATCH, max(1, MAX_ELEMENTS // max(1, per_sample)))
    return [[tensor[first : first + size] for tensor in inputs] for first in range(0, len(inputs[0]), size)]


class _Collector:
    """Cuts the batches of one feature down: maps are pooled, channels projected to the principal axes of the first batch."""

    def __init__(self, original: Feature) -> None:
        self._original = original
        self.feature = _cut_down(original)
        self._axes: Tensor | None = None
        self._pieces: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Take the next batch ``(batch, *original.shape)``."""
        if not self._original.is_float:
            return
        value = _pool(value.float(), self.feature)
        axis = 1 if self.feature.layout is Layout.CHW else -1
        if value.shape[axis] > MAX_CHANNELS:
            rows = value.movedim(axis, -1)
            if self._axes is None:
                self._axes = _principal_axes(rows.flatten(0, -2))
            value = (rows @ self._axes).movedim(-1, axis)
        self._pieces.append(value.cpu())

    def values(self) -> Tensor | None:
        """Return all batches in one."""
        return torch.cat(self._pieces) if self._pieces else None


def _cut_down(feature: Feature) -> Feature:
    channels, sides = min(feature.channels, MAX_CHANNELS), [min(MAX_SIDE, side) for side in feature.shape]
    match feature.layout, len(feature.shape):
        case Layout.CHW, 3:
            shape: tuple[int, ...] = (channels, *sides[1:])
        case Layout.CHW, 2:
            shape = (channels, min(MAX_SIDE**2, feature.shape[1]))
        case Layout.HWC, _:
            shape = (*sides[:2], channels)
        case Layout.TOK, _:
            shape = (feature.shape[0], channels)
        case Layout.VEC, _:
            shape = (channels,)
        case _:
            return Feature((min(math.prod(feature.shape), MAX_CHANNELS),), Layout.OTHER)
    return Feature(shape, feature.layout)


def _pool(value: Tensor, feature: Feature) -> Tensor:
    """Return as many places as ``feature`` has, with all channels."""
    sizes = feature.shape
    match feature.layout, len(sizes):
        case Layout.CHW, 3:
            return F.adaptive_avg_pool2d(value, (sizes[1], sizes[2]))
        case Layout.CHW, _:
            return F.adaptive_avg_pool1d(value, sizes[1])
        case Layout.HWC, _:
            return F.adaptive_avg_pool2d(value.movedim(-1, 1), (sizes[0], sizes[1])).movedim(1, -1)
        case Layout.OTHER, _:
            return value.flatten(1)
    return value


def _principal_axes(rows: Tensor) -> Tensor:
    """Return ``(channels, MAX_CHANNELS)`` about the axes of largest variance, by three steps of subspace iteration.

    It starts from the same axes for all features of so many channels: equal features are cut down alike.
    """
    rows = rows[:: max(1, len(rows) // MAX_ROWS)]
    rows = rows - rows.mean(0)
    generator = torch.Generator().manual_seed(rows.shape[1])
    axes = torch.randn(rows.shape[1], MAX_CHANNELS, generator=generator).to(rows.device)
    for _ in range(3):
        axes = torch.linalg.qr(rows.T @ (rows @ axes)).Q
    return axes
