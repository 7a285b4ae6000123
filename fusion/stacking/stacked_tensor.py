"""One tensor for each member of a stack, seen by a model's own code as the tensor of a single member.

A model's ``forward`` runs once for all members: its parameters, buffers and activations are :class:`StackedTensor`, whose
shape is that of one member, and every operator on them goes to a rule (:mod:`fusion.stacking.dispatch`) that computes all
members' results. The values lie either in one tensor ``(members, ...)`` or in a list of one tensor per member, whichever the
last operator made; each form is made from the other when it is asked for. The memory layout of the one tensor is whatever the
last operator left (``(batch, members x channels, ...)`` behind a grouped convolution): elementwise operators keep it, so that
neighbours which like the same layout pass it on without a copy.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StackedTensor(torch.Tensor):
    """All members' values of one tensor; ``shape``, ``dtype`` and ``device`` are those of a single member.

    Attributes:
        is_aliased: Other tensors may lie in the same memory, so that a write in place must really be one.
        is_relaid: Memory is in another order than the member's own tensor would be alone (channels-last, by our choice).
    """

    _merged: Tensor | None
    _parts: list[Tensor] | None
    _copy: tuple[tuple[int, ...], Tensor] | None
    is_aliased: bool
    is_relaid: bool

    @staticmethod
    def _make(shape: Sequence[int], example: Tensor) -> StackedTensor:
        made = torch.Tensor._make_wrapper_subclass(StackedTensor, shape, dtype=example.dtype, device=example.device)
        made._copy = None
        made.is_aliased = made.is_relaid = False
        return made

    @classmethod
    def of(cls, merged: Tensor, *, is_relaid: bool = False) -> StackedTensor:
        """Return the stacked tensor of ``merged``, shape ``(members, ...)``; storage is shared."""
        made = cls._make(merged.shape[1:], merged)
        made._merged, made._parts, made.is_relaid = merged, None, is_relaid
        return made

    @classmethod
    def of_parts(cls, parts: list[Tensor]) -> StackedTensor:
        """Return the stacked tensor of one tensor per member, all of one shape and dtype; storage is shared."""
        made = cls._make(parts[0].shape, parts[0])
        made._merged, made._parts = None, parts
        return made

    def merged(self) -> Tensor:
        """Return all members' values, shape ``(members, ...)``."""
        if self._merged is not None:
            return self._merged
        assert self._parts is not None, "one of both is always there"
        if self.is_aliased:
            return self._copied(self._parts)
        with _history_kept():
            self._merged = torch.stack(self._parts)
        return self._merged

    def parts(self) -> list[Tensor]:
        """Return one tensor per member."""
        if self._parts is None:
            assert self._merged is not None, "one of both is always there"
            with _history_kept():  # unbind, not indexing: its gradient is one stack, not a sum of mostly empty tensors
                self._parts = list(self._merged.unbind(0))
        return self._parts

    def _copied(self, parts: list[Tensor]) -> Tensor:
        """Return values that lie apart in memory which others see, too, in one tensor; they go on lying apart."""
        if parts[0].is_inference():  # they keep no count of what is written to them
            return torch.stack(parts)
        versions = tuple(part._version for part in parts)
        if self._copy is None or self._copy[0] != versions:
            with _history_kept():
                self._copy = versions, torch.stack(parts)
        return self._copy[1]

    def close_up(self) -> None:
        """Let each member's values lie together, as they would alone; before anybody else sees the memory.

        Afterwards nobody could tell what is a view and what is a copy, or in which order random numbers were filled in.
        """
        if self._merged is None or self.is_aliased or not (self.is_relaid or self.is_in_order):
            return
        if not self.any_part().is_contiguous():
            with _history_kept():
                self.become(self._merged.contiguous())

    @property
    def is_split(self) -> bool:
        """Whether the values lie apart, one tensor per member."""
        return self._merged is None

    @property
    def num_members(self) -> int:
        """How many members there are."""
        return len(self._parts) if self._merged is None else self._merged.shape[0]  # type: ignore[arg-type]

    def become(self, merged: Tensor, *, is_relaid: bool = False) -> StackedTensor:
        """Let this tensor stand for other values of the same shape, as after a write in place, and return it."""
        self._merged, self._parts, self._copy, self.is_relaid = merged, None, None, is_relaid
        return self

    def become_parts(self, parts: list[Tensor]) -> StackedTensor:
        """As :meth:`become`, with one tensor per member."""
        self._merged, self._parts, self._copy, self.is_relaid = None, parts, None, False
        return self

    def any_values(self) -> Tensor:
        """Return some of the values as they lie: all members', or one's."""
        return self._parts[0] if self._merged is None else self._merged  # type: ignore[index]

    @property
    def is_in_order(self) -> bool:
        """Whether a member's dimensions lie in memory in their order, be there others' values in between or not."""
        strides = self.any_part().stride()
        return all(one >= other for one, other in itertools.pairwise(strides))

    def any_part(self) -> Tensor:
        """Return some member's tensor, detached, to ask for its dtype, strides and the like."""
        example = self._parts[0] if self._merged is None else self._merged  # type: ignore[index]
        return example.detach() if self._merged is None else example.detach()[0]

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]  # plain Python, where the base class would ask the rules
        """The shape of one member's tensor."""
        return self._parts[0].shape if self._merged is None else self._merged.shape[1:]  # type: ignore[index]

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The number of dimensions of one member's tensor."""
        return self._parts[0].dim() if self._merged is None else self._merged.dim() - 1  # type: ignore[index]

    def dim(self) -> int:
        """As :attr:`ndim`."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape of one member's tensor, or its length along ``dim``."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The members' dtype."""
        return (self._parts[0] if self._merged is None else self._merged).dtype  # type: ignore[index]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The members' device."""
        return (self._parts[0] if self._merged is None else self._merged).device  # type: ignore[index]

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]  # the wrapper itself has no gradient
        """Whether gradients flow through the members' values."""
        return (self._parts[0] if self._merged is None else self._merged).requires_grad  # type: ignore[index]

    def __repr__(self, **_: Any) -> str:
        """Say how many members of what shape."""
        return f"StackedTensor({self.num_members} members of {tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Refuse operators outside a stack's own context: nobody would know whose random numbers to draw."""
        name = getattr(func, "__name__", func)
        raise RuntimeError(f"{name} was called on a stacked tensor outside its stack; do it inside `with stack.running():`")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what slipped past the rules."""
        raise NotImplementedError(f"{func} was called on a stacked tensor behind the back of its rules")


def _history_kept() -> torch.enable_grad | contextlib.nullcontext[None]:
    """Return what makes the same values in another form have their gradients: also where none are recorded right now."""
    return contextlib.nullcontext() if torch.is_grad_enabled() or torch.is_inference_mode_enabled() else torch.enable_grad()


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors lie in the same memory."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
