"""What selection decides by: the profiled variants of one family on one machine, as arrays. Immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from serving.records import Family, Variant

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

QUANTILES = ("p50", "p95")


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Profiled variants of a family, n of them, by increasing inference latency (p50, batch 1), then id.

    Attributes:
        family: Of all of them.
        hardware: Fingerprint of the machine that they were profiled on.
        variants: Those that have a profile there.
        batches: Profiled batch sizes, increasing, B of them.
        infer_ms: By quantile, ``(n, B)``: warm inference of so many rows, copying of inputs included.
        load_cold_ms: ``(n,)``, from the file to the device.
        load_warm_ms: ``(n,)``, from host memory to the device.
        num_bytes: ``(n,)``, on the device.
        scores: ``(n, K)`` in [0, 1], by the family's order of tasks; NaN for a task that a variant does not answer.
        suspect: Indices of variants whose profile was disturbed.
    """

    family: Family
    hardware: str
    variants: tuple[Variant, ...]
    batches: tuple[int, ...]
    infer_ms: Mapping[str, Floats]
    load_cold_ms: Floats
    load_warm_ms: Floats
    num_bytes: Floats
    scores: Floats
    suspect: frozenset[int] = frozenset()
    memo: dict[object, object] = field(default_factory=dict, repr=False)  # of what is computed from it, never of state

    def __len__(self) -> int:
        return len(self.variants)

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each variant by its id."""
        return {variant.id: place for place, variant in enumerate(self.variants)}

    @cached_property
    def masks(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """``(n,)``: bit k is set if a variant answers the k-th task of the family."""
        return (~np.isnan(self.scores) @ (1 << np.arange(self.scores.shape[1]))).astype(np.int64)

    def mask_of(self, tasks: frozenset[str] | tuple[str, ...]) -> int:
        """Return the bits of some tasks."""
        return sum(1 << place for place, name in enumerate(self.family.task_names) if name in tasks)

    def call(self, rows: int, quantile: str, beside_ms: float) -> Floats:
        """Return :meth:`latency` with what each call takes beside it; for equal values in a row the same array."""
        key = ("call", rows, quantile)
        kept = self.memo.get(key)
        if not isinstance(kept, tuple) or kept[0] != beside_ms:
            kept = self.memo[key] = (beside_ms, self.latency(rows, quantile) + beside_ms)
        return kept[1]

    def latency(self, rows: int, quantile: str = "p50") -> Floats:
        """Return ``(n,)``: milliseconds to infer ``rows`` samples, interpolated between profiled batches.

        Beyond the largest profiled batch it goes on at that batch's milliseconds per row.
        """
        key = ("latency", rows, quantile)
        found = self.memo.get(key)
        if found is None:
            found = self.memo[key] = _at(np.asarray(self.batches), self.infer_ms[quantile], rows)
        return found  # pyrefly: ignore[bad-return] - the memo holds what was put under this key


def _at(batches: np.ndarray, infer_ms: Floats, rows: int) -> Floats:
    """Interpolate each row of ``(n, B)`` at a number of samples."""
    last = batches[-1]
    if rows >= last:
        return infer_ms[:, -1] * (rows / last)
    above = int(np.searchsorted(batches, rows))
    if batches[above] == rows or above == 0:
        return infer_ms[:, above]
    low, high = batches[above - 1], batches[above]
    share = (rows - low) / (high - low)
    return infer_ms[:, above - 1] * (1 - share) + infer_ms[:, above] * share
