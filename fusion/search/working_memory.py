"""How many bytes of tensors are alive at once while a module runs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def working_bytes(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Any, int]:
    """Run a module and watch the tensors that its operators make.

    Args:
        module: Called as ``module(*inputs)``.
        inputs: Count for nothing, and nor do the module's own tensors.

    Returns:
        The module's output, and the largest number of bytes that were alive at once. What an operator takes within itself,
        such as the workspace of a convolution, is not seen.

    Example:
        >>> import torch
        >>> with torch.no_grad():
        ...     working_bytes(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), [torch.zeros(2, 4)])[1]
        128
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*inputs, *module.parameters(), *module.buffers()]}
    with _Watch(own) as watch:
        output = module(*inputs)
    return output, watch.peak


class _Watch(TorchDispatchMode):
    """Counts, for each storage made under it, the tensors that use it."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self.peak = 0
        self._own = own
        self._users: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._references: list[weakref.ref[Tensor]] = []  # a reference that is gone tells nothing

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._own or place == 0:
            return
        self._users[place] = self._users.get(place, 0) + 1
        self._sizes[place] = storage.nbytes()
        self._references.append(weakref.ref(tensor, lambda _: self._drop(place)))

    def _drop(self, place: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place], self._sizes[place]
