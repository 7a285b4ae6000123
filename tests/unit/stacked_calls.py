"""One operator for all members against the same operator for each member alone: outputs, gradients and random states."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fusion.stacking.choices import Choices
from fusion.stacking.dispatch import StackMode
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.rules import RULES
from fusion.stacking.stacked_tensor import StackedTensor

MEMBERS = 3
SEEDS = tuple(range(11, 11 + MEMBERS))
#: Sums of at most some hundred numbers of size 1 in another order: a few hundred roundings of 1.1e-16.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}

Make = Callable[[torch.Generator], Tensor]


def real(*shape: int) -> Make:
    return lambda generator: torch.randn(shape, dtype=torch.float64, generator=generator)


def positive(*shape: int) -> Make:
    return lambda generator: torch.rand(shape, dtype=torch.float64, generator=generator) + 0.1


def inner(*shape: int) -> Make:
    """Numbers well inside (0, 1)."""
    return lambda generator: torch.rand(shape, dtype=torch.float64, generator=generator) * 0.8 + 0.1


def numbers(high: int, *shape: int) -> Make:
    return lambda generator: torch.randint(high, shape, generator=generator)


def truths(*shape: int) -> Make:
    return lambda generator: torch.rand(shape, generator=generator) > 0.4


def order(length: int) -> Make:
    return lambda generator: torch.randperm(length, generator=generator)


@dataclass(frozen=True, slots=True)
class Case:
    """A function of tensors, and how to make one member's.

    Args:
        function: What a model would write.
        operands: Make a member's operands.
        owned: Operands that are never shared between the members, such as one written to.
        is_traced: Whether it is also run as a graph of ATen operators.
        layouts: How members' values may lie.
        ways: Variants of the operator, each of which is forced once; they are not measured.
    """

    function: Callable[..., Any]
    operands: tuple[Make, ...]
    owned: tuple[int, ...] = ()
    is_traced: bool = True
    layouts: tuple[str, ...] = ("merged", "apart", "relaid")
    ways: tuple[str, ...] = ("any",)


def case(function: Callable[..., Any], *operands: Make, **settings: Any) -> Case:
    return Case(function, operands, **settings)


def sharings(given: Case) -> Iterator[tuple[bool, ...]]:
    """Which operands all members share: every way in which at least one is each member's own."""
    choices = [(False,) if index in given.owned else (False, True) for index in range(len(given.operands))]
    return (shared for shared in itertools.product(*choices) if not all(shared))


def check(given: Case, layout: str, shared: Sequence[bool]) -> None:
    """Compare one case laid out one way."""
    members = _drawn(given)
    for index, is_shared in enumerate(shared):
        if is_shared:
            for member in members[1:]:
                member[index] = members[0][index]
    compare(given.function, members, shared, layout, given.ways)


def check_traced(given: Case, layout: str) -> None:
    """As :func:`check`, of the graph of ATen operators that the function is, none shared."""
    members = _drawn(given)
    with torch.random.fork_rng():
        graph = make_fx(lambda *operands: given.function(*operands), pre_dispatch=True)(
            *(_leaf(value, wants=True) for value in members[0])
        )
    compare(graph, members, [False] * len(given.operands), layout, given.ways[:1])


def _drawn(given: Case) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [[make(generator) for make in given.operands] for _ in range(MEMBERS)]


def compare(
    function: Callable[..., Any],
    members: Sequence[Sequence[Tensor]],
    shared: Sequence[bool],
    layout: str,
    ways: Sequence[str] = ("any",),
) -> None:
    """Compare what a function gives all members with what it gives each alone."""
    alone = [_alone(function, operands, seed) for operands, seed in zip(members, SEEDS, strict=True)]
    for way in ways:
        random = MemberRandom.seeded(SEEDS, torch.device("cpu"))
        mode = StackMode(MEMBERS, rules=RULES, random=random, choices=Choices(forced=(way, *ways)))
        made = [_operand(list(values), is_shared, layout) for values, is_shared in _columns(members, shared)]
        operands, leaves = zip(*made, strict=True)
        before = torch.get_rng_state()
        with mode:
            output = function(*operands)
        assert torch.equal(torch.get_rng_state(), before), "the default generator was drawn from"
        for index, (expected, _, state) in enumerate(alone):
            _same(_member(output, index), expected, "output")
            assert torch.equal(random.generators[index].get_state(), state), f"member {index}: other random state than alone"
        plain = [_plain(value) for value in pytree.tree_leaves(output) if isinstance(value, Tensor)]
        _backward([value for value in plain if value.requires_grad], times=MEMBERS)
        for number, (own, is_shared) in enumerate(zip(leaves, shared, strict=True)):
            wanted = [gradients[number] for _, gradients, _ in alone]
            _same_gradients(own, wanted, f"gradient of operand {number}", is_shared=is_shared)


