"""Elementwise operators, writes in place, and reading values: what models write, for :mod:`tests.unit.stacked_calls`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.unit.stacked_calls import Case, case, inner, numbers, positive, real, truths

UNARY = (
    torch.abs, torch.neg, torch.exp, torch.sin, torch.tanh, torch.sigmoid, torch.erf, torch.square, torch.sign, torch.floor,
    torch.relu, torch.isnan, torch.isfinite, torch.positive, torch.nan_to_num, torch.expm1, torch.atan, torch.round,
    torch.zeros_like, torch.ones_like, torch.clone, torch.detach, torch.logical_not, torch.absolute, torch.negative,
    F.relu6, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.tanhshrink, F.hardshrink,
    F.softshrink, F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.leaky_relu,
)  # fmt: skip
OF_POSITIVE = (torch.log, torch.sqrt, torch.rsqrt, torch.reciprocal, torch.log1p, torch.lgamma, torch.digamma)
BINARY = (
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.eq, torch.ne, torch.lt,
    torch.le, torch.gt, torch.ge, torch.true_divide, torch.multiply, torch.subtract, torch.divide, torch.fmax, torch.fmin,
    torch.copysign, torch.hypot, torch.remainder, torch.fmod, torch.float_power, torch.rsub,
)  # fmt: skip
IN_PLACE = ("add_", "sub_", "mul_", "div_", "copy_")
ATEN = torch.ops.aten


def _operators(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (
        x + y,
        x - y,
        x * y,
        x / y,
        -x,
        abs(x),
        x**2,
        2**x,
        1 - x,
        1 / y,
        x % 2,
        x.detach() // 2,
        x > y,
        x == y,
        x != y,
        x <= 0,
        +x,
    )


def _bits(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x & y, x | y, x ^ y, ~x, x & True, torch.logical_and(x, y), torch.logical_or(x, y), torch.logical_xor(x, y)


def _types(x: Tensor) -> tuple[Tensor, ...]:
    as_method = x.float(), x.double(), x.half(), x.bfloat16(), x.int(), x.long(), x.bool(), x.to(torch.float32)
    return (
        *as_method,
        x.type(torch.float32),
        x.to("cpu"),
        x.to(x.device, torch.float32),
        x.type_as(x.float()),
        x.to(x.float()),
    )


def _fresh(name: str, value: Any = None) -> Callable[..., Tensor]:
    """Write into a tensor that nobody else sees."""

    def function(x: Tensor, *others: Tensor) -> Tensor:
        made = x * 1
        getattr(made, name)(*others, *(() if value is None else (value,)))
        return made * 2

    return function


def _through_view(name: str, value: Any = None) -> Callable[..., Tensor]:
    """Write into a view; its base must show it."""

    def function(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        base = x * 1
        view = base[:, 1:3].transpose(0, 1)
        getattr(view, name)(*others, *(() if value is None else (value,)))
        return base * 2, view * 3

    return function


def _behind_view(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A view taken before its base is written shows the write."""
    base = x * 1
    view = base.flatten()
    base += y
    return base * 1, view * 1


