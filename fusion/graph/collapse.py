"""Adapters that are not needed: two in a row that are one, and those that became the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.graph.feature import needs_map
from fusion.graph.resample import list_positions, resample, with_channels
from fusion.graph.rescale import Rescale


def collapse(first: Rescale, second: Rescale) -> Rescale | None:
    """Make one adapter of two that follow each other, if one can be exactly the chain.

    A channel map commutes with resampling, so at most one of the two may resample. Two may where that loses nothing, as an
    average of evenly pooled cells; none may where prefix tokens were dropped on the way, for they cannot be brought back.

    Args:
        first: takes the source.
        second: takes what `first` returns.

    Returns:
        A new adapter from the source of `first` to the target of `second` that shares no storage with them, or None.

    Raises:
        FusionError: `second` does not take what `first` returns.

    Example:
        >>> from fusion.graph.feature import Feature, Layout
        >>> vectors = [Feature((size,), Layout.VEC) for size in (6, 4, 8)]
        >>> make = lambda i, j: Rescale(vectors[i], vectors[j], generator=torch.Generator().manual_seed(0))
        >>> collapse(make(0, 1), make(1, 2))
        Rescale(vec 6 -> vec 8)
    """
    if needs_map(first.target, second.source):
        raise FusionError(f"expected an adapter that takes the result of {first!r}, got {second!r}")
    weight, bias = _chained_map(first, second)
    is_mapped = needs_map(first.source, second.target) or not _is_identity_map(weight, bias, 0.0)
    result = Rescale(first.source, second.target, generator=torch.Generator(), has_map=is_mapped)
    vectors = _chained_vectors(first, second)
    plan = result.resampling
    start, end = (plan.copied, plan.target_prefix) if plan is not None else (0, 0)
    if vectors[:start].any() or vectors[end:].any() or not _moves_alike(first, second, result):
        return None
    weights = [adapter.weight for adapter in (first, second) if adapter.weight is not None]
    if weights:  # they may have been moved or cast since they were made
        result = result.to(weights[-1])
    result.train(first.training)
    with torch.no_grad():
        for parameter, value in ((result.weight, weight), (result.bias, bias), (result.prefix, vectors[start:end])):
            if parameter is not None:
                parameter.copy_(value)
    return result


def is_identity(adapter: Rescale, tolerance: float = 0.0) -> bool:
    """Say whether an adapter returns what it gets.

    Args:
        adapter: any.
        tolerance: largest difference of a weight from that of the identity that still counts as none.
    """
    if adapter.source != adapter.target:
        return False
    return _is_identity_map(*_double_map(adapter), tolerance)


def _is_identity_map(weight: Tensor, bias: Tensor, tolerance: float) -> bool:
    if weight.shape[0] != weight.shape[1]:
        return False
    difference = weight - torch.eye(len(weight), dtype=weight.dtype)
    return bool((difference.abs() <= tolerance).all() and (bias.abs() <= tolerance).all())


def _chained_map(first: Rescale, second: Rescale) -> tuple[Tensor, Tensor]:
    inner, inner_bias = _double_map(first)
    outer, outer_bias = _double_map(second)
    return outer @ inner, outer @ inner_bias + outer_bias


def _double_map(adapter: Rescale) -> tuple[Tensor, Tensor]:
    if adapter.weight is None or adapter.bias is None:
        channels = adapter.source.channels
        return torch.eye(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    return adapter.weight.detach().cpu().double(), adapter.bias.detach().cpu().double()


def _chained_vectors(first: Rescale, second: Rescale) -> Tensor:
    """Return what the chain adds at each position beside the bias: `(positions, channels)`."""
    inner = list_positions(second.positions(_vectors(first)), second.target)
    return (inner @ _double_map(second)[0].T + list_positions(_vectors(second), second.target))[0]


def _vectors(adapter: Rescale) -> Tensor:
    zeros = torch.zeros(1, *with_channels(adapter.source, adapter.target.channels), dtype=torch.float64)
    if adapter.prefix is None or adapter.resampling is None:
        return adapter.positions(zeros)
    vectors = adapter.prefix.detach().cpu().double()
    return resample(zeros, adapter.source, adapter.target, adapter.resampling, vectors=vectors)


def _moves_alike(first: Rescale, second: Rescale, result: Rescale) -> bool:
    """Compare the linear maps over positions by what they make of random numbers."""
    shape = (2, *with_channels(first.source, 1))
    probe = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.allclose(second.positions(first.positions(probe)), result.positions(probe), rtol=0, atol=1e-9)
