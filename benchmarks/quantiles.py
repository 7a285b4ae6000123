"""What a list of measurements comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Quantiles of ``count`` values."""

    count: int
    p50: float
    p90: float
    p99: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles | None:
        """Return those of ``values``, None if there are none."""
        if not values:
            return None
        p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
        return cls(count=len(values), p50=p50, p90=p90, p99=p99, highest=float(max(values)))

    def times(self, factor: float) -> Quantiles:
        """Return them in another unit."""
        p50, p90, p99, highest = (factor * value for value in (self.p50, self.p90, self.p99, self.highest))
        return Quantiles(count=self.count, p50=p50, p90=p90, p99=p99, highest=highest)
