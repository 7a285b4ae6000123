"""How large a network is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion.graph.capture import at_batch
from fusion.graph.flop_counter import FlopCounter
from fusion.timer import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How large a network is.

    Attributes:
        num_parameters: Elements, shared ones once.
        flops: For one sample, two for each multiply-add.
        num_bytes: Of parameters and buffers.
    """

    num_parameters: int
    flops: int
    num_bytes: int


def count(network: nn.Module, examples: tuple[Tensor, ...]) -> Counts:
    """Return how large a network is; its mode and gradients stay as they are."""
    with evaluating(network), torch.no_grad(), FlopCounter() as counter:
        network(*at_batch(examples, 1))
    return Counts(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops=counter.get_total_flops(),
        num_bytes=sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]),
    )
