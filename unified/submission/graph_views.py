"""Tensors and their views while a graph is walked, and how each kind of view is undone.

To undo a view is to find, given its new content, the new content of what it is a view of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from unified.submission.umodel_format import AutocastRecord

#: Appends a node (operator, arguments, keyword arguments) and returns the reference to its result.
Emit = Callable[[str, tuple, Mapping[str, Any]], Any]

_REMEDY = "assign the result instead of writing in place, for example x = x * 2 instead of x *= 2"

#: In-place operators whose counterpart is called otherwise.
_COUNTERPARTS = {
    "aten.bernoulli_.float": "aten.bernoulli.p",
    "aten.normal_.default": "aten.normal_functional.default",
    "aten.__iand__.Tensor": "aten.bitwise_and.Tensor",
    "aten.__ior__.Tensor": "aten.bitwise_or.Tensor",
    "aten.__ixor__.Tensor": "aten.bitwise_xor.Tensor",
}

_SCATTERS = {
    "aten.select.int": "aten.select_scatter.default",
    "aten.slice.Tensor": "aten.slice_scatter.default",
    "aten.diagonal.default": "aten.diagonal_scatter.default",
}
_RESHAPES = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "unsqueeze",
        "squeeze",
        "view_as",
        "reshape_as",
        "_unsafe_view",
        "ravel",
    }
)
_OWN_INVERSES = frozenset({"transpose", "t", "mT", "mH", "numpy_T", "adjoint", "swapaxes", "swapdims", "matrix_H"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The regions a node stands in."""

    grad: bool | None = None
    autocast: AutocastRecord | None = None


@dataclass(slots=True, kw_only=True)
class Memory:
    """What several tensors may share. ``version`` counts the writes."""

    kind: Literal["parameter", "buffer", "constant", "input", "fresh"]
    name: str = ""
    version: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Value:
    """A tensor (or several, of ``split`` and the like) while the graph is walked.

    Attributes:
        reference: Where its current content is.
        memory: The memory it lives in.
        fake: The fake tensor it was traced with.
        parent: What it is a view of, if it is one.
        call: How the view was taken: operator, arguments, keyword arguments, scope.
        version: The version of the memory that ``reference`` shows.
    """

    reference: Any
    memory: Memory
    fake: Any
    parent: Value | None = None
    call: tuple[str, tuple, dict[str, Any], Scope] = ("", (), {}, Scope())
    version: int = 0


def functional_name(overload: torch._ops.OpOverload) -> str:
    """Return the name of the operator that computes what ``overload`` writes in place."""
    name = str(overload)
    if name in _COUNTERPARTS:
        return _COUNTERPARTS[name]
    _, base, variant = name.split(".", 2)
    if _takes_out(overload):
        variant = _variant_without_out(overload)
    return f"aten.{base.removesuffix('_')}.{variant}"


def _takes_out(overload: torch._ops.OpOverload) -> bool:
    return any(argument.name == "out" for argument in overload._schema.arguments)


def _variant_without_out(overload: torch._ops.OpOverload) -> str:
    """Return the overload that takes the same arguments and returns a new tensor."""

    def signature(each: torch._ops.OpOverload) -> list[tuple[str, str]]:
        return [(a.name, str(a.real_type)) for a in each._schema.arguments if a.name != "out"]

    packet = overload._overloadpacket
    for variant in packet.overloads():
        other = getattr(packet, variant)
        if not _takes_out(other) and signature(other) == signature(overload):
            return variant
    return overload._overloadname


def undo_view(view: Value, content: Any, read: Callable[[Value], Any], emit: Emit) -> tuple[Value, Any]:
    """Return what ``view`` is taken from and its new content, when the view's becomes ``content``.

    Args:
        view: A view.
        content: A reference to its new content.
        read: Returns a reference to the current content of a value.
        emit: Appends a node (operator, arguments, keyword arguments) and returns the reference to its result.

    Raises:
        NotImplementedError: If this kind of view cannot be undone.
    """
    whole = view.parent
    assert whole is not None, "only views are undone"
    name, args, kwargs, _ = view.call
    base = name.split(".")[1]
    if base == "getitem":
        return _undo_split(view, content, read, emit)
    if _same_layout(view.fake, whole.fake):
        return whole, content
    old = read(whole)
    if base in _RESHAPES:
        return whole, emit("aten.reshape_as.default", (content, old), {})
    if base in _OWN_INVERSES:
        return whole, emit(name, (content, *args[1:]), kwargs)
    if base == "permute":
        order = [dim % len(args[1]) for dim in args[1]]
        inverse = [order.index(dim) for dim in range(len(order))]
        return whole, emit(name, (content, inverse), {})
    if name in _SCATTERS:
        return whole, emit(_SCATTERS[name], (old, content, *args[1:]), kwargs)
    raise NotImplementedError(f"forward writes in place through a view made by {name}; {_REMEDY}")


def _undo_split(view: Value, content: Any, read: Callable[[Value], Any], emit: Emit) -> tuple[Value, Any]:
    """Put one part of a split or unbound tensor in its place among the others."""
    parts = view.parent
    assert parts is not None
    whole = parts.parent
    assert whole is not None
    name, args, kwargs, _ = parts.call
    base = name.split(".")[1]
    if base not in {"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}:
        raise NotImplementedError(f"forward writes in place through a view made by {name}; {_REMEDY}")
    dim = kwargs.get("dim", args[-1] if len(args) == (2 if base == "unbind" else 3) else 0)
    index = view.call[1][1] % len(parts.fake)
    every = [content if i == index else emit("py.getitem", (read(parts), i), {}) for i in range(len(parts.fake))]
    joined = "aten.stack.default" if base == "unbind" else "aten.cat.default"
    return whole, emit(joined, (every, dim), {})


def _same_layout(one: Any, other: Any) -> bool:
    """Whether two fake tensors show the same memory the same way."""
    if one.ndim != other.ndim:
        return False
    if one.stride() != other.stride() or one.storage_offset() != other.storage_offset():
        return False
    return bool(one.shape == other.shape)
