"""What was measured of a variant on one machine, and the table that selection decides by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from serving.records import Family, Variant
from serving.table import QUANTILES, Floats, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Inference of so many rows: warm, synchronised, inputs copied to the device first.

    Attributes:
        rows: Batch size.
        p50_ms: Median of the whole run.
        p95_ms: 95th percentile of the whole run.
        copy_ms: Median of copying the inputs, which is part of the above.
        num_runs: How many runs were measured.
    """

    rows: int
    p50_ms: float
    p95_ms: float
    copy_ms: float
    num_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a fixed piece of work of a millisecond or two took, which tells whether something else had the machine.

    Attributes:
        before_ms: Median, just before variants were measured.
        p50_ms: Median meanwhile: it took turns with them.
        p95_ms: 95th percentile meanwhile.
        after_ms: Median, just after.
    """

    before_ms: float
    p50_ms: float
    p95_ms: float
    after_ms: float

    @property
    def drift(self) -> float:
        """By which share the slowest of its medians is above the fastest."""
        medians = (self.before_ms, self.p50_ms, self.after_ms)
        return max(medians) / min(medians) - 1

    @property
    def spread(self) -> float:
        """By which share its 95th percentile is above the fastest of its medians."""
        return self.p95_ms / min(self.before_ms, self.p50_ms, self.after_ms) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one variant takes on one machine.

    Attributes:
        infer: By increasing batch size; the first is 1.
        load_cold_ms: Median from a file that is on disk only to the first answer.
        load_warm_ms: The same with the file in memory (page cache), as it is for what was loaded before.
        is_cold: Whether the page cache could be emptied for ``load_cold_ms``; if not, that is no more than ``load_warm_ms``.
        reference: What a fixed piece of work took around and between.
        is_suspect: Whether that drifted or spread by more than allowed, so that something disturbed the measurement.
        measured: Seconds since the epoch.
    """

    infer: tuple[Latency, ...]
    load_cold_ms: float
    load_warm_ms: float
    is_cold: bool
    reference: Reference
    is_suspect: bool
    measured: float

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes."""
        return tuple(entry.rows for entry in self.infer)

    def at(self, rows: int) -> Latency:
        """Return what was measured for a batch size, one of :attr:`batches`."""
        return next(entry for entry in self.infer if entry.rows == rows)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` gave; raises KeyError, TypeError or ValueError if it is nothing of the kind."""
        values: dict[str, Any] = {**content, "infer": tuple(Latency(**entry) for entry in content["infer"])}
        found = cls(**values | {"reference": Reference(**content["reference"])})
        batches = found.batches
        if batches[:1] != (1,) or any(low >= high for low, high in pairwise(batches)):
            raise ValueError(f"expected batch sizes from 1 up, got {batches}")
        times = [time for entry in found.infer for time in (entry.p50_ms, entry.p95_ms)]
        if not all(math.isfinite(time) and time >= 0 for time in (*times, found.load_cold_ms, found.load_warm_ms)):
            raise ValueError("expected finite times from 0")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A variant with what is known of it on one machine.

    Attributes:
        variant: Which.
        scores: By task, on the data in use; None if it was not scored on them, or is rejected.
        problem: Why it is rejected, None if it is not.
        profile: None if it has none on that machine.
    """

    variant: Variant
    scores: Mapping[str, float] | None
    problem: str | None
    profile: Profile | None

    @property
    def profiled(self) -> Profiled | None:
        """It as selection takes it, None if it was not scored and profiled."""
        if self.scores is None or self.profile is None:
            return None
        return Profiled(variant=self.variant, scores=self.scores, profile=self.profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """A variant with all that selection needs to know of it; ``scores`` by task, in [0, 1]."""

    variant: Variant
    scores: Mapping[str, float]
    profile: Profile


def scores_from_json(content: Mapping[str, Any]) -> dict[str, float]:
    """Return scores by task; raises TypeError or ValueError if they are nothing of the kind."""
    if not all(0 <= score <= 1 for score in dict(content).values()):
        raise ValueError("expected scores from 0 to 1")
    return dict(content)


def make_table(family: Family, hardware: str, found: Sequence[Profiled]) -> Table:
    """Return the table of profiled variants of a family; its batch sizes are those that all were measured with.

    Without variants it has batch size 1 and no lines.
    """
    order = sorted(found, key=lambda entry: (entry.profile.infer[0].p50_ms, entry.variant.id))
    common = set.intersection(*(set(entry.profile.batches) for entry in order)) if order else {1}
    batches = tuple(sorted(common))

    infer = {
        quantile: _array(
            [[getattr(entry.profile.at(rows), f"{quantile}_ms") for rows in batches] for entry in order], len(batches)
        )
        for quantile in QUANTILES
    }
    scores = [[entry.scores.get(task, np.nan) for task in family.task_names] for entry in order]
    return Table(
        family=family,
        hardware=hardware,
        variants=tuple(entry.variant for entry in order),
        batches=batches,
        infer_ms=infer,
        load_cold_ms=_array([entry.profile.load_cold_ms for entry in order]),
        load_warm_ms=_array([entry.profile.load_warm_ms for entry in order]),
        num_bytes=_array([entry.variant.num_bytes for entry in order]),
        scores=_array(scores, len(family.tasks)),
        suspect=frozenset(place for place, entry in enumerate(order) if entry.profile.is_suspect),
    )


def _array(values: Sequence[object], *width: int) -> Floats:
    """Return numbers of variants as an array that nobody can change."""
    found = np.asarray(values, dtype=np.float64).reshape(len(values), *width)
    found.setflags(write=False)
    return found
