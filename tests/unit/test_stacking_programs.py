"""Straight-line programs of views, writes in place and arithmetic: what shares memory alone must look so in a stack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.unit.stacked_calls import MEMBERS, compare

SIDE = 4
LAYOUTS = ("merged", "apart", "relaid")
NUM_INPUTS = 2

#: All of them give (4, 4) from (4, 4), views among them.
MAKING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "tanh": lambda a, b: torch.tanh(a),
    "matmul": lambda a, b: a @ b * 0.1,
    "linear": lambda a, b: F.linear(a, b) * 0.1,
    "transpose": lambda a, b: a.transpose(0, 1),
    "view": lambda a, b: a.reshape(2, 8).reshape(4, 4),
    "flatten": lambda a, b: a.flatten().unflatten(0, (4, 4)),
    "rows turned": lambda a, b: a[[1, 0, 3, 2]],
    "halves": lambda a, b: torch.cat(a.chunk(2, dim=1)[::-1], dim=1),
    "slice": lambda a, b: a[:, :],
    "permutation": lambda a, b: a.t().contiguous().t(),
    "contiguous": lambda a, b: a.contiguous(),
    "detach": lambda a, b: a.detach(),
    "to": lambda a, b: a.to(torch.float64),
    "clone": lambda a, b: a.clone(),
    "dropout": lambda a, b: F.dropout(a, 0.25),
    "softmax": lambda a, b: a.softmax(0),
    "where": lambda a, b: torch.where(a.detach() > 0, a, b),
    "new": lambda a, b: torch.zeros(4, 4, dtype=torch.float64),
    "ones": lambda a, b: a.new_ones(4, 4),
    "like": lambda a, b: torch.zeros_like(a),
    "normed": lambda a, b: F.layer_norm(a, (4,), b[0], b[:, 1]),
    "batch norm": lambda a, b: F.batch_norm(a, None, None, b[0].contiguous(), None, training=True),
    "loop": lambda a, b: torch.linalg.matrix_exp(a * 0.1),
}
WRITING: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add_": lambda a, b: a.add_(b.detach()),
    "mul_": lambda a, b: a.mul_(0.5),
    "row": lambda a, b: a[0].add_(1.0),
    "column": lambda a, b: a[:, 1].mul_(b.detach()[0]),
    "set row": lambda a, b: a.__setitem__(2, b.detach()[1]),
    "set column": lambda a, b: a.__setitem__((slice(None), 3), 0.25),
    "set places": lambda a, b: a.__setitem__(([0, 1], [2, 3]), b.detach()[0, :2]),
    "flat": lambda a, b: a.transpose(0, 1).reshape(16)[3:5].sub_(0.5),
    "fill": lambda a, b: a[1:3, 1:3].fill_(0.125),
    "copy": lambda a, b: a.copy_(b.detach().t()),
    "masked": lambda a, b: a.masked_fill_(b.detach() > 1, 0.0),
    "noise": lambda a, b: a.detach()[1].uniform_(-1, 1),
}

Step = tuple[str, int, int, bool]


def program(steps: list[Step]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function of the inputs that runs the steps on a growing pool of tensors, and gives the whole pool."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        pool = [value * 1 for value in inputs]
        for name, one, other, is_recorded in steps:
            a, b = pool[one % len(pool)], pool[other % len(pool)]
            with contextlib.nullcontext() if is_recorded else torch.no_grad():
                if name in MAKING:
                    pool.append(MAKING[name](a, b))
                else:
                    WRITING[name](a, b)
        return tuple(value * 1 for value in pool)

    return run


steps = st.lists(
    st.tuples(
        st.sampled_from(sorted({*MAKING, *WRITING})),
        st.integers(0, 7),
        st.integers(0, 7),
        st.sampled_from((True, True, True, False)),
    ),
    min_size=2,
    max_size=10,
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(steps=steps, layout=st.sampled_from(LAYOUTS))
def test_programs_of_views_and_writes_give_all_members_what_they_give_each(steps: list[Step], layout: str) -> None:
    generator = torch.Generator().manual_seed(3)
    members = [
        [torch.randn(SIDE, SIDE, dtype=torch.float64, generator=generator) for _ in range(NUM_INPUTS)] for _ in range(MEMBERS)
    ]
    function = program(steps)
    if works_alone(function, members[0]):
        compare(function, members, [False] * NUM_INPUTS, layout)


def works_alone(function: Callable[..., tuple[Tensor, ...]], operands: list[Tensor]) -> bool:
    """Whether PyTorch lets the program run and go back: writing over what a gradient needs is an error alone, too."""
    with torch.random.fork_rng():
        try:
            outputs = function(*(value.clone().requires_grad_() for value in operands))
            sum(value.sum() for value in outputs if value.requires_grad).backward()  # type: ignore[union-attr]
        except RuntimeError:
            return False
    return True
