"""Candidates trained side by side end with the very weights that each would have alone, whatever becomes of the others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.rescale import Rescale
from fusion.search.optimizing import Rates, make_optimizer
from fusion.search.training import Batch, TrainUnit, train_one_by_one
from tests.unit.cotrain_contract import CONTRACT
from tests.unit.fused_trees import Counting, step, tree_of
from unified.fusing.cotrain import co_train

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 5, generator=GENERATOR)
TARGETS = {"a": torch.randn(64, 5, generator=GENERATOR), "b": torch.randn(64, 5, generator=GENERATOR)}


class Batches:
    """Gathers the batch of a step, and counts how often."""

    def __init__(self) -> None:
        self.num_gathered = 0

    def __call__(self, number: int) -> Batch:
        self.num_gathered += 1
        index = torch.arange(number * 8, number * 8 + 8) % 64
        return Batch(inputs=(INPUTS[index],), targets={task: [values[index]] for task, values in TARGETS.items()})


def distance(outputs: dict[str, Any], batch: Batch) -> Tensor:
    return torch.stack([(outputs[task] - batch.targets[task][0]).abs().mean() for task in outputs])


class Noisy(nn.Module):
    """Draws in training, and has statistics of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner, self.norm, self.drop = Counting(5, seed), nn.BatchNorm1d(5), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.inner(x)))


