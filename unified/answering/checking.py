"""How far a stack's answers are from each model's own, and how long both take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fusion.stacking.answering import simple
from fusion.timer import Timing, time_interleaved
from unified.errors import UnifiedError

#: How far answers may be apart, over the largest of them. A number is rounded to 6e-8 of itself in float32.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
_COARSE = 2e-2  #: of half precision
_MAX_SECONDS = 3.0


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tensor, positional inputs or named ones."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def largest_difference(together: Any, alone: Sequence[Any]) -> tuple[float, float, torch.dtype]:
    """Compare answers of all members at once with those of each alone.

    Returns:
        The largest difference; the same over the largest absolute value of the tensor that it is in, in all members; the
        dtype of that tensor.

    Raises:
        UnifiedError: If they differ in structure or shape.
    """
    found, structure = pytree.tree_flatten(together)
    wanted = [pytree.tree_flatten(simple(answer)) for answer in alone]
    if any(each[1] != structure for each in wanted):
        raise UnifiedError(f"the stack answers with {structure}, a model alone with {wanted[0][1]}")
    worst = (0.0, 0.0, torch.float32)
    for position, value in enumerate(found):
        if isinstance(value, Tensor):
            own = torch.stack([leaves[position].detach() for leaves, _ in wanted])
            worst = max(worst, _difference(value.detach(), own), key=lambda each: each[1] / tolerance(each[2]))
    return worst


def tolerance(dtype: torch.dtype) -> float:
    """Return how far answers of a dtype may be apart, over the largest of them."""
    return TOLERANCES.get(dtype, _COARSE if dtype.is_floating_point else 1e-12)


def time_both(module: nn.Module, inputs: Any, models: Sequence[nn.Module], apart: Sequence[Any]) -> tuple[Timing, Timing]:
    """Return what all at once takes, and one model after another, measured in turns."""

    def one_after_another() -> None:
        for model, own in zip(models, apart, strict=True):
            call(model, own)

    functions: list[Callable[[], object]] = [lambda: call(module, inputs), one_after_another]
    device = next((value.device for value in pytree.tree_leaves(inputs)), torch.device("cpu"))
    together, alone = time_interleaved(functions, max_seconds=_MAX_SECONDS, device=device)
    return together, alone


def _difference(found: Tensor, own: Tensor) -> tuple[float, float, torch.dtype]:
    if found.shape != own.shape or found.dtype != own.dtype:
        raise UnifiedError(
            f"the stack answers with {found.dtype} {tuple(found.shape)}, models alone with {own.dtype} {tuple(own.shape)}"
        )
    if not own.numel():
        return 0.0, 0.0, own.dtype
    one, other = found.double(), own.double()
    equal = (one == other) | (one.isnan() & other.isnan())
    largest = float(torch.where(equal, 0.0, (one - other).abs()).nan_to_num(nan=float("inf")).max())
    scale = float(other[other.isfinite()].abs().max()) if bool(other.isfinite().any()) else 0.0
    return largest, largest / scale if scale else largest, own.dtype
