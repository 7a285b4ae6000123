"""Moving features from the positions of one layout to those of another: the half of an adapter that has no weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.graph.feature import Feature, Layout, Resampling, resampling


class Resample(nn.Module):
    """An adapter whose channel map has been folded into the block behind it.

    Args:
        source: what comes in.
        target: what goes out, with as many channels.
    """

    def __init__(self, source: Feature, target: Feature) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.resampling = resampling(source, target)

    def forward(self, x: Tensor) -> Tensor:
        """Turn `(batch, *source.shape)` into `(batch, *target.shape)`."""
        return resample(x, self.source, self.target, self.resampling)


def unchanged(x: Tensor) -> Tensor:
    """Return `x`: the channel map of a resampling alone."""
    return x


def resample(
    x: Tensor,
    source: Feature,
    target: Feature,
    plan: Resampling,
    *,
    change: Callable[[Tensor], Tensor] = unchanged,
    vectors: Tensor | None = None,
) -> Tensor:
    """Move a batch of features from the positions of `source` to those of `target`.

    Args:
        x: like the source with any number of channels.
        source: names the layout of `x`.
        target: names the layout of the result.
        plan: how positions correspond.
        change: maps channels; it gets `(batch, channels, height, width)` or `(batch, positions, channels)`.
        vectors: `(made, channels)`, added to the mean of the new grid to make prefix tokens; None: zeros.

    Returns:
        Like the target with the channels that `change` returns; may share storage with `x`.
    """
    prefix, body = _split(x, source.layout, plan)
    if plan.maps_first:
        body = change(body)
    if not plan.is_trivial:
        body = _resample_grid(_channels_first(body, plan.source_grid), plan)
    if target.layout is Layout.CHW:
        body = _channels_first(body, plan.target_grid)
        body = body if plan.maps_first else change(body)
        return body.flatten(2).unflatten(2, target.shape[1:])
    body = _channels_last(body)
    body = body if plan.maps_first else change(body)
    if target.layout is Layout.TOK:
        return _with_prefix(change(prefix) if prefix is not None else None, body, plan.made, vectors)
    return body.squeeze(1) if target.layout is Layout.VEC else body.unflatten(1, target.shape[:2])


def list_positions(x: Tensor, feature: Feature) -> Tensor:
    """List all positions of a feature: `(batch, positions, channels)`."""
    if feature.layout is Layout.CHW:
        return x.flatten(2).transpose(1, 2)
    return x.unsqueeze(1) if feature.layout is Layout.VEC else x.flatten(1, -2)


def with_channels(feature: Feature, channels: int) -> tuple[int, ...]:
    """Return the shape of a feature with another number of channels."""
    return (channels, *feature.shape[1:]) if feature.layout is Layout.CHW else (*feature.shape[:-1], channels)


def _split(x: Tensor, layout: Layout, plan: Resampling) -> tuple[Tensor | None, Tensor]:
    """Take the prefix tokens that go on, `(batch, copied, channels)`, off the grid."""
    if layout is Layout.CHW:
        return None, x.flatten(2).unflatten(2, plan.source_grid)
    if layout is Layout.HWC:
        return None, x.flatten(1, 2)
    if layout is Layout.VEC:
        return None, x.unsqueeze(1)
    if plan.source_prefix == 0:
        return None, x
    return (x[:, : plan.copied] if plan.copied else None), x[:, plan.source_prefix :]


def _channels_first(body: Tensor, grid: tuple[int, int]) -> Tensor:
    return body if body.ndim == 4 else body.transpose(1, 2).unflatten(2, grid)


def _channels_last(body: Tensor) -> Tensor:
    return body.flatten(2).transpose(1, 2) if body.ndim == 4 else body


def _resample_grid(body: Tensor, plan: Resampling) -> Tensor:
    if plan.is_pooled and plan.target_grid == (1, 1):
        return body.mean((2, 3), keepdim=True)
    if plan.source_grid == (1, 1):
        return body.expand(-1, -1, *plan.target_grid)
    if plan.is_pooled:
        return F.adaptive_avg_pool2d(body, plan.target_grid)
    return F.interpolate(body, size=plan.target_grid, mode="bilinear", align_corners=False)


def _with_prefix(prefix: Tensor | None, body: Tensor, num_made: int, vectors: Tensor | None) -> Tensor:
    parts = [] if prefix is None else [prefix]
    if num_made:
        mean = body.mean(1, keepdim=True)
        parts.append(mean.expand(-1, num_made, -1) if vectors is None else mean + vectors)
    return torch.cat([*parts, body], 1) if parts else body
