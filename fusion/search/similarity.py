"""How alike the features are that two blocks take: linear CKA, and how well the one gives the other (R2 of the design).

One forward pass over a few hundred samples is enough. R2 is that of a ridge regression from the channels at places of the
host's feature, resampled as an adapter would, to the channels at the same places of the guest's, on samples that it was not
fitted to: what the adapter alone can save. CKA compares what the two boundaries make of the distances between samples.

References:
    Kornblith et al., Similarity of Neural Network Representations Revisited, 2019 (linear CKA);
    Song et al., Feature Selection via Dependence Maximization, 2012 (the unbiased estimate in it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, can_rescale, resampling
from fusion.graph.resample import list_positions, resample, with_channels
from fusion.search.boundaries import Boundary, collect_boundaries
from fusion.search.space import BlockId

if TYPE_CHECKING:
    from fusion.graph.block import BlockSequence

MAX_PLACES = 4  # of a sample in a regression
RIDGE = 1e-2  # of the mean variance of a channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Of what a host and a guest take.

    Attributes:
        cka: Unbiased linear CKA, up to 1; about 0 for features that have nothing in common.
        r2: Share of the variance of the guest's feature that the host's explains on held-out samples; below 0 where its mean
            would explain more.
    """

    cka: float
    r2: float


def boundary_similarity(
    sequences: Sequence[BlockSequence], inputs: Sequence[Tensor], *, max_samples: int = 512
) -> dict[tuple[BlockId, BlockId], float]:
    """Return for each (host, guest) how well the host's input gives the guest's: R2, from 0 to 1.

    Args:
        sequences: The models in blocks; their modes are as before afterwards.
        inputs: Raw inputs ``(samples, ...)`` in the order of the signature.
        max_samples: How many of them are used.
    """
    alike = compare_boundaries(sequences, inputs, max_samples=max_samples)
    return {pair: min(1.0, max(0.0, likeness.r2)) for pair, likeness in alike.items()}


def compare_boundaries(
    sequences: Sequence[BlockSequence], inputs: Sequence[Tensor], *, max_samples: int = 512
) -> dict[tuple[BlockId, BlockId], Likeness]:
    """Compare what every block takes with what every other takes; both numbers are 0 where no adapter can lead.

    Args:
        sequences: The models in blocks; their modes are as before afterwards.
        inputs: Raw inputs ``(samples, ...)`` in the order of the signature.
        max_samples: How many of them are used.

    Returns:
        For each (host, guest), in any order and also within one model.

    Raises:
        FusionError: If there are less than four samples.
    """
    few = [tensor[:max_samples] for tensor in inputs]
    if not few or len(few[0]) < 4:
        raise FusionError(f"expected at least 4 samples to compare features on, got {len(few[0]) if few else 0}")
    boundaries = collect_boundaries(sequences, few)
    known = [[_is_comparable(host, guest) for guest in boundaries] for host in boundaries]
    ckas = torch.where(torch.tensor(known), _ckas(boundaries), 0.0)
    r2s = torch.where(torch.tensor(known), _r2s(boundaries), 0.0)
    return {
        (host.block, guest.block): Likeness(cka=float(ckas[i, j]), r2=float(r2s[i, j]))
        for i, host in enumerate(boundaries)
        for j, guest in enumerate(boundaries)
    }


def _is_comparable(host: Boundary, guest: Boundary) -> bool:
    has_values = host.values is not None and guest.values is not None
    return has_values and can_rescale(host.original, guest.original)


def _ckas(boundaries: list[Boundary]) -> Tensor:
    """Return unbiased linear CKA of all pairs: products of Gram matrices without what a sample has to do with itself."""
    rows = [_gram(boundary.values) for boundary in boundaries if boundary.values is not None]
    known = [index for index, boundary in enumerate(boundaries) if boundary.values is not None]
    result = torch.zeros(len(boundaries), len(boundaries))
    if rows:
        grams = torch.stack(rows)
        grams = grams / grams.norm(dim=1, keepdim=True).clamp(min=1e-12)
        result[torch.tensor(known)[:, None], torch.tensor(known)] = grams @ grams.T
    return result


def _gram(values: Tensor) -> Tensor:
    """Return the U-centred Gram matrix of the samples, flat."""
    flat = values.flatten(1)
    flat = flat - flat.mean(0)
    count, gram = len(flat), flat @ flat.T
    gram.fill_diagonal_(0.0)
    sums = gram.sum(1) / max(1, count - 2)
    gram = gram - sums[:, None] - sums[None, :] + sums.sum() / max(1, count - 1)
    gram.fill_diagonal_(0.0)
    return gram.flatten()


def _r2s(boundaries: list[Boundary]) -> Tensor:
    """Return R2 by (host, guest)."""
    generator = torch.Generator().manual_seed(0)
    result = torch.zeros(len(boundaries), len(boundaries))
    groups: dict[Feature, dict[int, Tensor]] = {}
    for index, guest in enumerate(boundaries):
        if guest.values is not None:
            places = _places(guest.feature)
            groups.setdefault(places, {})[index] = _positions(guest.values, places)
    for places, members in groups.items():
        guests = list(members.values())
        num_samples, num_places, _ = guests[0].shape
        chosen = torch.randint(num_places, (num_samples, min(MAX_PLACES, num_places)), generator=generator)
        wanted = [_pick(guest, chosen) for guest in guests]
        for index, host in enumerate(boundaries):
            given = _resampled(host, places)
            if given is not None:
                result[index, list(members)] = _explained(_pick(given, chosen), wanted)
    return result


def _places(feature: Feature) -> Feature:
    """Return the feature with one channel."""
    return Feature(with_channels(feature, 1), feature.layout, feature.dtype)


def _resampled(host: Boundary, places: Feature) -> Tensor | None:
    """Return the host's values at the places of a guest: ``(samples, places, channels)``; None where no adapter leads."""
    if host.values is None:
        return None
    if _places(host.feature) == places:
        return _positions(host.values, places)
    if not can_rescale(host.feature, places):
        return None
    moved = resample(host.values, host.feature, places, resampling(host.feature, places))
    return _positions(moved, places)


def _positions(values: Tensor, places: Feature) -> Tensor:
    return values.unsqueeze(1) if values.ndim == 2 else list_positions(values, places)


def _pick(positions: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen places of each sample: ``(samples, chosen, channels)``."""
    return positions.gather(1, chosen[:, :, None].expand(-1, -1, positions.shape[2]))


def _explained(given: Tensor, wanted: list[Tensor]) -> Tensor:
    """Return for each wanted feature the share of its variance that a ridge regression explains on the second half."""
    half = max(1, len(given) // 2)
    target = torch.cat(wanted, dim=2)
    x, y = given[:half].flatten(0, 1), target[:half].flatten(0, 1)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    products = x.T @ x
    shrink = RIDGE * products.diagonal().mean() + 1e-12
    products.diagonal().add_(shrink)
    weight = torch.linalg.solve(products, x.T @ y)
    held_x, held_y = given[half:].flatten(0, 1) - x_mean, target[half:].flatten(0, 1) - y_mean
    errors = (held_y - held_x @ weight).square().sum(0).split([values.shape[2] for values in wanted])
    totals = held_y.square().sum(0).split([values.shape[2] for values in wanted])
    return torch.stack([1 - error.sum() / total.sum().clamp(min=1e-12) for error, total in zip(errors, totals, strict=True)])
