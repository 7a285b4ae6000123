"""Samples with labels for several tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.errors import ServingError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskData:
    """Samples and their labels.

    Attributes:
        inputs: In the order in which a network takes them, each ``(N, ...)``.
        labels: By task: int64 ``(N,)`` class numbers, float32 ``(N, B)`` zeros and ones, or float32 ``(N,)`` or ``(N, D)``
            values of a regression.
    """

    inputs: tuple[Tensor, ...]
    labels: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not self.inputs or not len(self.inputs[0]):
            raise ServingError("expected at least one input with at least one sample")
        lengths = {len(tensor) for tensor in (*self.inputs, *self.labels.values())}
        if len(lengths) != 1:
            raise ServingError(f"expected inputs and labels of one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, index: Tensor | slice) -> TaskData:
        """Return some of the samples."""
        return TaskData(
            inputs=tuple(tensor[index] for tensor in self.inputs),
            labels={task: labels[index] for task, labels in self.labels.items()},
        )

    def digest(self) -> str:
        """Return a hash of all that is in it: what scores were measured on."""
        digest = hashlib.sha256()
        for name, tensor in [*enumerate(self.inputs), *sorted(self.labels.items())]:
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
