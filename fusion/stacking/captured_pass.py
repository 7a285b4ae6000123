"""A stack's forward and backward pass as one CUDA graph: what small models spend on a GPU is launching kernels.

Only passes whose operators do not depend on values, draw no random numbers and have one shape can be recorded; all others run
as ever. The optimizer's step stays outside: its numbers change from step to step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusion.stacking.stack import Stack
from fusion.stacking.stacked_tensor import StackedTensor
from fusion.stacking.template import tree_map

NUM_WARM = 3  #: passes of a shape that run as ever before it is recorded

logger = logging.getLogger(__name__)


class CapturedPass:
    """Records the passes of a stack by their shapes, and replays them.

    Args:
        stack: On a GPU; elsewhere every pass runs as ever.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._records: dict[tuple[object, ...], _Record | None] = {}
        self._counts: dict[tuple[object, ...], int] = {}

    def forget(self) -> None:
        """Drop what was recorded: the stack's tensors are others now."""
        self._records.clear()
        self._counts.clear()

    def __call__(self, inputs: Any, targets: Any, loss: Callable[..., Tensor], restore: Callable[[], None]) -> Tensor:
        """Run forward and backward; gradients are on the parameters afterwards.

        Args:
            inputs: Of all members, stacked.
            targets: Likewise.
            loss: Gives the members' losses from module, inputs and targets.
            restore: Puts the buffers back to what they were before this pass.

        Returns:
            The members' losses, detached, ``(members,)``.
        """
        tensors = _tensors(inputs) + _tensors(targets)
        if not tensors or tensors[0].device.type != "cuda" or self._stack.mode.drew or self._stack.mode.asked_values:
            return forward_and_backward(self._stack, inputs, targets, loss)
        key = tuple((tuple(each.shape), each.dtype) for each in tensors)
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] <= NUM_WARM:
            return forward_and_backward(self._stack, inputs, targets, loss)
        if key not in self._records:
            self._records[key] = self._recorded(inputs, targets, loss)
            restore()  # recording ran nothing, but what came before it may have
        record = self._records[key]
        return forward_and_backward(self._stack, inputs, targets, loss) if record is None else record.replay(tensors)

    def _recorded(self, inputs: Any, targets: Any, loss: Callable[..., Tensor]) -> _Record | None:
        try:
            return _Record(self._stack, inputs, targets, loss)
        except RuntimeError as error:  # an operator that cannot be recorded: it says so here, and runs as ever
            logger.warning("a stack's step is not replayed as a CUDA graph: %s", " ".join(str(error).split())[:200])
            return None


class _Record:
    """One recorded pass: its own inputs, its graph, and where gradients and losses come out."""

    def __init__(self, stack: Stack, inputs: Any, targets: Any, loss: Callable[..., Tensor]) -> None:
        own_inputs, own_targets = _copied(inputs), _copied(targets)
        self._into = _tensors(own_inputs) + _tensors(own_targets)
        self._parameters = [each for each in stack.parameters() if each.requires_grad]
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph):
            self._losses = forward_and_backward(stack, own_inputs, own_targets, loss)
        self._gradients = [each.grad for each in self._parameters]

    def replay(self, tensors: list[Tensor]) -> Tensor:
        """Run the pass on other values."""
        torch._foreach_copy_(self._into, tensors)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._losses.clone()


def forward_and_backward(stack: Stack, inputs: Any, targets: Any, loss: Callable[..., Tensor]) -> Tensor:
    """Run a stack forward and backward and return the members' losses, detached, ``(members,)``."""
    with stack.running() as module:
        value = loss(module, inputs, targets)
    losses = value.merged()  # type: ignore[attr-defined]  # a stacked tensor
    losses.sum().backward()
    return losses.detach()


def _tensors(values: Any) -> list[Tensor]:
    return [each.merged() for each in torch.utils._pytree.tree_leaves(values) if type(each) is StackedTensor]


def _copied(values: Any) -> Any:
    return tree_map(lambda each: StackedTensor.of(each.merged().clone()), values, StackedTensor)