def identity() -> nn.Linear:
    layer = nn.Linear(5, 5)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Adapter(Rescale):
    """Counts as an adapter, which trains while blocks rest."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.linear = identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def candidate(number: int, batches: Callable[[int], Batch], *, alone: int = 0, **settings: Any) -> TrainUnit:
    """Two tasks behind a trunk that all candidates have in common; ``number`` decides the rest."""
    tree = tree_of(
        step("b0_0", None),
        step("b0_1", "b0_0"),
        step("b0_2", "b0_1", "a"),
        step("a0_1_1_2", "b0_1"),
        step("b1_2", "a0_1_1_2", "b"),
        b0_1=Noisy(7),
        b0_2=Counting(5, 20 + number),
        b1_2=Counting(5, 30 + number),
        a0_1_1_2=Adapter(),
    )
    optimizer = make_optimizer(tree, Rates(blocks=0.01, adapters=0.05, adapters_alone=alone))
    settings = {"schedule": lambda at: 1 / (1 + at)} | settings
    return TrainUnit(id=f"candidate {number}", module=tree, optimizer=optimizer, batch=batches, loss=distance, **settings)


def twins(unit: TrainUnit) -> TrainUnit:
    """Return a copy of a unit that shares nothing with it but its batches."""
    module, optimizer = copy.deepcopy((unit.module, unit.optimizer))
    return TrainUnit(
        id=unit.id, module=module, optimizer=optimizer, batch=unit.batch, loss=unit.loss,
        first_step=unit.first_step, schedule=unit.schedule, clip=unit.clip,
    )  # fmt: skip


def assert_equal_units(one: TrainUnit, other: TrainUnit) -> None:
    for (name, value), (_, expected) in zip(one.module.state_dict().items(), other.module.state_dict().items(), strict=True):
        assert torch.equal(value, expected), f"{one.id}: {name}"
    ours, theirs = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    for index, state in theirs.items():
        assert all(torch.equal(state[key], ours[index][key]) for key in state)


@pytest.mark.parametrize("law", CONTRACT, ids=lambda law: law.__name__)
def test_the_contract_of_trainers_is_kept(law):
    law(co_train)


@pytest.mark.parametrize("alone", [0, 4, 100])
def test_side_by_side_is_as_one_by_one_bit_for_bit(alone):
    batches = Batches()
    units = [
        candidate(0, batches, alone=alone),
        candidate(1, batches, alone=alone, clip=0.1),
        candidate(2, batches, alone=alone, first_step=2),
        candidate(3, Batches(), alone=alone),
    ]
    alone_units = [twins(unit) for unit in units]
    outcomes = co_train(units, steps=9, seed=3)
    assert outcomes == train_one_by_one(alone_units, steps=9, seed=3)
    for unit, expected in zip(units, alone_units, strict=True):
        assert_equal_units(unit, expected)
    assert all(parameter.requires_grad for unit in units for parameter in unit.module.parameters())


def test_a_second_rung_goes_on_where_the_first_ended():
    batches = Batches()
    whole, halves = candidate(0, batches, alone=2), candidate(0, batches, alone=2)
    co_train([whole], steps=8, seed=0)
    co_train([halves, candidate(1, batches)], steps=5, seed=0)
    second = TrainUnit(
        id=halves.id, module=halves.module, optimizer=halves.optimizer, batch=batches, loss=distance,
        first_step=5, schedule=halves.schedule,
    )  # fmt: skip
    co_train([candidate(2, batches, first_step=5), second], steps=3, seed=0)
    assert_equal_units(whole, second)


def test_a_batch_is_gathered_once_for_all():
    batches = Batches()
    co_train([candidate(number, batches) for number in range(3)], steps=4, seed=0)
    assert batches.num_gathered == 4


def test_what_rests_in_all_of_them_runs_once_a_step():
    batches = Batches()
    units = [candidate(number, batches, alone=100) for number in range(3)]
    units[2].module.nodes["b0_1"].inner.linear.weight.data.add_(1.0)  # this one inherited another second block
    co_train(units, steps=5, seed=0)
    runs = [[unit.module.nodes["b0_0"].num_runs, unit.module.nodes["b0_1"].inner.num_runs] for unit in units]
    assert sum(first for first, _ in runs) == 10  # once behind which both go on, and once for the one that differs
    assert [second for _, second in runs] == [5, 0, 5]


def test_what_draws_in_evaluation_mode_is_everybodys_own():
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.rand_like(x)

    def unit(number: int) -> TrainUnit:
        tree = tree_of(step("b0_0", None), step("a0_0_0_1", "b0_0", "a"), b0_0=Draws(), a0_0_0_1=Adapter())
        optimizer = make_optimizer(tree, Rates(blocks=0.1, adapters=0.1, adapters_alone=100))
        return TrainUnit(id=str(number), module=tree, optimizer=optimizer, batch=batches, loss=distance)

    batches = Batches()
    units, expected = [unit(0), unit(1)], [unit(0), unit(1)]
    co_train(units, steps=3, seed=0)
    train_one_by_one(expected, steps=3, seed=0)
    for one, other in zip(units, expected, strict=True):
        assert_equal_units(one, other)


def explode(outputs: dict[str, Any], batch: Batch) -> Tensor:
    raise RuntimeError("out of patience")


def diverge(outputs: dict[str, Any], batch: Batch) -> Tensor:
    return distance(outputs, batch) * float("nan")


def test_a_failure_is_its_own_units_only():
    batches = Batches()
    good = [candidate(0, batches), candidate(1, batches)]
    expected = [twins(unit) for unit in good]
    bad = [candidate(2, batches), candidate(3, batches)]
    bad = [
        TrainUnit(id=u.id, module=u.module, optimizer=u.optimizer, batch=batches, loss=f)
        for u, f in zip(bad, (explode, diverge), strict=True)
    ]
    outcomes = co_train([bad[0], good[0], bad[1], good[1]], steps=20, seed=0)
    assert [outcome.failure is None for outcome in outcomes] == [False, True, False, True]
    assert outcomes[0].failure == "RuntimeError: out of patience"
    assert outcomes[2].failure == "the loss of step 0 is not finite"
    train_one_by_one(expected, steps=20, seed=0)
    for unit, other in zip(good, expected, strict=True):
        assert_equal_units(unit, other)


def test_nobody_elses_random_numbers_are_touched():
    units = [candidate(0, Batches()), candidate(1, Batches())]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    co_train(units, steps=3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_no_steps_change_nothing():
    unit = candidate(0, Batches())
    before = copy.deepcopy(unit.module.state_dict())
    (outcome,) = co_train([unit], steps=0, seed=0)
    assert (outcome.steps, outcome.failure) == (0, None)
    assert all(torch.equal(value, before[name]) for name, value in unit.module.state_dict().items())
