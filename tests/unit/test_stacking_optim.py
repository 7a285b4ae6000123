"""A stack's one optimizer, against each member's own `torch.optim` optimizer stepping alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler, OneCycleLR, StepLR

from fusion.stacking.stacked_parameter import StackedParameter
from fusion.stacking.step_lanes import Path
from fusion.stacking.vector_optimizer import VectorOptimizer

SHAPES = {"conv.weight": (3, 2, 2, 2), "conv.bias": (3,), "fc.weight": (4, 6), "scale": (), "unused": (2,)}
TRANSPOSED = {"fc.weight"}
PATHS: tuple[Path, ...] = ("fastest", "fused", "vector")

Make = Callable[[list[nn.Parameter], int], optim.Optimizer]

KINDS: dict[str, Make] = {
    "sgd": lambda p, i: optim.SGD(p, lr=0.1 / (i + 1)),
    "sgd-decay": lambda p, i: optim.SGD(p, lr=0.1 / (i + 1), weight_decay=0.01 * i, maximize=True),
    "momentum": lambda p, i: optim.SGD(p, lr=0.05 / (i + 1), momentum=0.5 + 0.1 * i, dampening=0.2 * i, weight_decay=0.01),
    "momentum-equal": lambda p, i: optim.SGD(p, lr=0.05, momentum=0.9),
    "momentum-of-some": lambda p, i: optim.SGD(p, lr=0.05, momentum=(0.0, 0.9, 0.9, 0.0)[i % 4]),
    "nesterov": lambda p, i: optim.SGD(p, lr=0.05, momentum=0.9 - 0.2 * i, nesterov=True, weight_decay=0.1),
    "adam": lambda p, i: optim.Adam(p, lr=0.02 * (i + 1), betas=(0.9 - 0.1 * i, 0.99 - 0.03 * i), eps=10.0 ** (-8 + i)),
    "adam-equal": lambda p, i: optim.Adam(p, lr=0.02, weight_decay=0.1),
    "amsgrad": lambda p, i: optim.Adam(p, lr=0.02 * (i + 1), amsgrad=True, weight_decay=0.05 * i, maximize=True),
    "adam-decoupled": lambda p, i: optim.Adam(p, lr=0.02, weight_decay=0.05 * i, decoupled_weight_decay=True),
    "adamw": lambda p, i: optim.AdamW(p, lr=0.02 * (i + 1), weight_decay=0.2 * i, amsgrad=True),
    "adamw-fused": lambda p, i: optim.AdamW(p, lr=0.02, weight_decay=0.2 * (i // 2), fused=i % 2 == 0),
    "rmsprop": lambda p, i: optim.RMSprop(p, lr=0.01 * (i + 1), alpha=0.9 + 0.02 * i, eps=1e-6),
    "rmsprop-centered": lambda p, i: optim.RMSprop(
        p, lr=0.01, alpha=0.8 + 0.05 * i, momentum=(0.9, 0.0, 0.5, 0.3)[i % 4], centered=True, weight_decay=0.01 * i, eps=1e-3
    ),
    "rmsprop-momentum": lambda p, i: optim.RMSprop(p, lr=0.01, momentum=0.3 + 0.1 * i, eps=1e-3, maximize=True),
    "adagrad": lambda p, i: optim.Adagrad(p, lr=0.1 * (i + 1), lr_decay=0.01 * i, weight_decay=0.01, eps=1e-8),
    "adagrad-begun": lambda p, i: optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1 * i, maximize=True),
}
SCHEDULES: dict[str, Callable[[optim.Optimizer, int], LRScheduler]] = {
    "step": lambda o, i: StepLR(o, step_size=3 + i, gamma=0.7),
    "cosine": lambda o, i: CosineAnnealingLR(o, T_max=20 + i),
    "one-cycle": lambda o, i: OneCycleLR(o, max_lr=0.05 * (i + 1), total_steps=60, cycle_momentum=True),
    "cyclic": lambda o, i: CyclicLR(o, base_lr=0.01, max_lr=0.05, step_size_up=3 + i, mode="triangular2"),
}

CYCLED = ("momentum-equal", "adam-equal", "amsgrad", "rmsprop-momentum")  # kinds with a momentum for the last two to move
SCHEDULED = [(kind, schedule) for kind in CYCLED for schedule in SCHEDULES]
SCHEDULED += [(kind, schedule) for kind in ("sgd", "adagrad") for schedule in ("step", "cosine")]


def stacked(members: Sequence[Sequence[nn.Parameter]]) -> list[StackedParameter]:
    parameters = []
    for name, rows in zip(SHAPES, zip(*members, strict=True), strict=True):
        tensor = torch.stack([row.detach().mT.contiguous() if name in TRANSPOSED else row.detach() for row in rows])
        parameters.append(StackedParameter(name=name, tensor=nn.Parameter(tensor), is_transposed=name in TRANSPOSED))
    return parameters


class Alone:
    """Members that step alone with `torch.optim`, and copies of them that are stacked."""

    def __init__(self, make: Make, count: int = 4, *, path: Path = "fastest", schedule: str | None = None) -> None:
        self.make, self.schedule, self.path = make, schedule, path
        self.random = torch.Generator().manual_seed(count)
        self.members: list[list[nn.Parameter]] = []
        self.optimizers: list[optim.Optimizer] = []
        self.twins: list[optim.Optimizer] = []
        self.schedules: list[tuple[LRScheduler, LRScheduler]] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        index = len(self.members)
        drawn = [torch.randn(shape, dtype=torch.float64, generator=self.random) for shape in SHAPES.values()]
        own, twin = [nn.Parameter(value) for value in drawn], [nn.Parameter(value.clone()) for value in drawn]
        self.members.append(own)
        self.optimizers.append(self.make(own, index))
        self.twins.append(self.make(twin, index))
        if self.schedule:
            make = SCHEDULES[self.schedule]
            self.schedules.append((make(self.optimizers[-1], index), make(self.twins[-1], index)))

    def stack(self) -> tuple[list[StackedParameter], VectorOptimizer]:
        parameters = stacked(self.members)
        return parameters, VectorOptimizer(parameters, self.twins, path=self.path)

    def step(
        self,
        rows: Sequence[int],
        parameters: list[StackedParameter],
        optimizer: VectorOptimizer,
        *,
        norms: Sequence[float | None] | None = None,
        without: set[str] = frozenset({"unused"}),  # type: ignore[assignment]
    ) -> None:
        """Step the members `rows` alone, and the stack that consists of them."""
        optimizer.zero_grad()
        for parameter in parameters:
            if parameter.name not in without:
                parameter.tensor.grad = torch.zeros_like(parameter.tensor)
        for row, index in enumerate(rows):
            self.draw(index, without)
            for own, parameter in zip(self.members[index], parameters, strict=True):
                if own.grad is not None:
                    parameter.row(parameter.tensor.grad, row).copy_(own.grad)
            if norms and norms[row] is not None:
                nn.utils.clip_grad_norm_(self.members[index], norms[row])
            self.optimizers[index].step()
        if norms:
            optimizer.clip_(norms)
        optimizer.step()
        for index in rows:
            for schedule in self.schedules[index] if self.schedules else ():
                schedule.step()

    def draw(self, index: int, without: set[str]) -> None:
        for name, own in zip(SHAPES, self.members[index], strict=True):
            drawn = torch.randn(own.shape, dtype=own.dtype, generator=self.random)
            own.grad = None if name in without else drawn + own.detach()

    def check(self, rows: Sequence[int], parameters: list[StackedParameter]) -> None:
        for row, index in enumerate(rows):
            for own, parameter in zip(self.members[index], parameters, strict=True):
                close(parameter.row(parameter.tensor, row), own)


def close(found: Tensor, expected: Tensor) -> None:
    """Relative 1e-12: a few hundred roundings of float64, which 50 steps may add up; 1e-13 where values cross zero."""
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-12, atol=1e-13)


def same_states(found: optim.Optimizer, expected: optim.Optimizer) -> None:
    """The same keys in the same order, types, shapes and devices; nothing shared."""
    left, right = found.state_dict()["state"], expected.state_dict()["state"]
    assert list(left) == list(right)
    for index, entry in right.items():
        assert list(left[index]) == list(entry)
        for key, value in entry.items():
            assert left[index][key].dtype == value.dtype
            assert left[index][key].stride() == value.stride()
            close(left[index][key], value)
            assert left[index][key].untyped_storage().nbytes() == value.untyped_storage().nbytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_steps_are_those_of_each_member_alone(kind: str, path: Path) -> None:
    alone, everyone = Alone(KINDS[kind], path=path), range(4)
    parameters, optimizer = alone.stack()
    for step in range(50):
        late = {"unused"} if step >= 5 else {"unused", "scale"}  # a parameter that starts later counts its own steps
        alone.step(everyone, parameters, optimizer, norms=[None, 0.5, 3.0, 1e9] if step % 2 else None, without=late)
    alone.check(everyone, parameters)
    for index in everyone:
        optimizer.write_back(index)
        same_states(alone.twins[index], alone.optimizers[index])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("kind", "schedule"), SCHEDULED)
def test_schedules_of_pytorch_move_the_members_hyper_parameters(kind: str, schedule: str, path: Path) -> None:
    alone, everyone = Alone(KINDS[kind], path=path, schedule=schedule), range(4)
    parameters, optimizer = alone.stack()
    for _ in range(50):
        alone.step(everyone, parameters, optimizer)
    alone.check(everyone, parameters)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_members_leave_go_on_alone_join_and_come_back(kind: str, path: Path) -> None:
    alone = Alone(KINDS[kind], count=3, path=path)
    parameters, optimizer = alone.stack()
    rows = [0, 1, 2]
    for _ in range(7):
        alone.step(rows, parameters, optimizer)
    optimizer.write_back(1)
    rows = leave(parameters, optimizer, rows, [2, 0])
    for _ in range(5):
        alone.step(rows, parameters, optimizer)
        go_on(alone, 1)
    alone.add()  # the member 3 has made no step; the member 1 has made as many as the others
    for index in (3, 1):
        rows = join(alone, parameters, optimizer, rows, index)
    for _ in range(9):
        alone.step(rows, parameters, optimizer)
    optimizer.write_back(rows.index(0))
    go_on(alone, 0, into=(parameters, rows.index(0)))
    optimizer.read_in(rows.index(0))
    for _ in range(9):
        alone.step(rows, parameters, optimizer)
    alone.check(rows, parameters)
    for row, index in enumerate(rows):
        optimizer.write_back(row)
        same_states(alone.twins[index], alone.optimizers[index])


def leave(parameters: list[StackedParameter], optimizer: VectorOptimizer, rows: list[int], kept: list[int]) -> list[int]:
    for parameter in parameters:
        parameter.tensor = nn.Parameter(parameter.tensor.detach()[kept])
    optimizer.select(kept)
    return [rows[row] for row in kept]


def join(
    alone: Alone, parameters: list[StackedParameter], optimizer: VectorOptimizer, rows: list[int], index: int
) -> list[int]:
    for longer, parameter in zip(stacked([alone.members[index]]), parameters, strict=True):
        parameter.tensor = nn.Parameter(torch.cat([parameter.tensor.detach(), longer.tensor.detach()]))
    optimizer.join([alone.twins[index]])
    return [*rows, index]


def go_on(alone: Alone, index: int, *, into: tuple[list[StackedParameter], int] | None = None) -> None:
    """Make a step alone, and one with the state that came out of the stack."""
    twin = alone.twins[index]
    alone.draw(index, {"unused"})
    for own, copied in zip(alone.members[index], twin.param_groups[0]["params"], strict=True):
        copied.grad = None if own.grad is None else own.grad.clone()
        with torch.no_grad():
            copied.copy_(own)
    alone.optimizers[index].step()
    twin.step()
    for own, copied in zip(alone.members[index], twin.param_groups[0]["params"], strict=True):
        close(copied, own)
    if into is not None:
        for parameter, own in zip(into[0], alone.members[index], strict=True):
            with torch.no_grad():
                parameter.row(parameter.tensor, into[1]).copy_(own)


@pytest.mark.parametrize("path", PATHS)
def test_a_momentum_may_be_switched_on_and_off_for_some(path: Path) -> None:
    alone, everyone = Alone(KINDS["momentum-of-some"], path=path), range(4)
    parameters, optimizer = alone.stack()
    for momenta in ((0.0, 0.9, 0.9, 0.0), (0.5, 0.9, 0.0, 0.0), (0.5, 0.0, 0.9, 0.0), (0.0, 0.3, 0.9, 0.7)):
        for index, momentum in enumerate(momenta):
            for ordinary in (alone.optimizers[index], alone.twins[index]):
                ordinary.param_groups[0]["momentum"] = momentum
        for _ in range(3):
            alone.step(everyone, parameters, optimizer)
    alone.check(everyone, parameters)
    for index in everyone:
        optimizer.write_back(index)
        same_states(alone.twins[index], alone.optimizers[index])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_from_a_checkpoint_goes_on(kind: str) -> None:
    alone = Alone(KINDS[kind], count=2)
    for index in (0, 1):
        for _ in range(3):
            alone.draw(index, {"unused"})
            alone.optimizers[index].step()
        alone.twins[index].load_state_dict(copy.deepcopy(alone.optimizers[index].state_dict()))
    parameters, optimizer = alone.stack()
    optimizer.write_back(1)
    same_states(alone.twins[1], alone.optimizers[1])
    for _ in range(5):
        alone.step((0, 1), parameters, optimizer)
    alone.check((0, 1), parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_whose_state_was_cleared_begins_anew(kind: str) -> None:
    alone = Alone(KINDS[kind], count=3)
    parameters, optimizer = alone.stack()
    for _ in range(3):
        alone.step(range(3), parameters, optimizer)
    for ordinary in (alone.optimizers[1], alone.twins[1]):
        ordinary.state.clear()
    optimizer.read_in(1)
    for _ in range(3):
        alone.step(range(3), parameters, optimizer)
    alone.check(range(3), parameters)
    for index in range(3):
        optimizer.write_back(index)
        same_states(alone.twins[index], alone.optimizers[index])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_back_is_the_members_own(kind: str) -> None:
    alone = Alone(KINDS[kind], count=2)
    parameters, optimizer = alone.stack()
    optimizer.write_back(0)
    same_states(alone.twins[0], alone.optimizers[0])  # no step yet
    alone.step((0, 1), parameters, optimizer)
    optimizer.write_back(0)
    before = copy.deepcopy(alone.twins[0].state_dict()["state"])
    alone.step((0, 1), parameters, optimizer)
    for index, entry in alone.twins[0].state_dict()["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, before[index][key])


numbers = st.floats(0.01, 0.95)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(PATHS), st.lists(st.tuples(numbers, numbers, numbers, st.sampled_from([0.0, 0.1])), min_size=1, max_size=5)
)
def test_any_hyper_parameters_of_any_members(path: Path, drawn: list[tuple[float, float, float, float]]) -> None:
    makes: list[Make] = [
        lambda p, i: optim.SGD(p, lr=drawn[i][0], momentum=drawn[i][1], dampening=drawn[i][2], weight_decay=drawn[i][3]),
        lambda p, i: optim.Adam(p, lr=drawn[i][0], betas=(drawn[i][1], drawn[i][2]), weight_decay=drawn[i][3], eps=1e-3),
        lambda p, i: optim.AdamW(p, lr=drawn[i][0], betas=(drawn[i][1], drawn[i][2]), weight_decay=drawn[i][3], eps=1e-3),
        lambda p, i: optim.RMSprop(
            p, lr=drawn[i][0], alpha=drawn[i][1], momentum=drawn[i][2], weight_decay=drawn[i][3], eps=1e-3
        ),
        lambda p, i: optim.Adagrad(p, lr=drawn[i][0], lr_decay=drawn[i][1], weight_decay=drawn[i][3], eps=1e-3),
    ]
    for make in makes:
        alone, everyone = Alone(make, count=len(drawn), path=path), range(len(drawn))
        parameters, optimizer = alone.stack()
        for _ in range(6):
            alone.step(everyone, parameters, optimizer, norms=[5.0] * len(drawn))
        alone.check(everyone, parameters)


def test_many_small_and_large_parameters_take_both_ways_at_once() -> None:
    shapes = [(3,)] * 12 + [(120, 120)]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(48, *shape, dtype=torch.float64, generator=generator) for shape in shapes]
    members = [[nn.Parameter(value[index].clone()) for value in values] for index in range(48)]
    optimizers = [optim.Adam(member) for member in members]
    twins = [optim.Adam([nn.Parameter(own.detach().clone()) for own in member]) for member in members]
    parameters = [StackedParameter(name=str(index), tensor=nn.Parameter(value)) for index, value in enumerate(values)]
    optimizer = VectorOptimizer(parameters, twins)
    for step in range(6):
        for parameter in parameters:
            parameter.tensor.grad = torch.randn(parameter.tensor.shape, dtype=torch.float64, generator=generator)
        for index, member in enumerate(members):
            rate = 0.01 + 0.001 * index * (step % 4 >= 2)  # equal ones and each member's own, in turn
            for ordinary in (optimizers[index], twins[index]):
                ordinary.param_groups[0]["lr"] = rate
            for own, parameter in zip(member, parameters, strict=True):
                own.grad = parameter.tensor.grad[index].clone()
            optimizers[index].step()
        optimizer.step()
    for index, member in enumerate(members):
        for own, parameter in zip(member, parameters, strict=True):
            close(parameter.tensor[index], own)


def test_gradients_and_values_of_any_layout() -> None:
    values = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for layout in (values, values.mT.contiguous().mT):
        own = [nn.Parameter(value.clone()) for value in values]
        twins = [optim.AdamW([nn.Parameter(value.clone())]) for value in values]
        parameter = StackedParameter(name="weight", tensor=nn.Parameter(layout.clone()))
        optimizer = VectorOptimizer([parameter], twins)
        for index, member in enumerate(own):
            member.grad = values[index].sin()
            optim.AdamW([member]).step()
        parameter.tensor.grad = values.sin().mT.contiguous().mT
        optimizer.step()
        close(parameter.tensor, torch.stack([member.detach() for member in own]))


def test_a_member_that_is_not_finite_leaves_its_neighbours_untouched() -> None:
    for kind in ("momentum", "adam", "rmsprop", "adagrad"):
        for path in PATHS:
            alone = Alone(KINDS[kind], count=3, path=path)
            parameters, optimizer = alone.stack()
            alone.members[1][0].data[0] = float("nan")
            for _ in range(3):
                alone.step(range(3), parameters, optimizer, norms=[1.0, 1.0, None])
            finite = [all(bool(p.tensor[row].isfinite().all()) for p in parameters) for row in range(3)]
            assert finite == [True, False, True]


def test_float32_steps_are_those_of_each_member_alone() -> None:
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    for path in PATHS:
        own = [nn.Parameter(value.clone()) for value in values]
        optimizers = [optim.Adam([member], lr=0.01 * (index + 1)) for index, member in enumerate(own)]
        parameter = StackedParameter(name="weight", tensor=nn.Parameter(values.clone()))
        twins = [optim.Adam([nn.Parameter(value)], lr=0.01 * (index + 1)) for index, value in enumerate(values)]
        optimizer = VectorOptimizer([parameter], twins, path=path)
        for step in range(20):
            for member in own:
                member.grad = (member.detach() * (step + 1)).sin()
            parameter.tensor.grad = torch.stack([member.grad for member in own])
            for alone in optimizers:
                alone.step()
            optimizer.step()
        # 20 steps of a rate of up to 0.05, each rounded to float32's 6e-8 a few times
        torch.testing.assert_close(parameter.tensor.detach(), torch.stack(list(own)).detach(), rtol=1e-5, atol=1e-6)