def _columns(members: Sequence[Sequence[Tensor]], shared: Sequence[bool]) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
    return zip(zip(*members, strict=True), shared, strict=True)


def _operand(values: list[Tensor], is_shared: bool, layout: str) -> tuple[Tensor, list[Tensor]]:
    """Return an operand for all members, and the leaves in which its gradients arrive."""
    if is_shared:
        leaf = _leaf(values[0], wants=True)
        return leaf, [leaf]
    if layout == "apart":
        leaves = [_leaf(value, wants=True) for value in values]
        return StackedTensor.of_parts(list(leaves)), leaves
    merged = torch.stack(values)
    if layout == "relaid" and merged.dim() > 2:
        # channels of all members side by side, as behind a grouped convolution
        merged = merged.transpose(0, 1).contiguous().transpose(0, 1)
    leaf = merged.requires_grad_(merged.is_floating_point())
    return StackedTensor.of(leaf), [leaf]


def _leaf(value: Tensor, *, wants: bool) -> Tensor:
    return value.detach().clone().requires_grad_(wants and value.is_floating_point())


def _alone(function: Callable[..., Any], operands: Sequence[Tensor], seed: int) -> tuple[Any, list[Tensor | None], Tensor]:
    leaves = [_leaf(value, wants=True) for value in operands]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = function(*leaves)
        state = torch.get_rng_state()
    _backward([value for value in pytree.tree_leaves(output) if isinstance(value, Tensor) and value.requires_grad])
    return output, [leaf.grad for leaf in leaves], state


def _backward(outputs: list[Tensor], *, times: int = 1) -> None:
    """Go back with uneven weights, the same for a member alone as in the stack, where what is shared counts for each."""
    if outputs:
        torch.autograd.backward(outputs, [_weights(each) * (1 if isinstance(each, _Rows) else times) for each in outputs])


def _weights(value: Tensor) -> Tensor:
    if isinstance(value, _Rows):
        return torch.stack([_weights(value[0].as_subclass(Tensor))] * MEMBERS).to(value.dtype)
    count = max(value.numel(), 1)
    return torch.linspace(-1, 2, count, dtype=torch.float64)[: value.numel()].sin().view(value.shape).to(value.dtype)


class _Rows(Tensor):
    """All members' values, told from a shared tensor of the same shape."""


def _plain(value: Tensor) -> Tensor:
    return value.merged().as_subclass(_Rows) if isinstance(value, StackedTensor) else value


def _member(output: Any, index: int) -> Any:
    def part(value: Any) -> Any:
        return value.parts()[index] if isinstance(value, StackedTensor) else value

    return pytree.tree_map(part, output)


def _same(found: Any, expected: Any, what: str) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected), what
    for mine, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert type(mine) is type(other) or isinstance(mine, Tensor), what
        if isinstance(other, Tensor):
            assert mine.requires_grad == other.requires_grad, f"{what}: requires_grad is {mine.requires_grad}"
            torch.testing.assert_close(mine, other, equal_nan=True, **TOLERANCE, msg=lambda text: f"{what}: {text}")
        else:
            assert mine == other, what


def _same_gradients(leaves: list[Tensor], wanted: list[Tensor | None], what: str, *, is_shared: bool) -> None:
    if all(each is None for each in wanted):
        assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves), what
        return
    expected = [torch.zeros_like(next(e for e in wanted if e is not None)) if each is None else each for each in wanted]
    if is_shared:
        found, rows = [leaves[0].grad], [torch.stack(expected).sum(0)]
    elif len(leaves) == 1:
        found, rows = [leaves[0].grad], [torch.stack(expected)]
    else:
        found, rows = [leaf.grad for leaf in leaves], expected
    for mine, other in zip(found, rows, strict=True):
        assert mine is not None, f"{what} is missing"
        torch.testing.assert_close(mine, other, equal_nan=True, **TOLERANCE, msg=lambda text: f"{what}: {text}")
