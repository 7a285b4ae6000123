"""What passes from one block to the next, and what an adapter between two such features costs (GMorph, section 4.1).

Pure Python: the search counts and compares features without loading torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fusion.graph.errors import FusionError

PREFIX_LENGTHS = (0, 1, 2, 5)  # class token; class and distillation token; class and four register tokens


class Layout(StrEnum):
    """How to read the dimensions of a feature after the batch."""

    CHW = "chw"  # (channels, height, width), or (channels, length)
    HWC = "hwc"  # (height, width, channels)
    TOK = "tok"  # (tokens, channels)
    VEC = "vec"  # (channels,)
    OTHER = "other"  # unknown: shared only between equals


RANKS = {Layout.CHW: (2, 3, 4), Layout.HWC: (3,), Layout.TOK: (2,), Layout.VEC: (1,)}


@dataclass(frozen=True, slots=True)
class Feature:
    """One tensor between blocks, described without its batch dimension.

    Example:
        >>> Feature((64, 7, 7), Layout.CHW).channels
        64
        >>> Feature.from_json({"shape": [197, 192], "layout": "tok", "dtype": "float32"}).channels
        192
    """

    shape: tuple[int, ...]
    layout: Layout
    dtype: str = "float32"

    def __post_init__(self) -> None:
        ranks = RANKS.get(self.layout)
        if ranks is not None and len(self.shape) not in ranks:
            raise FusionError(
                f"a feature of layout '{self.layout}' has {' or '.join(map(str, ranks))} dimensions after the batch, "
                f"got shape {self.shape}; use layout 'other' for what fits none"
            )

    @property
    def channels(self) -> int:
        """Size of the dimension an adapter maps linearly; for `other` the last one."""
        if not self.shape:
            return 1
        return self.shape[0] if self.layout is Layout.CHW else self.shape[-1]

    @property
    def is_float(self) -> bool:
        """Whether its values are real floating-point numbers, so that an adapter can map them."""
        return self.dtype.startswith(("float", "bfloat"))

    def to_json(self) -> dict[str, object]:
        """Describe the feature by what JSON knows."""
        return {"shape": list(self.shape), "layout": str(self.layout), "dtype": self.dtype}

    @classmethod
    def from_json(cls, record: dict[str, object]) -> Feature:
        """Read what `to_json` wrote.

        Args:
            record: `shape`, `layout` and `dtype`.
        """
        shape = record["shape"]
        if not isinstance(shape, list | tuple):
            raise FusionError(f"the shape of a feature must be a list of sizes, got {shape!r}")
        return cls(tuple(int(size) for size in shape), Layout(str(record["layout"])), str(record["dtype"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How positions of a source become positions of a target: prefix tokens aside, one grid becomes another.

    A vector is a grid of one cell, a text of n tokens a grid of n by 1.
    """

    source_prefix: int
    source_grid: tuple[int, int]
    target_prefix: int
    target_grid: tuple[int, int]
    is_pooled: bool  # adaptive average pooling; otherwise bilinear interpolation

    @property
    def copied(self) -> int:
        """Number of prefix tokens taken over from the source."""
        return min(self.source_prefix, self.target_prefix)

    @property
    def made(self) -> int:
        """Number of prefix tokens made from the mean of the grid plus a learned vector."""
        return self.target_prefix - self.copied

    @property
    def is_trivial(self) -> bool:
        """Whether every position of the grid stays what it is."""
        return self.source_grid == self.target_grid

    @property
    def maps_first(self) -> bool:
        """Whether the channel map comes before the resampling; the two commute, so it stands where the grid is smaller."""
        return math.prod(self.source_grid) <= math.prod(self.target_grid)

    @property
    def rows(self) -> int:
        """Number of positions per sample at which the channel map is computed."""
        return self.copied + min(math.prod(self.source_grid), math.prod(self.target_grid))


def resampling(source: Feature, target: Feature) -> Resampling:
    """Decide how the positions of two features correspond (prefix tokens, grids, pooling or interpolation).

    Args:
        source: what there is.
        target: what is wanted.

    Raises:
        FusionError: no adapter exists between the two (see `can_rescale`).
    """
    if not can_rescale(source, target):
        raise FusionError(f"no adapter leads from {source} to {target}: both must be float features of a known layout")
    source_view, target_view = _views(source, target)
    source_prefix, source_grid = source_view
    target_prefix, target_grid = target_view
    is_text = _is_line(source, source_view) or _is_line(target, target_view)
    shrinks = target_grid[0] <= source_grid[0] and target_grid[1] <= source_grid[1]
    return Resampling(
        source_prefix=source_prefix,
        source_grid=source_grid,
        target_prefix=target_prefix,
        target_grid=target_grid,
        is_pooled=shrinks and (not is_text or target.layout is Layout.VEC),
    )


