"""Which samples variants are trained on, and which score them."""

from __future__ import annotations

import pytest
import torch

from unified.errors import UnifiedError
from unified.variants.data import read_samples


def test_samples_of_which_none_can_be_held_out_are_refused() -> None:
    same = torch.ones(3, 4), {"kind": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(UnifiedError, match="at least two samples that differ"):
        read_samples(same, seed=0)
