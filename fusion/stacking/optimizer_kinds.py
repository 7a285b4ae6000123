"""Which ordinary optimizers can be one vector optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fusion.stacking.vector_rules import RULES

FLAGS = ("nesterov", "maximize", "amsgrad", "centered", "decoupled_weight_decay")  # those that change what a step is
NUMBERS = ("lr", "momentum", "dampening", "betas", "eps", "weight_decay", "alpha", "lr_decay")


def refusal(optimizers: Sequence[torch.optim.Optimizer]) -> str | None:
    """Say why these members' optimizers cannot be one; None if they can.

    The flags `fused`, `foreach` and `capturable` may differ: they do not change what is computed.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        >>> refusal([torch.optim.SGD([weights[0]], lr=0.1), torch.optim.SGD([weights[1]], lr=0.2, momentum=0.9)])
        >>> refusal([torch.optim.SGD([weights[0]], lr=0.1), torch.optim.Adam([weights[1]])])
        'the optimizers are of different kinds: SGD and Adam'
    """
    if not optimizers:
        return "there is no optimizer"
    first = optimizers[0]
    for index, optimizer in enumerate(optimizers):
        if type(optimizer) is not type(first):
            return f"the optimizers are of different kinds: {type(first).__name__} and {type(optimizer).__name__}"
        for reason in (*_alone(optimizer), *_beside(first, optimizer)):
            return f"the optimizer of member {index} {reason}"
    return None


def _alone(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    groups = optimizer.param_groups
    if type(optimizer) not in RULES:
        yield f"is a {type(optimizer).__name__}; only {', '.join(kind.__name__ for kind in RULES)} can be stacked"
    if len(groups) != 1:
        yield f"has {len(groups)} parameter groups, expected one"
    if groups[0].get("differentiable"):
        yield "is differentiable"
    for name in NUMBERS:
        if _is_tensor(groups[0].get(name)):  # reading it at each step would wait for the device
            yield f"has a tensor as its {name}, expected a number"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        yield "has hooks on its steps, which would not be called"
    for parameter in groups[0]["params"]:
        if parameter.layout != torch.strided or parameter.dtype not in {torch.float32, torch.float64}:
            yield f"holds a parameter of {parameter.layout}, {parameter.dtype}; expected dense float32 or float64"


def _beside(first: torch.optim.Optimizer, other: torch.optim.Optimizer) -> Iterator[str]:
    if not first.param_groups or not other.param_groups:
        return
    expected, found = first.param_groups[0], other.param_groups[0]
    for flag in FLAGS:
        if expected.get(flag) != found.get(flag):
            yield f"has {flag}={found.get(flag)}, the first one {flag}={expected.get(flag)}"
    if [_form(parameter) for parameter in expected["params"]] != [_form(parameter) for parameter in found["params"]]:
        yield "holds parameters of other shapes, types or devices than the first one"


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value))


def _form(parameter: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return parameter.shape, parameter.dtype, parameter.device
