"""What each kind of optimizer does to a stack of members: as vector arithmetic, and through PyTorch's fused kernels.

Vector arithmetic works on whole `(members, ...)` tensors, with each hyper-parameter as a `(members, 1, ...)` tensor. A fused
kernel takes one value of each hyper-parameter, so it is called for members that have equal ones. Both follow `torch.optim` of
PyTorch 2.11 and later; where a rounding differs from it, it is in the last digit of the tensors' own type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion.stacking.optimizer_rule import BUFFER, Coefficients, Costs, Flags, Group, Numbers, Pass, Reals, Rule

SGD_COSTS = Costs(start=20.0, parameter=5.0, element=5e-5)
ADAGRAD_COSTS = Costs(start=80.0, parameter=20.0, element=4e-4)
ADAM_COSTS = Costs(start=100.0, parameter=25.0, element=6e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdRule:
    """`torch.optim.SGD`."""

    nesterov: bool
    maximize: bool
    keys: tuple[str, ...] = (BUFFER,)
    counts_steps: bool = False
    costs: Costs | None = SGD_COSTS

    @classmethod
    def of(cls, group: Group) -> SgdRule:
        """Take the flags from a member's group."""
        return cls(nesterov=bool(group["nesterov"]), maximize=bool(group["maximize"]))

    def read(self, group: Group) -> Numbers:
        """Read a member's hyper-parameters."""
        return group["lr"], group["momentum"], group["dampening"], group["weight_decay"]  # pyrefly: ignore[bad-return]

    def buffering(self, numbers: Reals) -> Flags:
        """Say which members keep a momentum buffer."""
        return numbers[:, 1] != 0

    def coefficients(self, numbers: Reals, steps: Reals) -> dict[str, Reals]:
        """Give what `vector` multiplies with."""
        rate, momentum, dampening, decay = numbers.T
        return {"rate": -rate} | _present(decay=decay, momentum=momentum) | ({"keep": 1 - dampening} if dampening.any() else {})

    def vector(self, tensors: Pass, by: Coefficients) -> None:
        """Step members of different hyper-parameters."""
        grads = _descent(tensors, by, maximize=self.maximize)
        if "momentum" in by:
            buffers = tensors.state[BUFFER]
            _accumulate(buffers, grads, by, is_first=tensors.is_first)
            grads = list(torch._foreach_addcmul(grads, buffers, by["momentum"])) if self.nesterov else buffers
        torch._foreach_addcmul_(tensors.values, grads, by["rate"])

    def fused(self, tensors: Pass, numbers: Numbers, step: Tensor) -> None:
        """Step members of equal hyper-parameters."""
        rate, momentum, dampening, decay = numbers
        torch._fused_sgd_(
            tensors.values,
            tensors.grads,
            tensors.state[BUFFER] if momentum else [],
            weight_decay=decay,
            momentum=momentum,
            lr=rate,
            dampening=dampening,
            nesterov=self.nesterov,
            maximize=self.maximize,
            is_first_step=tensors.is_first,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamRule:
    """`torch.optim.Adam`, and `torch.optim.AdamW`, whose weight decay is decoupled."""

    amsgrad: bool
    maximize: bool
    decoupled: bool
    keys: tuple[str, ...]
    counts_steps: bool = True
    costs: Costs | None = ADAM_COSTS

    @classmethod
    def of(cls, group: Group) -> AdamRule:
        """Take the flags from a member's group."""
        amsgrad, keys = bool(group["amsgrad"]), ("exp_avg", "exp_avg_sq")
        return cls(
            amsgrad=amsgrad,
            maximize=bool(group["maximize"]),
            decoupled=bool(group["decoupled_weight_decay"]),
            keys=(*keys, "max_exp_avg_sq") if amsgrad else keys,
        )

    def read(self, group: Group) -> Numbers:
        """Read a member's hyper-parameters."""
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]  # pyrefly: ignore[bad-return, not-iterable]

    def buffering(self, numbers: Reals) -> Flags:
        """Say which members keep a momentum buffer."""
        return np.zeros(len(numbers), dtype=np.bool_)

    def coefficients(self, numbers: Reals, steps: Reals) -> dict[str, Reals]:
        """Correct the bias in rate and eps, which are smaller than the tensors to be corrected."""
        rate, beta1, beta2, eps, decay = numbers.T
        root = np.sqrt(1 - beta2**steps)
        named = {"rate": rate * root / (1 - beta1**steps), "eps": eps * root}
        named |= {"fresh": 1 - beta1, "keep_square": beta2, "fresh_square": 1 - beta2}
        if self.decoupled:
            return named | ({"shrink": 1 - rate * decay} if decay.any() else {})
        return named | _present(decay=decay)

    def vector(self, tensors: Pass, by: Coefficients) -> None:
        """Step members of different hyper-parameters."""
        grads, state = _descent(tensors, by, maximize=self.maximize), tensors.state
        if "shrink" in by:
            torch._foreach_mul_(tensors.values, by["shrink"])
        torch._foreach_lerp_(state["exp_avg"], grads, by["fresh"])
        _average_square(state["exp_avg_sq"], grads, by)
        if self.amsgrad:
            torch._foreach_maximum_(state["max_exp_avg_sq"], state["exp_avg_sq"])
        scale = list(torch._foreach_sqrt(state["max_exp_avg_sq" if self.amsgrad else "exp_avg_sq"]))
        torch._foreach_add_(scale, by["eps"])
        torch._foreach_addcdiv_(tensors.values, torch._foreach_mul(state["exp_avg"], by["rate"]), scale, value=-1)

    def fused(self, tensors: Pass, numbers: Numbers, step: Tensor) -> None:
        """Step members of equal hyper-parameters."""
        rate, beta1, beta2, eps, decay = numbers
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        kernel(
            tensors.values,
            tensors.grads,
            tensors.state["exp_avg"],
            tensors.state["exp_avg_sq"],
            tensors.state["max_exp_avg_sq"] if self.amsgrad else [],
            [step] * len(tensors.values),
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=self.amsgrad,
            maximize=self.maximize,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RmspropRule:
    """`torch.optim.RMSprop`, which has no fused kernel."""

    centered: bool
    maximize: bool
    keys: tuple[str, ...]
    counts_steps: bool = True
    costs: Costs | None = None

    @classmethod
    def of(cls, group: Group) -> RmspropRule:
        """Take the flags from a member's group."""
        centered, keys = bool(group["centered"]), ("square_avg", BUFFER)
        return cls(centered=centered, maximize=bool(group["maximize"]), keys=(*keys, "grad_avg") if centered else keys)

    def read(self, group: Group) -> Numbers:
        """Read a member's hyper-parameters."""
        return group["lr"], group["momentum"], group["alpha"], group["eps"], group["weight_decay"]  # pyrefly: ignore[bad-return]

    def buffering(self, numbers: Reals) -> Flags:
        """Say which members keep a momentum buffer."""
        return numbers[:, 1] != 0

    def coefficients(self, numbers: Reals, steps: Reals) -> dict[str, Reals]:
        """Give what `vector` multiplies with."""
        rate, momentum, alpha, eps, decay = numbers.T
        named = {"rate": -rate, "eps": eps, "keep_square": alpha, "fresh_square": 1 - alpha}
        return named | _present(momentum=momentum, decay=decay)

    def vector(self, tensors: Pass, by: Coefficients) -> None:
        """Step members of different hyper-parameters."""
        grads, state = _descent(tensors, by, maximize=self.maximize), tensors.state
        squares = state["square_avg"]
        _average_square(squares, grads, by)
        if self.centered:
            means = state["grad_avg"]
            torch._foreach_lerp_(means, grads, by["fresh_square"])
            squares = list(torch._foreach_addcmul(squares, means, means, value=-1))
        scale = list(torch._foreach_sqrt(squares))
        torch._foreach_add_(scale, by["eps"])
        if "momentum" in by:
            torch._foreach_mul_(state[BUFFER], by["momentum"])
            torch._foreach_addcdiv_(state[BUFFER], grads, scale)
            torch._foreach_addcmul_(tensors.values, state[BUFFER], by["rate"])
        else:
            torch._foreach_addcdiv_(tensors.values, torch._foreach_mul(grads, by["rate"]), scale)

    def fused(self, tensors: Pass, numbers: Numbers, step: Tensor) -> None:
        """Step members of equal hyper-parameters."""
        raise NotImplementedError("PyTorch has no fused kernel for RMSprop")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdagradRule:
    """`torch.optim.Adagrad`."""

    maximize: bool
    keys: tuple[str, ...] = ("sum",)
    counts_steps: bool = True
    costs: Costs | None = ADAGRAD_COSTS

    @classmethod
    def of(cls, group: Group) -> AdagradRule:
        """Take the flags from a member's group."""
        return cls(maximize=bool(group["maximize"]))

    def read(self, group: Group) -> Numbers:
        """Read a member's hyper-parameters."""
        return group["lr"], group["lr_decay"], group["eps"], group["weight_decay"]  # pyrefly: ignore[bad-return]

    def buffering(self, numbers: Reals) -> Flags:
        """Say which members keep a momentum buffer."""
        return np.zeros(len(numbers), dtype=np.bool_)

    def coefficients(self, numbers: Reals, steps: Reals) -> dict[str, Reals]:
        """Give what `vector` multiplies with."""
        rate, rate_decay, eps, decay = numbers.T
        return {"rate": -rate / (1 + (steps - 1) * rate_decay), "eps": eps} | _present(decay=decay)

    def vector(self, tensors: Pass, by: Coefficients) -> None:
        """Step members of different hyper-parameters."""
        grads, sums = _descent(tensors, by, maximize=self.maximize), tensors.state["sum"]
        torch._foreach_addcmul_(sums, grads, grads)
        scale = list(torch._foreach_sqrt(sums))
        torch._foreach_add_(scale, by["eps"])
        torch._foreach_addcdiv_(tensors.values, torch._foreach_mul(grads, by["rate"]), scale)

    def fused(self, tensors: Pass, numbers: Numbers, step: Tensor) -> None:
        """Step members of equal hyper-parameters."""
        rate, rate_decay, eps, decay = numbers
        torch._fused_adagrad_(
            tensors.values,
            tensors.grads,
            tensors.state["sum"],
            [step] * len(tensors.values),
            lr=rate,
            lr_decay=rate_decay,
            weight_decay=decay,
            eps=eps,
            maximize=self.maximize,
        )


RULES: Mapping[type[torch.optim.Optimizer], Callable[[Group], Rule]] = {
    torch.optim.SGD: SgdRule.of,
    torch.optim.Adam: AdamRule.of,
    torch.optim.AdamW: AdamRule.of,
    torch.optim.RMSprop: RmspropRule.of,
    torch.optim.Adagrad: AdagradRule.of,
}


def _present(**coefficients: Reals) -> dict[str, Reals]:
    return {name: values for name, values in coefficients.items() if values.any()}


def _descent(tensors: Pass, by: Coefficients, *, maximize: bool) -> list[Tensor]:
    """Give the gradients to go down, with the penalty of weight decay; the gradients themselves, where these are the same."""
    grads = list(torch._foreach_neg(tensors.grads)) if maximize else tensors.grads
    return list(torch._foreach_addcmul(grads, tensors.values, by["decay"])) if "decay" in by else grads


def _accumulate(buffers: list[Tensor], grads: list[Tensor], by: Coefficients, *, is_first: bool) -> None:
    if is_first:
        torch._foreach_copy_(buffers, grads)
        return
    torch._foreach_mul_(buffers, by["momentum"])
    if "keep" in by:
        torch._foreach_addcmul_(buffers, grads, by["keep"])
    else:
        torch._foreach_add_(buffers, grads)


def _average_square(squares: list[Tensor], grads: list[Tensor], by: Coefficients) -> None:
    """Move averages towards the squares; not as a difference, which is not a number once a square is infinite."""
    torch._foreach_mul_(squares, by["keep_square"])
    torch._foreach_addcmul_(squares, torch._foreach_mul(grads, by["fresh_square"]), grads)
