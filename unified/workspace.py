"""The memory that an operator takes beside its outputs, and what the rules for it need to know of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Memory of an operator beyond its outputs.

    Attributes:
        temporary_bytes: Held only while it runs; negative where its outputs come after its peak.
        hidden_output: Index of an output that stands for a workspace kept for the backward pass; -1 without one.
        hidden_bytes: True size of that output.
    """

    temporary_bytes: int = 0
    hidden_output: int = -1
    hidden_bytes: int = 0


def nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def round_up(value: int, multiple: int) -> int:
    """Return the next multiple from ``value`` on."""
    return -(-value // multiple) * multiple


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether images (or volumes) have their channels innermost in memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(tensor.dim())
    return layout is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout)


def copied_bytes(grad: torch.Tensor | None) -> int:
    """Size of the dense copy made of a gradient that is expanded or transposed."""
    return 0 if grad is None or grad.is_contiguous() or is_channels_last(grad) else nbytes(grad)
