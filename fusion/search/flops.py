"""How many floating-point operations a module and each block of a model take (GMorph, EuroSys'24, section 5).

Counted are matrix products, convolutions, attention and recurrent layers, two for each multiply-add; no elementwise, norm or
pooling work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusion.graph.flop_counter import FlopCounter
from fusion.timer import evaluating

if TYPE_CHECKING:
    from fusion.graph.block import Block, BlockSequence

NUM_SAMPLES = 2
"""Blocks are counted on so many samples: captured models take any batch but, some of them, a single sample."""


def count_flops(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Count the operations of one forward pass in eval mode.

    Args:
        module: Called as ``module(*inputs)``; its mode is as before afterwards.
        inputs: Of the whole batch.

    Returns:
        Operations for the whole batch.

    Example:
        >>> count_flops(nn.Linear(3, 5), [torch.zeros(2, 3)])
        60
    """
    with evaluating(module):
        return _count(module, inputs)


def block_flops(sequence: BlockSequence, inputs: Sequence[Tensor]) -> list[int]:
    """Count the operations of each block of a model.

    Args:
        sequence: The model in blocks.
        inputs: Raw inputs ``(batch, ...)`` in the order of the signature; two samples are used.

    Returns:
        Operations per sample, for each block.
    """
    few = [tensor[:NUM_SAMPLES] for tensor in inputs]
    num_samples = len(few[sequence.signature.primary])
    with evaluating(sequence), torch.no_grad():
        features = sequence.features(few)
        return [
            round(_count(block, [feature, *(few[position] for position in block.needs)]) / num_samples)
            for block, feature in zip(blocks_of(sequence), features, strict=True)
        ]


def blocks_of(sequence: BlockSequence) -> list[Block]:
    """Return the blocks of a model."""
    return cast("list[Block]", [*sequence.blocks])  # a ModuleList does not tell the checker what it holds


def _count(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which nothing could look into
    try:
        with torch.no_grad(), FlopCounter() as counter:
            module(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
    return counter.get_total_flops()
