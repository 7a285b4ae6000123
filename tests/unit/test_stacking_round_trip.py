"""What goes into a stack comes out of it again: names, values, types, flags, ties, modes, hooks, and no memory in common."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusion.stacking.choices import Choices
from fusion.stacking.errors import NotStackableError
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.stack import Stack, stack
from tests.unit.stacked_models import MODELS
from tests.unit.stacked_training import of_dtype, varied
from tests.zoo import Case, call


class Everything(nn.Module):
    """All that a module can have beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.scale = nn.Parameter(torch.randn(()), requires_grad=False)
        self.short = nn.Parameter(torch.randn(3, dtype=torch.float16))
        self.register_buffer("count", torch.randint(9, (1,)))
        self.register_buffer("positions", torch.randn(2, 4), persistent=False)
        self.register_buffer("nothing", None)
        self.norm = nn.BatchNorm1d(4).eval()
        self.rest = {"name": "everything", "sizes": [1, 2], "activation": F.gelu}
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.list = nn.ParameterList([torch.randn(2), torch.randn(2)])
        self.same = self.head

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rest["activation"](self.embed(ids)) * self.scale) + self.list[0].sum() * self.list[1].sum()


def doubled(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return out * 2


def everything() -> nn.Module:
    model = Everything()
    model.register_forward_hook(doubled)
    return model


MADE: dict[str, Callable[[], nn.Module]] = {
    "everything": everything,
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), nn.BatchNorm2d(3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "multi-head": lambda: nn.MultiheadAttention(8, 2),
    **{name: functools.partial(lambda make: make().model, make) for name, make in MODELS.items()},
}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert type(one).__qualname__ == type(other).__qualname__  # a parametrized layer has a class of its own
    assert list(one.state_dict()) == list(other.state_dict())
    ours, theirs = tensors(one), tensors(other)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name])
        assert type(value) is type(theirs[name])
        facts = [(each.dtype, each.device, each.requires_grad, each.stride(), each.grad) for each in (value, theirs[name])]
        assert facts[0] == facts[1]
    ties = [{(a, b) for a, b in itertools.combinations(each, 2) if each[a] is each[b]} for each in (ours, theirs)]
    assert ties[0] == ties[1]
    for (name, mine), (path, yours) in zip(one.named_modules(), other.named_modules(), strict=True):
        assert (name, mine.training, set(vars(mine))) == (path, yours.training, set(vars(yours)))
        assert list(mine._forward_hooks.values()) == list(yours._forward_hooks.values())


def storages(model: nn.Module) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in tensors(model).values() if value.numel()}


@pytest.mark.parametrize("name", MADE)
def test_unstack_is_the_inverse_of_stack(name: str) -> None:
    torch.manual_seed(0)
    models = [MADE[name]() for _ in range(3)]
    before = [copy.deepcopy(model) for model in models]
    many = stack(models)
    made = many.unstack()
    for model, other, kept in zip(models, made, before, strict=True):
        assert_same(model, other)
        assert_same(model, kept)
    everyone = [storages(each) for each in (*models, *made, many)]
    assert all(not one & other for one, other in itertools.combinations(everyone, 2))


def test_recurrent_layers_go_on_as_if_they_had_never_been_in_a_stack() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)
    other = copy.deepcopy(stack([model, copy.deepcopy(model)]).unstack()[1])
    assert torch.equal(model(x)[0], other(x)[0])
    torch.testing.assert_close(other.double()(x.double())[0], model.double()(x.double())[0])
    other.weight_hh_l0 = nn.Parameter(torch.zeros_like(other.weight_hh_l0))
    assert other._flat_weights[1] is other.weight_hh_l0


def test_what_a_stack_holds_is_in_its_state_dict_and_moves_with_it() -> None:
    torch.manual_seed(0)
    many, other = (stack([everything() for _ in range(2)]) for _ in range(2))
    assert "positions" not in many.state_dict()
    other.load_state_dict(many.state_dict())
    assert torch.equal(other.unstack()[1].embed.weight, many.unstack()[1].embed.weight)
    many.double()
    assert many.unstack()[0].scale.dtype == torch.float64
    assert many(torch.tensor([[1, 2]])).dtype == torch.float64


def test_train_and_eval_reach_all_members() -> None:
    many = stack([nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train() for _ in range(2)])
    assert torch.equal(many.eval()(torch.ones(1, 2)), many(torch.ones(1, 2)))
    assert not many.unstack()[0][1].training
    assert many.train().unstack()[0][1].training


def test_set_member_is_strict_and_changes_one_member_alone() -> None:
    torch.manual_seed(0)
    models, other = [everything() for _ in range(3)], everything()
    many = stack(models)
    many.set_member(1, other.state_dict())
    kept, changed, last = many.unstack()
    assert_same(kept, models[0])
    assert_same(last, models[2])
    assert all(torch.equal(value, changed.state_dict()[name]) for name, value in other.state_dict().items())
    wrong = dict(other.state_dict())
    del wrong["scale"]
    with pytest.raises(KeyError, match="member 0: missing \\['scale'\\], unknown nothing"):
        many.set_member(0, wrong)
    with pytest.raises(KeyError, match="unknown \\['more'\\]"):
        many.set_member(0, other.state_dict() | {"more": torch.zeros(1)})
    with pytest.raises(ValueError, match="member 0: count has shape \\(2,\\), not \\(1,\\)"):
        many.set_member(0, other.state_dict() | {"count": torch.zeros(2)})
    assert_same(many.unstack()[0], models[0])


