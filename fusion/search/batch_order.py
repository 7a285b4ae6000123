"""Which samples a step of training sees: a function of the seed and the step, so that it is the same after a resume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fusion.search.training import step_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """Which samples a step sees: a function of (seed, step), the same for every unit, and after a resume.

    Each epoch is a permutation of its own; what does not fill a batch at its end is left out.

    Args:
        num_samples: Of the part.
        batch_size: Of a step; at most the number of samples is used.
        seed: Of the permutations.

    Example:
        >>> order = BatchOrder(num_samples=5, batch_size=2, seed=0)
        >>> order.steps_per_epoch, len(order(0)), order(7).equal(order(7))
        (2, 2, True)
    """

    num_samples: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the samples, at least one."""
        return max(1, self.num_samples // self.batch_size)

    def __call__(self, step: int) -> Tensor:
        """Return the indices of a step's samples, `(batch,)`, int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return _permutation(self.num_samples, self.seed, epoch)[place * self.batch_size : (place + 1) * self.batch_size]


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(step_seed(seed, "order", epoch)))
