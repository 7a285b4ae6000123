"""Products with a weight of each member's own: batched over the members (NetFuse's ``linear`` -> ``bmm``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import Rule, StackMode
from fusion.stacking.rules_pointwise import aligned
from fusion.stacking.stacked_tensor import StackedTensor


def _linear(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    x, weight = args[0], argument(args, kwargs, 1, "weight")
    bias = argument(args, kwargs, 2, "bias", default=None)
    if type(weight) is not StackedTensor and type(bias) is not StackedTensor:
        return StackedTensor.of(F.linear(x.merged(), weight, bias))
    if type(weight) is not StackedTensor or (bias is not None and type(bias) is not StackedTensor):
        return mode.each(func, args, kwargs)
    matrices = weight.merged().transpose(1, 2)  # (members, in, out): contiguous, for that is how linear weights are kept
    if type(x) is not StackedTensor:
        rows = x.reshape(1, -1, x.shape[-1]).expand(mode.num_members, -1, -1)
    else:
        merged = x.merged()
        rows = merged if merged.dim() == 3 else merged.reshape(mode.num_members, -1, merged.shape[-1])
    product = torch.bmm(rows, matrices) if bias is None else torch.baddbmm(bias.merged().unsqueeze(1), rows, matrices)
    if x.dim() == 2:
        return StackedTensor.of(product)
    return StackedTensor.of(product.view(mode.num_members, *x.shape[:-1], product.shape[-1]))


def _matmul(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return StackedTensor.of(_product(args[0], argument(args, kwargs, 1, "other", "mat2", "tensor2", "vec", "tensor")))


def _rmatmul(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return StackedTensor.of(_product(args[1], args[0]))


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Return ``one @ other`` of all members."""
    if one.dim() >= 3 and other.dim() == 2 and type(one) is StackedTensor and type(other) is StackedTensor:
        rows = one.merged().reshape(one.num_members, -1, one.shape[-1])
        return torch.bmm(rows, other.merged()).view(one.num_members, *one.shape[:-1], other.shape[-1])
    left, right = _matrix(one, at=-2), _matrix(other, at=-1)
    ndim = max(left.dim() - (type(one) is StackedTensor), right.dim() - (type(other) is StackedTensor))
    product = torch.matmul(_raised(left, ndim, one), _raised(right, ndim, other))
    if one.dim() == 1:
        product = product.squeeze(-2)
    return product.squeeze(-1) if other.dim() == 1 else product


def _matrix(value: Tensor, *, at: int) -> Tensor:
    """Return all members' values, a vector as a matrix of one row or column."""
    merged = value.merged() if type(value) is StackedTensor else value
    return merged.unsqueeze(at) if value.dim() == 1 else merged


def _raised(values: Tensor, ndim: int, original: Tensor) -> Tensor:
    """Insert dimensions behind the members' until each member's part has ``ndim``."""
    if type(original) is not StackedTensor:
        return values
    missing = ndim + 1 - values.dim()
    return values.reshape(values.shape[0], *[1] * missing, *values.shape[1:]) if missing else values


def _addmm(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """``addmm``, ``baddbmm``, ``addmv``: beta x input + alpha x product."""
    start, one, other = args[0], args[1], args[2]
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    if one.dim() == 2 and all(type(each) is StackedTensor for each in (start, one, other)) and start.dim() in (1, 2):
        added = start.merged() if start.dim() == 2 else start.merged().unsqueeze(1)
        if other.dim() == 2:
            return StackedTensor.of(torch.baddbmm(added, one.merged(), other.merged(), beta=beta, alpha=alpha))
    if not any(type(each) is StackedTensor for each in (one, other)):
        product = torch.matmul(one, other)
        return StackedTensor.of(beta * aligned(start, product.dim()) + alpha * product)
    product = _product(one, other)
    return StackedTensor.of(beta * aligned(start, product.dim() - 1) + alpha * product)


def _einsum(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Give the members a letter of their own."""
    equation = args[0]
    operands = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
    free = [letter for letter in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if letter not in equation]
    if not isinstance(equation, str) or not free:
        return mode.each(func, args, kwargs)
    sides = equation.replace(" ", "").split("->")
    terms = [
        free[0] + term if type(each) is StackedTensor else term
        for term, each in zip(sides[0].split(","), operands, strict=True)
    ]
    if len(sides) == 1:  # the letters that stand once, in order of the alphabet
        letters = sides[0].replace(",", "")
        single = sorted(letter for letter in set(letters) - {"."} if letters.count(letter) == 1)
        sides.append(("..." if "..." in letters else "") + "".join(single))
    merged = [each.merged() if type(each) is StackedTensor else each for each in operands]
    return StackedTensor.of(torch.einsum(f"{','.join(terms)}->{free[0]}{sides[1]}", *merged))


RULES: dict[str, Rule] = {
    "linear": _linear, "matmul": _matmul, "rmatmul": _rmatmul, "mm": _matmul, "bmm": _matmul, "mv": _matmul, "dot": _matmul,
    "addmm": _addmm, "baddbmm": _addmm, "addmv": _addmm, "einsum": _einsum,
}  # fmt: skip
