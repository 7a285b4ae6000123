"""What cannot be one vector optimizer, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

from fusion.stacking.stacked_parameter import StackedParameter
from fusion.stacking.vector_optimizer import VectorOptimizer, refusal


def weight(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, dtype=dtype))]


REFUSED: dict[str, tuple[str, Callable[[], list[optim.Optimizer]]]] = {
    "none": ("no optimizer", list),
    "kinds": ("different kinds: SGD and Adam", lambda: [optim.SGD(weight()), optim.Adam(weight())]),
    "adam and adamw": ("different kinds", lambda: [optim.AdamW(weight()), optim.Adam(weight(), decoupled_weight_decay=True)]),
    "unsupported": ("member 0 is a NAdam", lambda: [optim.NAdam(weight())]),
    "groups": ("2 parameter groups", lambda: [optim.SGD([{"params": weight()}, {"params": weight()}], lr=0.1)]),
    "differentiable": ("member 1 is diff", lambda: [optim.SGD(weight()), optim.SGD(weight(), differentiable=True)]),
    "nesterov": (
        "nesterov=True",
        lambda: [optim.SGD(weight(), momentum=0.9), optim.SGD(weight(), momentum=0.9, nesterov=True)],
    ),
    "amsgrad": ("amsgrad=False", lambda: [optim.Adam(weight(), amsgrad=True), optim.Adam(weight())]),
    "decoupled": ("decoupled_weight_", lambda: [optim.Adam(weight()), optim.Adam(weight(), decoupled_weight_decay=True)]),
    "centered": ("centered=True", lambda: [optim.RMSprop(weight()), optim.RMSprop(weight(), centered=True)]),
    "maximize": ("maximize=True", lambda: [optim.Adagrad(weight()), optim.Adagrad(weight(), maximize=True)]),
    "tensor rate": ("a tensor as its lr", lambda: [optim.SGD(weight(), lr=torch.tensor(0.1))]),
    "half": ("torch.bfloat16", lambda: [optim.SGD(weight(torch.bfloat16))]),
    "types": ("other shapes, types", lambda: [optim.SGD(weight()), optim.SGD(weight(torch.float32))]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_optimizers_that_cannot_be_one_are_refused_with_the_reason(case: str) -> None:
    reason, make = REFUSED[case]
    optimizers = make()
    assert reason in (refusal(optimizers) or "")
    parameter = StackedParameter(name="weight", tensor=nn.Parameter(torch.zeros(len(optimizers), 2, dtype=torch.float64)))
    with pytest.raises(ValueError, match=reason):
        VectorOptimizer([parameter], optimizers)


def test_hooks_on_steps_are_refused() -> None:
    hooked = optim.SGD(weight())
    hooked.register_step_post_hook(lambda *_: None)
    assert "hooks" in (refusal([hooked]) or "")


def test_flags_that_change_no_number_are_accepted() -> None:
    assert refusal([optim.Adam(weight()), optim.Adam(weight(), fused=True), optim.Adam(weight(), foreach=True, lr=0.5)]) is None


def test_a_stack_of_other_shapes_is_refused_and_joining_changes_nothing_then() -> None:
    parameter = StackedParameter(name="weight", tensor=nn.Parameter(torch.zeros(1, 3, dtype=torch.float64)))
    with pytest.raises(
        ValueError, match=r"'weight' is torch.float64 \(1, 3\), expected 1 members' values of torch.float64 \(2,\)"
    ):
        VectorOptimizer([parameter], [optim.SGD(weight())])
    with pytest.raises(ValueError, match="hold 1 parameters, the stack 2"):
        VectorOptimizer([parameter, parameter], [optim.SGD(weight())])
    parameter.tensor = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    optimizer = VectorOptimizer([parameter], [optim.SGD(weight(), lr=1.0)])
    with pytest.raises(ValueError, match="different kinds"):
        optimizer.join([optim.Adam(weight())])
    parameter.tensor.grad = torch.ones(1, 2, dtype=torch.float64)
    optimizer.step()
    assert parameter.tensor.tolist() == [[-1.0, -1.0]]


def test_without_any_gradient_nothing_is_stepped_or_clipped() -> None:
    parameter = StackedParameter(name="weight", tensor=nn.Parameter(torch.ones(1, 2, dtype=torch.float64)))
    own = optim.Adam(weight())
    optimizer = VectorOptimizer([parameter], [own])
    optimizer.clip_([1.0])
    optimizer.step()
    optimizer.write_back(0)
    assert parameter.tensor.tolist() == [[1.0, 1.0]]
    assert not own.state
