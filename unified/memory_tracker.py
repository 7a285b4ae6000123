"""Counts what tensors cost while a program runs: live bytes and their peak, floating-point operations, ATen operators.

Works on real and on fake tensors alike. What counts is the storage, not the tensor: views and in-place operators add
nothing, and a storage is alive for exactly as long as anything, the autograd graph included, holds it.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unified.errors import SlowEstimateError
from unified.operator_costs import count_flops, workspace

_NOT_OPERATORS = frozenset({"prim", "profiler"})
#: Left behind by tracing: the same program without it runs no such operator.
_ARTEFACTS = frozenset({torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default})


@dataclass(slots=True)
class _Storage:
    """A storage under observation: its size, and the weak reference that tells of its end."""

    nbytes: int
    reference: weakref.ref[torch.UntypedStorage]


class MemoryTracker(TorchDispatchMode):
    """Counts while it is entered; tensors made before are counted once they are given to :meth:`hold`.

    Args:
        granularity: Each storage is rounded up to a multiple of this many bytes, as its allocator does.
        max_seconds: What it may watch for.

    Raises:
        SlowEstimateError: From the first operator that ends later.

    Attributes:
        live_bytes: Bytes of all storages alive now.
        timeline: After each operator the live bytes plus the workspace that the operator had while it ran.
        flops: Floating-point operations so far; a multiply-add counts as two, element-wise operators as none, as in
            ``torch.utils.flop_counter``.
        num_ops: ATen operators so far.
        is_backward: Whether the autograd engine is at work; the caller says so.
        assumed_scalar: What ``.item()`` gives of a fake tensor, whose value nobody knows; None lets it raise. To be set only
            where the value scales something and decides nothing, as in optimizers.
    """

    def __init__(self, granularity: int = 1, *, max_seconds: float = math.inf) -> None:
        super().__init__()
        self._max_seconds = max_seconds
        self._deadline = time.monotonic() + max_seconds
        self.live_bytes = 0
        self.timeline: list[int] = []
        self.flops = 0
        self.num_ops = 0
        self.is_backward = False
        self.assumed_scalar: float | None = None
        self._granularity = granularity
        self._storages: dict[int, _Storage] = {}
        self._product: weakref.ref[torch.Tensor] | None = None  # of the operator before, if that was a matrix product

    def hold(self, tree: object) -> None:
        """Count the tensors in ``tree`` (a tensor, or nested containers of them) from now on."""
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                self._observe(tensor, 0)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator and count what it made."""
        kwargs = kwargs or {}
        output = self._call(func, args, kwargs)
        if func.namespace in _NOT_OPERATORS:
            return output
        cost = workspace(func, args, output)
        for index, tensor in enumerate(tree_leaves(output)):
            if isinstance(tensor, torch.Tensor):
                self._observe(tensor, cost.hidden_bytes if index == cost.hidden_output else 0)
        if func not in _ARTEFACTS:
            self._raise_if_late()  # from others, which PyTorch calls where nothing may be raised, it would end the process
            self.num_ops += 1
            self.flops += count_flops(func, args, kwargs, output)
        if not (self.is_backward and _is_accumulation(func, args)) and not self._is_bias(func, args):
            self.timeline.append(self.live_bytes + max(0, cost.temporary_bytes))
        self._product = weakref.ref(output) if func is torch.ops.aten._unsafe_view.default else None
        return output

    def _raise_if_late(self) -> None:
        if time.monotonic() > self._deadline:
            raise SlowEstimateError(
                f"a step and an evaluation were not traced within {self._max_seconds:g} s, only their first {self.num_ops} "
                "operators; make the model's forward shorter, for example by fewer turns of its loops"
            )

    def _is_bias(self, func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
        """Whether ``linear`` adds its bias to the product it has just made, which it does in place unless it is watched."""
        if func is not torch.ops.aten.add.Tensor or self._product is None or args[0] is not self._product():
            return False
        return isinstance(args[1], torch.Tensor) and args[1].dim() == 1

    def _call(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default or self.assumed_scalar is None:
                raise
            return self.assumed_scalar

    def _observe(self, tensor: torch.Tensor, at_least: int) -> None:
        """Count the tensor's storage, whose fake twin may be smaller than it would be in truth."""
        if tensor.layout is not torch.strided:
            for part in _parts(tensor):
                self._observe(part, 0)
            return
        storage = tensor.untyped_storage()
        nbytes = -(-max(storage.nbytes(), at_least) // self._granularity) * self._granularity
        known = self._storages.get(id(storage))
        if known is None:
            # A storage keeps its Python object, and with it its id, for its whole life.
            self._storages[id(storage)] = _Storage(nbytes, weakref.ref(storage, self._forget(id(storage))))
            self.live_bytes += nbytes
        elif nbytes > known.nbytes:  # resized in place
            self.live_bytes += nbytes - known.nbytes
            known.nbytes = nbytes

    def _forget(self, key: int) -> Callable[[object], None]:
        tracker = weakref.ref(self)

        def forget(_: object) -> None:
            alive = tracker()
            if alive is not None:
                alive.live_bytes -= alive._storages.pop(key).nbytes

        return forget


def _is_accumulation(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether the autograd engine adds up two gradients of one tensor.

    On plain tensors it adds in place; it makes a third tensor only because we watch. Once the two are gone, which is before
    the next operator, the count is right again.
    """
    if func is not torch.ops.aten.add.Tensor or not isinstance(args[1], torch.Tensor):
        return False
    return args[0].shape == args[1].shape


def _parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return ()
