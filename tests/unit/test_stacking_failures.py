"""What a stack does when it cannot go on, or one of its members goes astray: the others notice nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusion.stacking.errors import NotStackableError, ValueDependentError
from fusion.stacking.stack import Stack, stack
from fusion.stacking.training import StackedTraining

MEMBERS = 3


class Body(nn.Module):
    """A layer with a norm and a dropout, and then what is tried."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.norm, self.function = nn.Linear(4, 4), nn.BatchNorm1d(4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.dropout(self.norm(self.layer(x)), 0.2, self.training))


class Doubled(Function):
    """Doubles; its gradient is, on purpose, not that of doubling."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        return x * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * x.sign() * 7, None


def training_of(function: Callable[[Tensor], Tensor]) -> StackedTraining:
    torch.manual_seed(0)
    models = [Body(function).double().train() for _ in range(MEMBERS)]
    return StackedTraining(models, [optim.Adam(model.parameters(), lr=0.01 * (i + 1)) for i, model in enumerate(models)])


def batches_of(inputs: Tensor) -> Callable:
    target = torch.zeros(MEMBERS, *inputs.shape[1:], dtype=torch.float64)
    return lambda members: (Stack.wrap(inputs[list(members)]), Stack.wrap(target[list(members)]))


def loss_of(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(module(inputs), targets)


def data() -> Tensor:
    return torch.randn(MEMBERS, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def everything(training: StackedTraining) -> list[Tensor]:
    """Return all that a step may change."""
    training.settle_all()
    found = [state for pair in training.random.states() for state in pair if state is not None]
    for model, optimizer in zip(training.models, training.optimizers, strict=True):
        found += [*model.parameters(), *model.buffers()]
        found += [value for entry in optimizer.state.values() for value in entry.values()]
    return [tensor.detach().clone() for tensor in found]


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def asking(x: Tensor) -> Tensor:
    return x * x.abs().max().item()


def replacing(x: Tensor) -> Tensor:
    x.data = x.data * 2
    return x


def selecting(x: Tensor) -> Tensor:
    return x[x > 0].view(1, -1)


def failing(x: Tensor) -> Tensor:
    raise OSError("the disk is full")


FAILURES: dict[str, tuple[Callable[[Tensor], Tensor], type[Exception], str]] = {
    "a branch": (branching, ValueDependentError, "bool"),
    "a number": (asking, ValueDependentError, "item"),
    "a shape": (selecting, ValueDependentError, "other shapes"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()), ValueDependentError, "numpy, which no stack can give"),
    "other data": (replacing, ValueDependentError, "asks for another data of a tensor"),
    "its own": (failing, OSError, "disk"),
    "a hook on a tensor": (lambda x: x.register_hook(lambda g: g) and x, ValueDependentError, "register_hook"),
    "a gradient inside": (lambda x: torch.autograd.grad(x.sum(), x)[0], ValueDependentError, "asks for grad"),
    "a result given": (lambda x: torch.mul(x, 2, out=torch.empty(6, 4, dtype=torch.float64)), NotStackableError, "out="),
    "recomputation": (lambda x: checkpoint(lambda y: y.exp(), x, use_reentrant=False), RuntimeError, "outside its stack"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_step_that_fails_says_why_and_leaves_everything_as_it_was(name: str) -> None:
    function, kind, said = FAILURES[name]
    training, batches = training_of(lambda x: x * 2), batches_of(data())
    training.step(batches, loss_of)
    before = everything(training)
    for group in training._groups:
        group.stack.template.value.module.function = function
    with pytest.raises(kind, match=said):
        training.step(batches, loss_of)
    assert all(torch.equal(one, other) for one, other in zip(everything(training), before, strict=True))


def test_a_step_after_a_failed_one_is_as_if_nothing_had_happened() -> None:
    inputs, fails = data(), []

    def function(x: Tensor) -> Tensor:
        return failing(x) if fails else x * 2

    training, other = training_of(function), training_of(function)
    for step in range(3):
        if step == 1:
            fails.append(True)
            with pytest.raises(OSError, match="disk"):
                training.step(batches_of(inputs), loss_of)
            fails.clear()
        training.step(batches_of(inputs), loss_of)
        other.step(batches_of(inputs), loss_of)
    assert all(torch.equal(one, two) for one, two in zip(everything(training), everything(other), strict=True))


def test_a_question_on_which_all_members_agree_is_answered() -> None:
    models = [nn.Sequential(nn.Linear(4, 4)) for _ in range(MEMBERS)]
    for model in models:
        model.register_forward_hook(lambda module, args, out: out * 2 if not bool(out.isnan().any()) else out)
    many, x = stack(models), torch.randn(2, 4)
    torch.testing.assert_close(many(x), torch.stack([model(x) for model in models]))
    assert many.mode.asked_values


def test_an_operator_without_a_rule_runs_member_by_member_and_is_named() -> None:
    models = [Body(lambda x: torch.linalg.matrix_exp(x[:4])).eval() for _ in range(MEMBERS)]
    many, x = stack(models), torch.randn(6, 4)
    torch.testing.assert_close(many(x), torch.stack([model(x) for model in models]))
    assert ("linalg_matrix_exp", "member by member: no rule for it", 1) in many.explain()


def test_a_function_of_the_models_own_keeps_its_backward() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(4, 4).double() for _ in range(MEMBERS)]
    many, inputs, original = stack(models), data(), Function.__dict__["apply"]
    with many.running() as module:
        out = Doubled.apply(module(Stack.wrap(inputs)), 2.0) * module.weight.sum()
        losses = out.square().mean()
    losses.merged().sum().backward()
    for index, model in enumerate(models):
        (Doubled.apply(model(inputs[index]), 2.0) * model.weight.sum()).square().mean().backward()
        for parameter, stacked in zip(model.parameters(), many.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[index], parameter.grad, rtol=1e-12, atol=1e-12)
    assert ("Doubled", "member by member: no rule for it", 1) in many.explain()
    assert Function.__dict__["apply"] is original


def test_a_function_of_the_models_own_is_left_alone_outside_of_stacks() -> None:
    many, x = stack([nn.Linear(2, 2)]), torch.ones(2, requires_grad=True)
    with many.running():
        Doubled.apply(x, 3.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_member_that_is_no_number_any_more_does_not_touch_the_others(bad: float, clip: float | None) -> None:
    inputs = data()
    well, ill = training_of(torch.sigmoid), training_of(torch.sigmoid)
    spoiled = inputs.clone()
    spoiled[1, 2, 3] = bad
    for _ in range(4):
        well.step(batches_of(inputs), loss_of, [clip] * MEMBERS)
        ill.step(batches_of(spoiled), loss_of, [clip] * MEMBERS)
    well.settle_all()
    ill.settle_all()
    assert not torch.isfinite(ill.models[1].layer.weight).all()
    for index in (0, 2):
        for one, other in zip(well.models[index].state_dict().values(), ill.models[index].state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_members_values_do_not_reach_what_outlives_a_run() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(2, 2), torch.zeros(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.seen[0] = self.layer(x).detach()[0]
            return self.seen * 1

    with pytest.raises(NotStackableError, match="a tensor that all members share"):
        stack([Remembering(), Remembering()])(torch.ones(3, 2))


def test_members_values_reach_tensors_that_the_model_makes_to_fill_them() -> None:
    def decoded(x: Tensor) -> Tensor:
        out, hidden = torch.zeros(5, *x.shape, dtype=x.dtype), x
        for step in range(5):
            hidden = torch.tanh(hidden * 2)
            out[step] = hidden
        kept = torch.ones(x.shape[0], dtype=x.dtype)
        kept[1] = x[1, 1]
        kept.mul_(3)
        return out * kept.unsqueeze(-1)

    models = [Body(decoded).eval() for _ in range(MEMBERS)]
    many, x = stack(models), torch.randn(6, 4)
    torch.testing.assert_close(many(x), torch.stack([model(x) for model in models]))


def test_a_buffer_that_is_replaced_keeps_its_new_value() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(x)
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
            self.count = self.count + 1
            return out - self.mean

    torch.manual_seed(0)
    models, x = [Averaging(), Averaging()], torch.randn(3, 2)
    many = stack(models)
    for _ in range(2):
        torch.testing.assert_close(many(x), torch.stack([model(x) for model in models]))
    for one, other in zip(models, many.unstack(), strict=True):
        torch.testing.assert_close(other.mean, one.mean)
        assert other.count == 2


def test_weights_written_in_place_by_the_model_itself_are_each_members_own() -> None:
    class Clipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.layer.weight.data.clamp_(-0.1, 0.1)
            with torch.no_grad():
                self.layer.bias.mul_(0.5)
            return self.layer(x)

    torch.manual_seed(0)
    models, x = [Clipping(), Clipping()], torch.randn(3, 2)
    many = stack(models)
    torch.testing.assert_close(many(x), torch.stack([model(x) for model in models]))
    for one, other in zip(models, many.unstack(), strict=True):
        assert torch.equal(one.layer.weight, other.layer.weight)
        assert torch.equal(one.layer.bias, other.layer.bias)


class Counting(nn.Module):
    """Its answers depend on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) / self.calls


