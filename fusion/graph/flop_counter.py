"""Counts floating-point operations of matrix products, convolutions, attention and recurrence, two for each multiply-add."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


class FlopCounter(FlopCounterMode):
    """PyTorch's counter, which also knows the CPU's fused kernels, and does not sort by module.

    Its tracker of modules fails, without gradients, on models that hand a view of a parameter to a module ("Expected gradient
    function to be set", torch 2.13 to 2.15): class tokens, tables of positions.

    Example:
        >>> with FlopCounter() as counter:
        ...     _ = torch.nn.Linear(3, 5)(torch.zeros(2, 3))
        >>> counter.get_total_flops()
        60
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_CPU_KERNELS)
        self.mod_tracker = _NoModules()


class _NoModules(ModuleTracker):
    """A tracker that looks at no module."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    *outer, length, dim = query
    return 2 * math.prod(outer) * length * key[-2] * (dim + value[-1])


def _recurrent_flops(inputs: torch.Size, from_input: torch.Size, from_state: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(inputs[:-1]) * (math.prod(from_input) + math.prod(from_state))


# the counter knows the GPU's fused kernels, not the CPU's
_CPU_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
}