def test_members_are_kept_joined_and_refused_by_what_they_are() -> None:
    torch.manual_seed(0)
    models, late = [everything() for _ in range(3)], everything()
    many = stack(models)
    many.select([2, 0])
    many.append([late], MemberRandom.seeded([9], torch.device("cpu")))
    for found, expected in zip(many.unstack(), (models[2], models[0], late), strict=True):
        assert_same(found, expected)
    with pytest.raises(NotStackableError, match="module the model"):
        many.append([nn.Linear(2, 2)], MemberRandom.seeded([9], torch.device("cpu")))
    assert many.num_members == 3


def test_inputs_are_one_for_all_or_each_members_own() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(3, 2) for _ in range(3)]
    many, inputs = stack(models), [torch.randn(4, 3) for _ in range(3)]
    torch.testing.assert_close(many.each(inputs), torch.stack([m(x) for m, x in zip(models, inputs, strict=True)]))
    torch.testing.assert_close(many(Stack.merge(inputs)), many.each(inputs))
    torch.testing.assert_close(many.each([{"input": x} for x in inputs]), many.each([(x,) for x in inputs]))
    torch.testing.assert_close(many(inputs[0]), torch.stack([model(inputs[0]) for model in models]))
    with pytest.raises(ValueError, match="an input for each of 3 members, got 2"):
        many.each(inputs[:2])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return out.max(1).values


@pytest.mark.parametrize("is_own", [False, True])
def test_packed_sequences_of_the_same_lengths_run_member_by_member(*, is_own: bool) -> None:
    torch.manual_seed(0)
    models, lengths = [Packed().double() for _ in range(3)], torch.tensor([3, 6, 2, 5])
    x = torch.randn(3, 4, 6, 3, dtype=torch.float64)
    many = stack(models)
    found = many(Stack.wrap(x), Stack.merge([lengths] * 3) if is_own else lengths)
    expected = torch.stack([model(own, lengths) for model, own in zip(models, x, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    expected.square().sum().backward()
    for index, model in enumerate(models):
        for one, other in zip(many.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one.grad[index], other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lenet", "encoder", "gpt2"])
def test_autocast_casts_in_a_stack_what_it_casts_alone(name: str) -> None:
    case: Case = MODELS[name]()
    models = [model.eval() for model in varied(case.model, 2, torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(call(stack(models, choices=Choices(forced=("grouped",))), case.inputs))
        expected = torch.stack([logits(call(model, case.inputs)) for model in models])
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)  # a few roundings of bfloat16, 4e-3 each; same dtype


PARAMETRIZED = ("weight norm", "spectral norm", "orthogonal")
SHAPES = {"weight norm": (5, 3), "spectral norm": (2, 2, 6, 6), "orthogonal": (5, 3)}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_layers_train_as_each_alone(name: str) -> None:
    torch.manual_seed(0)
    models = [MADE[name]().double().train() for _ in range(2)]
    many, x = stack(models), torch.randn(SHAPES[name], dtype=torch.float64)
    for _ in range(2):
        found = many(x)
        found.square().sum().backward()
        for index, model in enumerate(models):
            expected = model(x)
            expected.square().sum().backward()
            torch.testing.assert_close(found[index], expected, rtol=1e-11, atol=1e-12)  # sums of a few dozen numbers
    for index, model in enumerate(models):
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for key, value in many.member_tensors(index).items():
            torch.testing.assert_close(value, values[key].detach(), rtol=1e-11, atol=1e-12)
        for each in many.stacked:
            gradient = dict(model.named_parameters())[each.name].grad
            if gradient is not None:
                torch.testing.assert_close(each.row(each.tensor.grad, index), gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "lenet", "depthwise", "resnet18", "encoder", "gpt2"])
def test_answers_and_gradients_are_those_of_vmap(name: str) -> None:
    case: Case = MODELS[name]()
    models = varied(case.model, 3, torch.float64)
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
    if name == "gpt2":
        models = [model.eval() for model in models]
    inputs, _ = of_dtype(case.draw, torch.float64)(4)
    parameters, buffers = stack_module_state(models)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        mapped = torch.vmap(lambda p, b: logits(functional_call(models[0], (p, b), *given(inputs))), randomness="error")
        expected = mapped(parameters, buffers)
    expected.square().mean().backward()
    many = stack(models, choices=Choices(forced=("grouped",)))
    found = logits(call(many, inputs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    found.square().mean().backward()
    for each in many.stacked:
        if parameters[each.name].grad is not None:
            scale = parameters[each.name].grad.abs().max().item()
            torch.testing.assert_close(each.tensor.grad, parameters[each.name].grad, rtol=0, atol=1e-9 * scale + 1e-13)


def given(inputs: object) -> tuple[tuple, dict]:
    return ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})


def logits(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output["logits"]
