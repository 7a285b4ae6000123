"""A cost that grows with operations and bytes, fitted to measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True, slots=True)
class LinearModel:
    """``fixed + slopes · work``, nothing of it negative."""

    fixed: float
    slopes: tuple[float, ...]

    def __call__(self, work: Sequence[float]) -> float:
        """Return the seconds for an amount of work."""
        return self.fixed + sum(slope * amount for slope, amount in zip(self.slopes, work, strict=True))


def fit_linear(work: Sequence[Sequence[float]], seconds: Sequence[float]) -> LinearModel:
    """Fit a model with the least squared relative errors.

    Args:
        work: Amounts of each kind of work, ``(examples, kinds)``, >= 0.
        seconds: What each example took, > 0.

    Returns:
        Coefficients >= 0; of all sets of coefficients that may differ from 0 the best is taken, which is exact.

    Example:
        >>> model = fit_linear([(0.0,), (10.0,), (20.0,)], [1.0, 2.0, 3.0])
        >>> round(model.fixed, 6), round(model.slopes[0], 6)
        (1.0, 0.1)
    """
    num_kinds = len(work[0]) if work else 0
    taken = np.maximum(np.asarray(seconds, dtype=float), 1e-12)
    columns = (
        np.column_stack([np.ones(len(work)), np.asarray(work, dtype=float).reshape(len(work), num_kinds)]) / taken[:, None]
    )
    # kinds of work differ by ten powers of ten: each column is brought to length 1
    lengths = np.linalg.norm(columns, axis=0)
    lengths[lengths == 0] = 1.0
    best, least = np.zeros(1 + num_kinds), float(len(work))
    for count in range(1, 2 + num_kinds):
        for chosen in combinations(range(1 + num_kinds), count):
            picked = list(chosen)
            solution, *_ = np.linalg.lstsq(columns[:, picked] / lengths[picked], np.ones(len(work)), rcond=None)
            error = float(np.sum((columns[:, picked] / lengths[picked] @ solution - 1.0) ** 2))
            if (solution >= 0).all() and error < least:
                least, best = error, np.zeros(1 + num_kinds)
                best[picked] = solution / lengths[picked]
    return LinearModel(float(best[0]), tuple(float(value) for value in best[1:]))