def _augmented(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1
    x += y
    x -= 0.5
    x *= y
    x /= 2.0
    return x


def _residual(x: Tensor, y: Tensor) -> Tensor:
    out = F.relu(x * 2, inplace=True) * 3
    out += y
    return F.leaky_relu_(out * 1, 0.1) + F.elu(out * 1, inplace=True) + F.hardtanh(out * 1, inplace=True)


def _no_grad_write(x: Tensor, y: Tensor) -> Tensor:
    state = torch.zeros_like(x)
    with torch.no_grad():
        state.mul_(0.9).add_(y, alpha=0.1)
        state.copy_(state + y)
    return x * state


def _written_behind_gradients(x: Tensor, y: Tensor) -> Tensor:
    """What is written where no gradients are recorded changes the values and not the history."""
    out, other = x * 2, y * 3
    with torch.no_grad():
        out.clamp_(min=0.1)
        F.relu(other, inplace=True)
        other[0] = 2.0
    return out * other


def _detached_write(x: Tensor) -> tuple[Tensor, Tensor]:
    base = x * 1
    base.detach().mul_(2)
    return base.detach() * 1, x * 1


def _looked_at_first(x: Tensor, w: Tensor) -> Tensor:
    """Values asked for where no gradients are recorded have gradients where they are."""
    with torch.no_grad():
        scale = (x @ w).abs().amax(-1, keepdim=True) + torch.stack([part.sum() for part in w.unbind(0)]).abs()
    return (x @ w) / scale


def _contiguous_copy(x: Tensor) -> tuple[Tensor, ...]:
    base = x * 1
    copied = base.transpose(0, 1).contiguous()
    copied += 1
    other = x * 1
    itself = other.contiguous()
    itself *= 2
    return base * 1, copied, other * 1


def _conversions_that_are_none(x: Tensor) -> tuple[Tensor, ...]:
    """PyTorch gives the tensor itself where there is nothing to convert."""
    base = x * 1
    base.double().add_(1)
    base.to(torch.float64).mul_(2)
    base.to("cpu").sub_(0.5)
    copied = base.to(torch.float64, copy=True)
    copied.zero_()
    return base * 1, copied


def _two_views(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    base = x * 1
    rows, columns = base.view(12), base.t()
    product = columns + columns[0]
    rows[2:6] = 0.5
    columns += y.unsqueeze(1)
    return base * 1, rows * 1, columns * 1, product


def _filled(x: Tensor) -> tuple[Tensor, ...]:
    return (
        x.clone().fill_(3.0),
        x.clone().zero_(),
        torch.full_like(x, 2.0),
        x.new_zeros(2, 3),
        x.new_ones((2,)),
        x.new_full((3,), 4.0),
    )


def _written_new(x: Tensor) -> Tensor:
    state = x.new_zeros(x.shape)
    state[0] = x[0]
    state[:, 1] += 1
    return state * x


def _clamped(x: Tensor, low: Tensor) -> tuple[Tensor, ...]:
    return (
        x.clamp(-0.5, 0.5),
        torch.clamp(x, min=0.0),
        x.clamp(max=0.3),
        x.clamp_min(0.1),
        torch.clamp(x, low),
        x.clip(-1.0, 2.0),
    )


def _questions(x: Tensor) -> Tensor:
    assert x.is_floating_point()
    assert not x.is_complex()
    assert not x.is_cuda
    assert (x.dim(), x.ndim, x.numel(), len(x)) == (2, 2, 12, 3)
    assert (x.size(), x.size(0), x.size(-1)) == ((3, 4), 3, 4)
    assert x.layout == torch.strided
    assert x.element_size() == 8
    assert x.is_contiguous()
    assert not x.transpose(0, 1).is_contiguous() or x.transpose(0, 1).reshape(-1).shape == (12,)
    assert x.get_device() == -1
    assert x.nelement() == 12
    assert torch.is_tensor(x)
    assert not torch.is_complex(x)
    rows, columns = x.shape
    return x * rows + columns


CASES: dict[str, Case] = (
    {f"{each.__name__}": case(lambda x, each=each: each(x), real(3, 4)) for each in UNARY}
    | {f"{each.__name__} of positive": case(each, positive(3, 4)) for each in OF_POSITIVE}
    | {f"{each.__name__} 2-2": case(each, positive(3, 4), positive(3, 4)) for each in BINARY}
    | {f"{each.__name__} 3-1": case(each, positive(2, 3, 4), positive(4)) for each in BINARY[:6]}
    | {f"{each.__name__} 0-2": case(each, positive(), positive(3, 4)) for each in BINARY[:6]}
    | {f"{each.__name__} 1-3": case(each, positive(4), positive(2, 1, 4)) for each in BINARY[:6]}
    | {f"{name} fresh": case(_fresh(name), real(3, 4), positive(4), owned=(0,)) for name in IN_PLACE}
    | {f"{name} on a view": case(_through_view(name), real(3, 4), positive(2, 3), owned=(0,)) for name in IN_PLACE}
    | {f"{name} fresh": case(_fresh(name), real(3, 4)) for name in ("exp_", "neg_", "relu_", "sigmoid_", "tanh_", "abs_")}
    | {f"{name} on a view": case(_through_view(name), real(3, 4)) for name in ("exp_", "relu_", "zero_", "sin_")}
    | {f"{name} with a number": case(_fresh(name, 2.5), real(3, 4)) for name in ("add_", "mul_", "fill_", "pow_", "clamp_")}
    | {f"{name} with a number on a view": case(_through_view(name, 2.5), real(3, 4)) for name in ("add_", "mul_", "fill_")}
    | {
        "python operators": case(_operators, real(3, 4), positive(4)),
        "python operators on scalars": case(_operators, real(), positive()),
        "bit operators": case(_bits, truths(3, 4), truths(4)),
        "types": case(_types, real(3, 4)),
        "behind a view": case(_behind_view, real(3, 4), real(4), owned=(0,)),
        "augmented": case(_augmented, real(3, 4), positive(4), owned=(0,)),
        "residual": case(_residual, real(2, 3, 4), real(4), owned=(0,)),
        "writes without gradient": case(_no_grad_write, real(3, 4), real(3, 4), owned=(0,)),
        "writes behind gradients": case(_written_behind_gradients, real(3, 4), real(3, 4), owned=(0, 1), is_traced=False),
        "write through detach": case(_detached_write, real(3, 4), is_traced=False),
        "filled": case(_filled, real(3, 4)),
        "written new": case(_written_new, real(3, 4)),
        "clamped": case(_clamped, real(3, 4), real(4)),
        "questions": case(_questions, real(3, 4)),
        "where": case(torch.where, truths(3, 4), real(4), real(3, 1)),
        "where with a number": case(lambda c, x: torch.where(c, x, 0.0), truths(3, 4), real(4)),
        "where of one": case(lambda x: torch.where(x > 0, x, -x), real(3, 4)),
        "masked_fill": case(lambda x, m: x.masked_fill(m, -1e9), real(2, 3, 4), truths(3, 4)),
        "masked_fill wider mask": case(lambda x, m: x.masked_fill(m, 2.0), real(4), truths(3, 4)),
        "masked_fill tensor": case(lambda x, m, v: x.masked_fill(m, v), real(3, 4), truths(4), real()),
        "masked_fill_": case(lambda x, m: (x * 1).masked_fill_(m, 0.5), real(2, 3, 4), truths(3, 4), owned=(0,)),
        "lerp": case(torch.lerp, real(3, 4), real(4), inner(3, 1)),
        "addcmul": case(lambda a, b, c: torch.addcmul(a, b, c, value=0.5), real(4), real(3, 4), real(3, 1)),
        "addcdiv": case(lambda a, b, c: torch.addcdiv(a, b, c, value=0.5), real(3, 4), real(4), positive(3, 4)),
        "add alpha": case(lambda a, b: torch.add(a, b, alpha=2), real(3, 4), real(4)),
        "pow": case(torch.pow, positive(3, 4), real(4)),
        "pow numbers": case(lambda x: (x**3, x**-1, x.pow(0.5), torch.pow(2, x)), positive(3, 4)),
        "prelu one": case(F.prelu, real(2, 4, 3), real(1)),
        "prelu many": case(F.prelu, real(2, 4, 3), real(4)),
        "threshold": case(lambda x: F.threshold(x, 0.1, -2.0), real(3, 4)),
        "integer division": case(lambda a, b: (a // 3, a % 3, a / (b + 1)), numbers(20, 3, 4), numbers(4, 4)),
        "shifts": case(lambda a: (a << 2, a >> 1), numbers(20, 3, 4)),
        "numbers and reals": case(lambda a, x: a * x + a, numbers(20, 3, 4), real(4)),
        "complex": case(lambda x: torch.view_as_real(torch.polar(x.abs() + 1, x)), real(3, 4)),
        "view as complex": case(lambda x: torch.view_as_complex(x).abs(), real(3, 4, 2), layouts=("merged", "apart")),
        "aten add": case(lambda x, y: ATEN.add.Tensor(x, y, alpha=2), real(3, 4), real(4)),
        "aten scalar": case(lambda x: ATEN.rsub.Scalar(ATEN.mul.Tensor(x, 2.0), 1.0), real(3, 4)),
        "aten _to_copy": case(lambda x: ATEN._to_copy.default(x, dtype=torch.float32), real(3, 4)),
        "aten copy": case(lambda x, y: ATEN.copy.default(x.detach(), y.detach()) * 1, real(3, 4), real(4)),
        "aten gelu": case(lambda x: ATEN.gelu.default(x, approximate="tanh"), real(3, 4)),
        "aten in place": case(lambda x: ATEN.relu_.default(ATEN.mul.Tensor(x, 2)), real(3, 4)),
        "out of place of a view": case(lambda x: (x[0].relu(), x[1].exp()), real(3, 4)),
        "no_grad before": case(_looked_at_first, real(2, 3, 4), real(4, 4)),
        "copies of a view": case(_contiguous_copy, real(3, 4), owned=(0,)),
        "conversion to itself": case(_conversions_that_are_none, real(3, 4), owned=(0,)),
        "memory format": case(lambda x: x.to(memory_format=torch.channels_last).contiguous() + 1, real(2, 3, 4, 4)),
        "view written twice": case(_two_views, real(3, 4), real(4), owned=(0,)),
        "contiguous": case(lambda x: x.transpose(0, 1).contiguous().view(12), real(3, 4)),
        "exact equality": case(lambda x: (x == x * 1, x.eq(x), x.ne(x)), real(3, 4)),
    }
)