def test_counts_of_a_model_go_on_when_members_are_stacked_anew_and_come_back_with_them() -> None:
    torch.manual_seed(0)
    models = [Counting().double() for _ in range(MEMBERS)]
    expected = [copy.deepcopy(model) for model in models]
    training = StackedTraining(models, [optim.SGD(model.parameters(), lr=0.1) for model in models])
    optimizers = [optim.SGD(model.parameters(), lr=0.1) for model in expected]
    for width in (3, 2, 1):
        training.rewiden(width)
        training.step(batches_of(data()), loss_of)
        for model, optimizer, x in zip(expected, optimizers, data(), strict=True):
            optimizer.zero_grad()
            F.mse_loss(model(x), torch.zeros(6, 4, dtype=torch.float64)).backward()
            optimizer.step()
    training.settle_all()
    for model, other in zip(models, expected, strict=True):
        assert model.calls == other.calls == 3
        torch.testing.assert_close(model.layer.weight, other.layer.weight, rtol=1e-12, atol=1e-12)


def test_a_member_whose_count_is_ahead_is_not_taken_for_one_of_the_others() -> None:
    models = [Counting().double() for _ in range(MEMBERS)]
    training = StackedTraining(models, [optim.SGD(model.parameters(), lr=0.1) for model in models])
    models[1](data()[0])
    with pytest.raises(NotStackableError, match="member 1 has calls=1, not 0 as the others"):
        training.take(1)


