"""Some members in one stack with their optimizer: one forward and backward pass, which can be undone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusion.stacking.captured_pass import CapturedPass, forward_and_backward
from fusion.stacking.stack import Stack
from fusion.stacking.vector_optimizer import VectorOptimizer

#: Gives the inputs and targets of some members (by their positions), as :meth:`Stack.merge` makes them.
Batches = Callable[[Sequence[int]], tuple[Any, Any]]
#: Gives the loss of each member from the module, inputs and targets: a stacked tensor of shape ``()``.
Loss = Callable[[nn.Module, Any, Any], Tensor]


class Group:
    """Members of one stack.

    Args:
        stack: The stack.
        optimizers: Each member's own.
        positions: Which members of the whole training they are.
        captures: Whether to replay passes as CUDA graphs, on a GPU.
    """

    def __init__(
        self, stack: Stack, optimizers: Sequence[Optimizer], positions: Sequence[int], *, captures: bool = False
    ) -> None:
        self.positions = list(positions)
        self.stack = stack
        self.optimizer = VectorOptimizer(stack.stacked, optimizers)
        self._captured = CapturedPass(stack) if captures else None
        self._backup: list[Tensor] = []
        self.changed()

    def changed(self) -> None:
        """Take note that members have joined or left."""
        self._backup = [buffer.clone() for buffer in self.stack.buffers()]
        if self._captured is not None:
            self._captured.forget()

    def save(self) -> None:
        """Remember the buffers as they are."""
        if self._backup:
            torch._foreach_copy_(self._backup, list(self.stack.buffers()))

    def restore(self) -> None:
        """Put the buffers back to what they were."""
        if self._backup:
            torch._foreach_copy_(list(self.stack.buffers()), self._backup)

    def losses(self, batches: Batches, loss: Loss) -> Tensor:
        """Run forward and backward and return the members' losses, detached, ``(members,)``."""
        self.optimizer.zero_grad()
        inputs, targets = batches(self.positions)
        if self._captured is not None:
            return self._captured(inputs, targets, loss, self.restore)
        return forward_and_backward(self.stack, inputs, targets, loss)
