"""Try components on next to nothing, to hear what PyTorch has against them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unified.components import build_loss, build_lr_scheduler, build_optimizer, needs_metric
from unified.job_parts import LossSpec, LRSchedulerSpec, OptimizerSpec

Arguments = dict[str, Any]
Trial = Callable[[Arguments], None]  #: tries keyword arguments; raises if they are refused

#: What PyTorch's constructors and first steps are known to raise on values that they do not take.
REFUSALS = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)

_CLASS_INDEX_LOSSES = frozenset({"CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"})
_SOME_LENGTH = 100  #: stands in for the number of steps where only the data will tell
_MAX_WEIGHTS = 2**26


def refusal(trial: Trial, kwargs: Arguments) -> str | None:
    """Return the first line of what PyTorch says against these arguments, None if it takes them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial(kwargs)
    except REFUSALS as error:
        return f"{error}".strip().partition("\n")[0][:200] or type(error).__name__
    return None


def try_optimizer(name: str, kwargs: Arguments) -> None:
    """Build the optimizer for a two-by-two parameter (``Muon`` takes no other) and step it once."""
    parameter = nn.Parameter(torch.ones(2, 2, dtype=torch.float32))
    parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(OptimizerSpec(name=name, **kwargs), [parameter])
    if not kwargs.get("capturable"):  # for CUDA graphs: only steps on a GPU
        optimizer.step()


def try_lr_scheduler(optimizer: OptimizerSpec, total_steps: int | None, name: str, kwargs: Arguments) -> None:
    """Build the schedule for ``optimizer`` and step it twice, if it is to be stepped that often."""
    if total_steps is None and not {"total_steps", "epochs"} & kwargs.keys():
        total_steps = _SOME_LENGTH
    stepped = build_optimizer(optimizer, [nn.Parameter(torch.ones(2, 2, dtype=torch.float32))])
    scheduler = build_lr_scheduler(LRSchedulerSpec(name=name, **kwargs), stepped, total_steps=total_steps)
    assert scheduler is not None, "there is a spec"
    step: Callable[..., None] = scheduler.step
    for _ in range(min(2, total_steps or 2)):
        step(1.0) if needs_metric(scheduler) else step()


def try_loss(name: str, kwargs: Arguments) -> None:
    """Call the loss on two samples that fit its weights, and see that it gives one number."""
    loss = build_loss(LossSpec(name=name, **kwargs))
    weights = [getattr(loss, weight, None) for weight in ("weight", "pos_weight")]
    shapes = [weight.shape for weight in weights if isinstance(weight, Tensor)] or [(3,)]
    shape = (2, *torch.broadcast_shapes(*shapes))
    if math.prod(shape) > _MAX_WEIGHTS:
        raise ValueError(f"weights for {math.prod(shape)} values are too many to try")
    output = torch.full(shape, 0.5)
    target = torch.ones_like(output)
    if name in _CLASS_INDEX_LOSSES:
        target = torch.zeros(2, dtype=torch.long)
    elif name == "MultiLabelMarginLoss":
        target = target.long()
    value = loss(output, target)
    if value.ndim:
        raise ValueError("the loss is not one number; use reduction 'mean' or 'sum'")