def test_what_a_model_notes_down_of_a_run_does_not_keep_it_from_coming_back() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last, self.notes = nn.Linear(2, 2), None, []

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.layer(x)
            self.notes.append(self.last.sum())
            return self.last

    many = stack([Noting(), Noting()])
    found = many(torch.ones(3, 2))
    one, other = many.unstack()
    assert torch.equal(one.last, found[0])
    assert torch.equal(other.notes[0], found[1].sum())


def test_a_view_of_a_tensor_to_fill_is_refused_where_it_would_be_left_behind() -> None:
    def viewed(x: Tensor) -> Tensor:
        out = torch.zeros(2, *x.shape)
        first = out[0]
        out[1] = x
        return first + out[1]

    with pytest.raises(NotStackableError, match="a tensor that all members share"):
        stack([Body(viewed).eval(), Body(viewed).eval()])(torch.ones(6, 4))


def test_a_stack_is_usable_by_copies_of_its_members_only() -> None:
    with pytest.raises(RuntimeError, match="outside its stack"):
        Stack.merge([torch.ones(2), torch.ones(2)]) + 1


def test_lazy_scripted_and_mixed_models_are_refused() -> None:
    with pytest.raises(NotStackableError, match="lazy"):
        stack([nn.LazyLinear(2), nn.LazyLinear(2)])
    with pytest.raises(NotStackableError, match="at least one"):
        stack([])
    with pytest.raises(NotStackableError, match="eval mode"):
        stack([nn.Dropout(), nn.Dropout().eval()])
    with pytest.raises(NotStackableError, match="weight lies channels-last"):
        stack([nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)])
    with pytest.raises(NotStackableError, match="TorchScript"):
        stack([torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))])
