"""The adapter between two blocks that were not made for each other (GMorph, EuroSys'24, section 4.1, rescale).

Positions are resampled and channels mapped linearly; nothing else, so that an adapter is cheap and chains of them collapse.
Beyond the paper: tokens, maps and vectors turn into each other, and the channel map can start from a least-squares fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Resampling, needs_map, resampling
from fusion.graph.resample import list_positions, resample

START_NOISE = 0.05  # standard deviation that the noise of a new channel map adds to channels of unit scale
MAX_NORMAL_EQUATIONS = 2**25  # float64 numbers: 256 MiB
MANY_CHANNELS = 1024  # with more, one system of equations is enough to solve
CHUNK_NUMBERS = 2**23  # of a feature, copied at a time: 64 MiB


class Rescale(nn.Module):
    """Turn a feature into one that another block can take.

    Source → grid (prefix tokens aside) → adaptive average pooling if both sides shrink, else bilinear interpolation → linear
    map over channels → layout of the target. The channel map stands before the resampling where that is cheaper: they
    commute, since resampling weights sum to one. Prefix tokens are copied, or made from the mean of the new grid plus a
    learned vector; to a vector the grid is averaged, from a vector it is filled.

    Between features of one shape and layout there is nothing to learn and the adapter has no parameters.

    Args:
        source: what comes in, as `(batch, *source.shape)`.
        target: what goes out, as `(batch, *target.shape)`.
        generator: draws the noise of the initial weights, which otherwise hand the leading channels on; its device is theirs.
        has_map: whether there is a channel map; default: only between different shapes or layouts.

    Raises:
        FusionError: no adapter exists between the two.

    Example:
        >>> from fusion.graph.feature import Layout
        >>> tokens, map_ = Feature((50, 8), Layout.TOK), Feature((6, 14, 14), Layout.CHW)
        >>> adapter = Rescale(tokens, map_, generator=torch.Generator().manual_seed(0))
        >>> adapter(torch.randn(2, 50, 8)).shape
        torch.Size([2, 6, 14, 14])
    """

    weight: nn.Parameter | None  # `(target channels, source channels)`
    bias: nn.Parameter | None
    prefix: nn.Parameter | None  # `(prefix tokens to be made, target channels)`

    def __init__(self, source: Feature, target: Feature, *, generator: torch.Generator, has_map: bool | None = None) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.weight = self.bias = self.prefix = None
        self.resampling: Resampling | None = None
        if has_map if has_map is not None else needs_map(source, target):
            self.resampling = resampling(source, target)
            self._start(generator)
        elif needs_map(source, target):
            raise FusionError(f"an adapter from {source} to {target} cannot do without a channel map")

    def forward(self, x: Tensor) -> Tensor:
        """Adapt a batch of features.

        Args:
            x: `(batch, *source.shape)`.

        Returns:
            `(batch, *target.shape)`; `x` itself where there is nothing to do.
        """
        if self.weight is None or self.resampling is None:
            return x if self.source.dtype == self.target.dtype else x.to(_dtype(self.target))
        if x.dtype != self.weight.dtype:  # the whole module may have been cast since
            x = x.to(self.weight.dtype)
        return resample(x, self.source, self.target, self.resampling, change=self._map, vectors=self.prefix)

    def positions(self, x: Tensor) -> Tensor:
        """Resample without the channel map.

        Args:
            x: like the source, with any number of channels.

        Returns:
            Like the target, with the channels of `x`.
        """
        return x if self.resampling is None else resample(x, self.source, self.target, self.resampling)

    def extra_repr(self) -> str:
        """Show from what to what."""
        return f"{_text(self.source)} -> {_text(self.target)}"

    def _start(self, generator: torch.Generator) -> None:
        device, dtype = generator.device, _dtype(self.target)
        inputs, outputs = self.source.channels, self.target.channels
        noise = torch.randn(outputs, inputs, generator=generator, device=device) * (START_NOISE / math.sqrt(inputs))
        self.weight = nn.Parameter((torch.eye(outputs, inputs, device=device) + noise).to(dtype))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device, dtype=dtype))
        assert self.resampling is not None
        if self.resampling.made:
            self.prefix = nn.Parameter(torch.zeros(self.resampling.made, outputs, device=device, dtype=dtype))

    def _map(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        if x.ndim == 4:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)
        return F.linear(x, self.weight, self.bias)


def start_least_squares(adapter: Rescale, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float | None = 1e-3) -> None:
    """Give an adapter the weights that turn sources into the features the guest used to get, with least squared error.

    Solves the normal equations of (resampled source, wanted feature), summed in float64 over one batch at a time:
    (XᵀX + λI) W = XᵀY, where λ is `ridge` times the mean variance of the source's channels. Biases and prefix vectors are
    fitted jointly and not shrunk.

    Args:
        adapter: gets new weights in place; one without weights is left alone.
        pairs: batches `(batch, *source.shape)` and `(batch, *target.shape)` of the same samples.
        ridge: relative strength of the shrinking, >= 0. None: what serves best for every fourth sample, which is left out for
            that; with as many channels as positions a weak one fits noise, and is worse than the mean on other samples.

    Raises:
        FusionError: the adapter is too large (see `can_start_least_squares`), or the pairs are none, misshapen or not finite.
    """
    if adapter.weight is None or adapter.bias is None:
        return
    if not can_start_least_squares(adapter.source, adapter.target):
        raise FusionError(
            f"the adapter from {_text(adapter.source)} to {_text(adapter.target)} is too large for a least-squares start; "
            "leave it at its random start"
        )
    inputs = adapter.source.channels
    is_chosen = ridge is None and inputs <= MANY_CHANNELS
    fitted, held = _normal_equations(adapter, pairs, holds_back=is_chosen)
    if ridge is None:
        ridge = _best_ridge(fitted, held, inputs)
    fitted.add_all(held)
    solution = _solve(fitted, inputs, ridge)
    with torch.no_grad():
        adapter.weight.copy_(solution[:inputs].T)
        adapter.bias.copy_(solution[inputs])
        if adapter.prefix is not None:
            adapter.prefix.copy_(solution[inputs + 1 :])


def can_start_least_squares(source: Feature, target: Feature) -> bool:
    """Say whether the normal equations between two features are small enough to be held and solved."""
    return source.channels * (source.channels + target.channels) <= MAX_NORMAL_EQUATIONS


def _dtype(feature: Feature) -> torch.dtype:
    dtype = getattr(torch, feature.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _text(feature: Feature) -> str:
    return f"{feature.layout} {'x'.join(map(str, feature.shape))}"


@dataclass(slots=True, eq=False)
class _Equations:
    """Normal equations: XᵀX, XᵀY and the number of rows of X, which has a column of ones and one per made prefix token."""

    products: Tensor | None = None
    wanted: Tensor | None = None
    num_rows: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        self.products = x.T @ x if self.products is None else self.products.addmm_(x.T, x)
        self.wanted = x.T @ y if self.wanted is None else self.wanted.addmm_(x.T, y)
        self.num_rows += len(x)

    def add_all(self, other: _Equations) -> None:
        if other.products is None or other.wanted is None:
            return
        assert self.products is not None
        assert self.wanted is not None
        self.products += other.products
        self.wanted += other.wanted
        self.num_rows += other.num_rows


def _normal_equations(
    adapter: Rescale, pairs: Iterable[tuple[Tensor, Tensor]], *, holds_back: bool
) -> tuple[_Equations, _Equations]:
    """Sum equations over all batches: of all samples, or of all but every fourth and of those."""
    fitted, held = _Equations(), _Equations()
    begin = 0
    with torch.no_grad():
        for source, target in _in_chunks(adapter, pairs):
            x = list_positions(adapter.positions(source.double()), adapter.target)
            x = torch.cat([x, _indicators(adapter, x).expand(len(x), -1, -1)], -1)
            y = list_positions(target.double(), adapter.target)
            is_held = (torch.arange(begin, begin + len(x), device=x.device) % 4 == 3) & holds_back
            begin += len(x)
            for equations, chosen in ((fitted, ~is_held), (held, is_held)):
                if chosen.any():
                    equations.add(x[chosen].flatten(0, 1), y[chosen].flatten(0, 1))
    if fitted.num_rows == 0:
        raise FusionError("expected at least one pair of features to fit an adapter to, got none")
    tensors = [tensor for one in (fitted, held) for tensor in (one.products, one.wanted) if tensor is not None]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise FusionError("the features that an adapter is to be fitted to are not all finite")
    return fitted, held


def _best_ridge(fitted: _Equations, held: _Equations, inputs: int) -> float:
    """Return the ridge whose solution has the least error on what was held back; without that by a rule of thumb."""
    by_noise = inputs / fitted.num_rows  # about the best where the relation is loose
    products, wanted = held.products, held.wanted
    if products is None or wanted is None:
        return max(1e-3, by_noise)

    def error(ridge: float) -> float:
        solution = _solve(fitted, inputs, ridge)
        return float((solution * (products @ solution - 2 * wanted)).sum())

    return min((1e-5, 1e-3, by_noise / 4, by_noise, 4 * by_noise), key=error)


def _in_chunks(adapter: Rescale, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Split batches so that their float64 copies stay small."""
    size = max(1, CHUNK_NUMBERS // max(math.prod(adapter.source.shape), math.prod(adapter.target.shape)))
    for source, target in pairs:
        _check_pair(adapter, source, target)
        yield from zip(source.split(size), target.split(size), strict=True)


def _check_pair(adapter: Rescale, source: Tensor, target: Tensor) -> None:
    expected = adapter.source.shape, adapter.target.shape
    if (tuple(source.shape[1:]), tuple(target.shape[1:])) != expected or len(source) != len(target):
        raise FusionError(
            f"expected pairs of features (batch, *{expected[0]}) and (batch, *{expected[1]}), "
            f"got {tuple(source.shape)} and {tuple(target.shape)}"
        )


def _indicators(adapter: Rescale, tokens: Tensor) -> Tensor:
    """Return the columns that stand for bias and prefix vectors: `(positions, 1 + made)`."""
    plan = adapter.resampling
    assert plan is not None
    columns = torch.zeros(tokens.shape[1], 1 + plan.made, dtype=tokens.dtype, device=tokens.device)
    columns[:, 0] = 1
    columns[plan.copied : plan.target_prefix, 1:].fill_diagonal_(1)
    return columns


def _solve(equations: _Equations, inputs: int, ridge: float) -> Tensor:
    assert equations.products is not None
    assert equations.wanted is not None
    products, num_rows = equations.products.clone(), equations.num_rows
    means = products[inputs, :inputs] / num_rows
    variances = products.diagonal()[:inputs] / num_rows - means.square()
    floor = 1e-12 * products.diagonal()[:inputs].mean().clamp_min(1.0)  # constant channels must not make it singular
    strength = torch.maximum(ridge * num_rows * variances.mean(), floor)
    products.diagonal()[:inputs].add_(strength)
    return torch.linalg.solve(products, equations.wanted)
