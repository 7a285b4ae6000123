"""Distillation of fused models against plain loops, and the contract of trainers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.search.batch_order import BatchOrder
from fusion.search.losses import distillation_loss
from fusion.search.optimizing import Rates, WarmUpCosine, make_optimizer
from fusion.search.teachers import adapter_targets
from fusion.search.training import Batch, Hint, step_seed, train_one_by_one
from tests.unit.cotrain_contract import CONTRACT, Lesson, assert_same_weights, weights_of
from tests.unit.fusion_models import apart, shared


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract_of_trainers(check):
    check(train_one_by_one)


def test_training_is_a_plain_loop_of_adam_on_weighted_l1():
    lesson = Lesson(dtype=torch.float64)
    unit = lesson.unit("a", adapters_alone=0, clip=0.5, tree=shared(lesson.models))
    tree = copy.deepcopy(unit.module).train()
    optimizer = torch.optim.Adam(tree.parameters(), lr=3e-3)
    inputs, teachers = lesson.part.inputs, [model.run([lesson.part.inputs]).detach() for model in lesson.models]
    for step in range(6):
        torch.manual_seed(step_seed(7, "a", step))
        index = lesson.order(step)
        optimizer.param_groups[0]["lr"] = 3e-3 * unit.schedule(step)
        outputs = tree(inputs[index])
        pairs = zip(outputs.values(), teachers, strict=True)
        loss = sum((output - teacher[index]).abs().mean() / teacher.abs().mean() for output, teacher in pairs)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tree.parameters(), 0.5)
        optimizer.step()
    train_one_by_one([unit], steps=6, seed=7)
    for name, tensor in tree.state_dict().items():
        # a bias before a BatchNorm has no gradient but rounding (1e-17), which Adam divides by its eps of 1e-8
        torch.testing.assert_close(unit.module.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)


def test_students_come_closer_to_their_teachers():
    lesson = Lesson(dropout=0.0)
    unit = lesson.unit("a", schedule=WarmUpCosine(steps=200, warm_up=5))
    [first] = train_one_by_one([unit], steps=10, seed=0)
    train_one_by_one([replace(unit, first_step=10)], steps=150, seed=0)
    [last] = train_one_by_one([replace(unit, first_step=160)], steps=40, seed=0)
    assert sum(last.mean_losses) < 0.6 * sum(first.mean_losses)


def test_adapters_are_trained_alone_first_and_resting_blocks_do_not_move():
    lesson = Lesson()
    unit = lesson.unit("a", adapters_alone=3)
    before = weights_of(unit)
    train_one_by_one([unit], steps=3, seed=0)
    changed = {name for name, tensor in weights_of(unit).items() if not torch.equal(tensor, before[name])}
    assert changed == {"nodes.a0_0_1_1.weight", "nodes.a0_0_1_1.bias"}  # so no running statistics either
    assert all(parameter.requires_grad for parameter in unit.module.parameters())
    assert all(parameter.grad is None for parameter in unit.module.parameters())
    train_one_by_one([replace(unit, first_step=3)], steps=1, seed=0)
    after = weights_of(unit)
    assert {name for name, tensor in after.items() if torch.equal(tensor, before[name])} == set()


def test_frozen_buffers_unchanged_by_training():
    lesson = Lesson()
    tree = shared(lesson.models, adapter_seed=1)
    tree.freeze(["b0_0", "b0_1"])
    unit = lesson.unit("a", tree=tree, adapters_alone=2)
    before = weights_of(unit)
    train_one_by_one([unit], steps=6, seed=0)
    same = {name for name, tensor in weights_of(unit).items() if torch.equal(tensor, before[name])}
    assert same == {name for name in before if name.startswith(("nodes.b0_0.", "nodes.b0_1."))}
    assert not any(parameter.requires_grad for parameter in tree.nodes["b0_0"].parameters())


def test_frozen_by_hand_is_as_frozen():
    lesson = Lesson()
    tree = shared(lesson.models)
    tree.nodes["b0_0"].requires_grad_(False)
    unit = lesson.unit("a", tree=tree)
    before = weights_of(unit)
    train_one_by_one([unit], steps=4, seed=0)
    assert_same_weights(
        {name: tensor for name, tensor in before.items() if name.startswith("nodes.b0_0.")},
        {name: tensor for name, tensor in weights_of(unit).items() if name.startswith("nodes.b0_0.")},
    )


def test_known_features_train_as_a_full_run_does():
    lesson = Lesson(dropout=0.0)
    tree = shared(lesson.models, adapter_seed=1)
    tree.freeze(["b0_0"])
    full = lesson.unit("a", tree=copy.deepcopy(tree))
    known = lesson.cache.known_steps(tree)
    cached = lesson.unit("a", tree=tree, batch=lambda step: lesson.cache.batch(lesson.part, lesson.order(step), known=known))
    outcomes = train_one_by_one([full, cached], steps=8, seed=0)
    # features are rounded to float16 (2^-11); losses are relative to the size of the answers
    assert outcomes[1].mean_losses == pytest.approx(outcomes[0].mean_losses, rel=1e-2)


def test_weights_that_are_no_numbers_after_the_last_step_are_a_failure():
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return gradient * float("nan")

    lesson = Lesson()
    unit = lesson.unit("a", loss=lambda outputs, batch: Poison.apply(lesson.loss(outputs, batch)))
    [outcome] = train_one_by_one([unit], steps=1, seed=0)
    assert (outcome.steps, outcome.failure) == (1, "weights are not finite after step 0")


def test_an_output_of_another_shape_is_that_unit_s_failure():
    lesson = Lesson()
    tree = apart(lesson.models)
    tree.nodes["b1_2"] = nn.Linear(6, 5)
    [outcome] = train_one_by_one([lesson.unit("a", tree=tree)], steps=2, seed=0)
    assert outcome.steps == 0
    assert "task 'mood': outputs [(8, 5)], expected [(8, 4)]" in outcome.failure


def batch_of(**targets: list[Tensor]) -> Batch:
    return Batch(inputs=(torch.zeros(2, 1),), targets=targets)


def test_loss_weighs_every_tensor_of_every_task():
    batch = batch_of(age=[torch.tensor([1.0, 3.0]), torch.tensor([[2.0], [2.0]])], mood=[torch.zeros(2)])
    outputs = {"age": {"x": torch.tensor([2.0, 5.0]), "ids": torch.arange(2), "y": (torch.zeros(2, 1),)}, "mood": torch.ones(2)}
    weights = {"age": (0.5, 0.25), "mood": (2.0,)}
    assert distillation_loss(weights, outputs, batch).tolist() == [0.5 * 1.5 + 0.25 * 2, 2.0]
    assert distillation_loss(weights, outputs, batch, kind="mse").tolist() == [0.5 * 2.5 + 0.25 * 4, 2.0]


def test_hints_add_the_distance_of_features_to_their_task():
    hint = Hint(task="mood", target=torch.tensor([[4.0], [-4.0]]))
    batch = replace(batch_of(age=[torch.ones(2)], mood=[torch.ones(2)]), hints={"a0_0_1_1": hint})
    outputs = {"age": torch.ones(2), "mood": torch.ones(2), "a0_0_1_1": torch.tensor([[2.0], [-4.0]])}
    weights = {"age": (1.0,), "mood": (1.0,)}
    assert distillation_loss(weights, outputs, batch, hint_weight=0.5).tolist() == [0.0, 0.5 * 1.0 / 4.0]


def test_hints_reach_the_adapter_in_training():
    lesson = Lesson(dropout=0.0)
    tree = shared(lesson.models, adapter_seed=1)
    tree.freeze(["b0_0", "b0_1", "b1_1"])
    targets = adapter_targets(tree)

    def batch(step: int) -> Batch:
        return lesson.cache.batch(lesson.part, lesson.order(step), hints=targets)

    only_hints = partial(distillation_loss, {"age": (0.0,), "mood": (0.0,)})
    unit = lesson.unit("a", tree=tree, batch=batch, loss=only_hints, schedule=lambda step: 1.0)
    [first] = train_one_by_one([unit], steps=5, seed=0)
    train_one_by_one([replace(unit, first_step=5)], steps=90, seed=0)
    [last] = train_one_by_one([replace(unit, first_step=95)], steps=5, seed=0)
    assert last.mean_losses[1] < 0.7 * first.mean_losses[1]
    assert not tree.nodes["a0_0_1_1"]._forward_hooks


def test_optimizer_has_a_rate_for_blocks_and_one_for_adapters():
    lesson = Lesson()
    tree = shared(lesson.models, adapter_seed=1)
    tree.freeze(["b0_0"])
    blocks, adapters = make_optimizer(tree, Rates(blocks=1e-4, adapters=1e-2, adapters_alone=5)).param_groups
    assert (blocks["lr"], blocks["starts_at"], adapters["lr"], adapters["starts_at"]) == (1e-4, 5, 1e-2, 0)
    assert [id(p) for p in adapters["params"]] == [id(p) for p in tree.nodes["a0_0_1_1"].parameters()]
    assert {id(p) for p in blocks["params"]} == {
        id(p) for name in ("b0_1", "b0_2", "b1_1", "b1_2") for p in tree.nodes[name].parameters()
    }
    [only] = make_optimizer(shared(lesson.models), Rates(blocks=1e-4, adapters=1e-2, adapters_alone=5)).param_groups
    assert only["starts_at"] == 0  # nothing would be trained else
    tree.requires_grad_(False)
    with pytest.raises(FusionError, match="every parameter of the fused model is frozen"):
        make_optimizer(tree, Rates(blocks=1e-4, adapters=1e-2))


def test_tied_parameters_are_in_the_optimizer_once():
    tree = shared(Lesson().models)
    tree.nodes["b0_1"][0].weight = tree.nodes["b0_0"][0].weight
    [group] = make_optimizer(tree, Rates(blocks=1e-4, adapters=1e-4)).param_groups
    assert len(group["params"]) == len(list(tree.parameters()))


def test_rates_follow_the_schedule():
    lesson = Lesson()
    unit = lesson.unit("a", schedule=lambda step: 0.5**step)
    seen = []
    unit.optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in unit.optimizer.param_groups]))
    train_one_by_one([unit], steps=3, seed=0)
    assert seen == [[3e-3, 1e-2], [1.5e-3, 5e-3], [0.75e-3, 2.5e-3]]


def test_another_s_optimizer_keeps_its_own_rate_as_the_base():
    lesson = Lesson()
    tree = shared(lesson.models)
    optimizer = torch.optim.SGD(tree.parameters(), lr=0.25)
    unit = lesson.unit("a", tree=tree, optimizer=optimizer, schedule=WarmUpCosine(steps=4, last=0.0))
    train_one_by_one([unit], steps=2, seed=0)
    train_one_by_one([replace(unit, first_step=2)], steps=1, seed=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.125)


@pytest.mark.parametrize(("steps", "warm_up", "last"), [(100, 10, 0.05), (10, 0, 0.0), (5, 5, 0.5), (0, 0, 0.1)])
def test_schedule_rises_to_one_and_falls_to_its_last_factor(steps, warm_up, last):
    schedule = WarmUpCosine(steps=steps, warm_up=warm_up, last=last)
    factors = [schedule(step) for step in range(steps + 3)]
    assert factors[:warm_up] == [(step + 1) / warm_up for step in range(warm_up)]
    assert all(0 <= factor <= 1 for factor in factors)
    falling = factors[warm_up:]
    assert falling == sorted(falling, reverse=True)
    assert math.isclose(falling[-1], last, abs_tol=1e-12)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(20, 4), (21, 4), (3, 8), (1, 1)])
def test_each_epoch_is_a_permutation_of_its_own(num_samples, batch_size):
    order = BatchOrder(num_samples=num_samples, batch_size=batch_size, seed=1)
    epochs = [
        torch.cat([order(epoch * order.steps_per_epoch + place) for place in range(order.steps_per_epoch)]).tolist()
        for epoch in range(3)
    ]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == min(num_samples, order.steps_per_epoch * batch_size)
        assert set(seen) <= set(range(num_samples))
    assert num_samples == 1 or epochs[0] != epochs[1]


def test_order_is_a_function_of_seed_and_step():
    order, again, other = (BatchOrder(num_samples=50, batch_size=8, seed=seed) for seed in (1, 1, 2))
    steps = [17, 3, 40, 3]
    assert [order(step).tolist() for step in steps] == [again(step).tolist() for step in steps]
    assert order(3).tolist() != other(3).tolist()


def test_seeds_differ_by_unit_step_and_seed():
    seeds = {step_seed(seed, unit, step) for seed in (0, 1) for unit in ("a", "b") for step in range(50)}
    assert len(seeds) == 200
    assert step_seed(0, "a", 3) == step_seed(0, "a", 3)
    assert all(0 <= seed < 2**63 for seed in seeds)
