"""The running average of a candidate's weights: what is judged and kept, less noisy than the last step's.

Reference: Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", ICML 2013 (polynomial-decay averaging).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ETA = 8  #: the average looks back over about a ninth of the training so far


class Average:
    """Follows a module's parameters and floating-point buffers as its optimizer steps.

    Args:
        module: Whose.
        optimizer: Each of its steps counts.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._live = [tensor for tensor in _tensors(module) if tensor.is_floating_point()]
        self._mean = [tensor.detach().clone() for tensor in self._live]
        self._count = 0
        optimizer.register_step_post_hook(self._add)

    def _add(self, *_: Any) -> None:
        self._count += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._mean, self._live, (ETA + 1) / (self._count + ETA))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the module, and what was there back at the end."""
        if not self._count:
            yield
            return
        with torch.no_grad():
            saved = [tensor.detach().clone() for tensor in self._live]
            torch._foreach_copy_(self._live, self._mean)
            try:
                yield
            finally:
                torch._foreach_copy_(self._live, saved)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
