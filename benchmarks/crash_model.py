"""A model that brings its process down, as a bug in somebody's native code would: for what that costs its neighbours."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn


class CrashesAt(nn.Module):
    """A perceptron on 8x8 digits that dies of SIGSEGV in its training step number ``step``, each time it comes there."""

    def __init__(self, *, step: int, classes: int = 10) -> None:
        super().__init__()
        self.step = step
        self.layer = nn.Linear(64, classes)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 8, 8)`` to ``(B, classes)``, or to nothing at all."""
        if self.training:
            self.count = self.count + 1
            if int(self.count) >= self.step:
                os.kill(os.getpid(), signal.SIGSEGV)
        return self.layer(images.flatten(1))