def can_rescale(source: Feature, target: Feature) -> bool:
    """Say whether an adapter can lead from one feature to another (equal features need none and always can).

    Example:
        >>> can_rescale(Feature((64, 7, 7), Layout.CHW), Feature((50, 96), Layout.TOK))
        True
        >>> can_rescale(Feature((12,), Layout.VEC, "int64"), Feature((96,), Layout.VEC))
        False
    """
    return source == target or (_is_known(source) and _is_known(target))


def needs_map(source: Feature, target: Feature) -> bool:
    """Say whether the adapter has weights: it has none where shape and layout are the same (a cast at most)."""
    return (source.shape, source.layout) != (target.shape, target.layout)


def adapter_capacity(source: Feature, target: Feature, *, has_map: bool | None = None) -> int:
    """Count the parameters of `Rescale(source, target)`: channel map, bias, a vector for each prefix token to be made.

    Example:
        >>> adapter_capacity(Feature((64, 7, 7), Layout.CHW), Feature((50, 96), Layout.TOK))  # (64 + 1 + 1) * 96
        6336
    """
    if not (needs_map(source, target) if has_map is None else has_map):
        return 0
    return (source.channels + 1 + resampling(source, target).made) * target.channels


def adapter_flops(source: Feature, target: Feature, *, has_map: bool | None = None) -> int:
    """Count the FLOPs of `Rescale(source, target)` per sample, two per multiply-add of the channel map.

    As `torch.utils.flop_counter` does, this counts neither resampling nor biases.

    Example:
        >>> adapter_flops(Feature((64,), Layout.VEC), Feature((10,), Layout.VEC))
        1280
    """
    if not (needs_map(source, target) if has_map is None else has_map):
        return 0
    return 2 * source.channels * target.channels * resampling(source, target).rows


_View = tuple[int, tuple[int, int]]  # number of prefix tokens, grid


def _is_known(feature: Feature) -> bool:
    is_placed = feature.layout is not Layout.OTHER and len(feature.shape) <= 3
    return feature.is_float and is_placed and math.prod(feature.shape) > 0


def _views(source: Feature, target: Feature) -> tuple[_View, _View]:
    """Read both features as grids; what a token sequence means depends on what it is to become or comes from."""
    if source.layout is target.layout is Layout.TOK and source.shape[0] == target.shape[0]:
        return _line(source), _line(target)  # as many tokens as before: each stays where it is
    pair = source, target
    views = [_tokens(one, other) if one.layout is Layout.TOK else _map(one) for one, other in (pair, pair[::-1])]
    if Layout.VEC not in (source.layout, target.layout) and any(
        _is_line(feature, view) for feature, view in zip(pair, views, strict=True)
    ):
        return _line(source), _line(target)
    return views[0], views[1]


def _map(feature: Feature) -> _View:
    if feature.layout is Layout.VEC:
        return 0, (1, 1)
    if len(feature.shape) == 2:
        return _line(feature)
    sizes = feature.shape[1:] if feature.layout is Layout.CHW else feature.shape[:2]
    return 0, (sizes[0], sizes[1])


def _tokens(tokens: Feature, other: Feature) -> _View:
    """Split a token sequence into prefix and grid: the other side's grid if that fits, else a square, else a line (text)."""
    length = tokens.shape[0]
    if other.layout is Layout.HWC or (other.layout is Layout.CHW and len(other.shape) == 3):
        _, grid = _map(other)
        if length - math.prod(grid) in PREFIX_LENGTHS:
            return length - math.prod(grid), grid
    for prefix in PREFIX_LENGTHS:
        side = math.isqrt(max(length - prefix, 0))
        if side >= 2 and prefix + side * side == length:
            return prefix, (side, side)
    return _line(tokens)


def _line(feature: Feature) -> _View:
    return 0, (math.prod(feature.shape) // feature.channels, 1)


def _is_line(feature: Feature, view: _View) -> bool:
    return feature.layout is not Layout.VEC and len(feature.shape) == 2 and view == _line(feature)
