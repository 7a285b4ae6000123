"""What may be one stack, and what is told apart with a message that names the difference."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fusion.stacking.errors import NotStackableError
from fusion.stacking.signature import difference, digest
from fusion.stacking.stack import stack
from tests.zoo import LeNet, encoder, lenet, mlp
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import export


class Holder(nn.Linear):
    """A layer with one more attribute."""

    def __init__(self, value: object) -> None:
        super().__init__(2, 2)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def apply(self, x: Tensor) -> Tensor:
        return x * self.scale


def scaled(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * scale


def tied(*, is_tied: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if is_tied:
        model[1].weight = model[0].weight
    return model


def frozen() -> nn.Module:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    return model


def buffered(*, persistent: bool = True, size: int = 2) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("offset", torch.zeros(size), persistent=persistent)
    return model


def half_frozen(*, is_training: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].train(is_training)
    return model


def hooked(hook: Callable) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_forward_hook(hook)
    return model


def other_method(x: Tensor) -> Tensor:
    return x


#: what differs -> (what the message says of it, one, other)
DIFFERENT: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "width": ("out_features", lambda: nn.Linear(3, 2), lambda: nn.Linear(3, 4)),
    "class": ("ReLU", lambda: nn.Sequential(nn.ReLU()), lambda: nn.Sequential(nn.GELU())),
    "number": ("0.p: 0.1 against 0.p: 0.2", lambda: nn.Sequential(nn.Dropout(0.1)), lambda: nn.Sequential(nn.Dropout(0.2))),
    "function": ("activation", *(lambda f=f: nn.TransformerEncoderLayer(4, 2, 4, activation=f) for f in (F.relu, F.gelu))),
    "partial": (
        "tanh",
        lambda: Holder(functools.partial(F.gelu, approximate="tanh")),
        lambda: Holder(functools.partial(F.gelu)),
    ),
    "closure": ("value", lambda: Holder(scaled(2.0)), lambda: Holder(scaled(3.0))),
    "lambda": ("value", lambda: Holder(lambda x: x + 1), lambda: Holder(lambda x: x - 1)),
    "method": ("value", lambda: Holder(Slotted(1.0).apply), lambda: Holder(Slotted(2.0).apply)),
    "slots": ("2.0", lambda: Holder(Slotted(1.0)), lambda: Holder(Slotted(2.0))),
    "range": ("value", lambda: Holder(range(3)), lambda: Holder(range(4))),
    "array": ("value", lambda: Holder(np.arange(5000)), lambda: Holder(np.arange(1, 5001))),
    "deque": ("value", lambda: Holder(deque([1, 2])), lambda: Holder(deque([1, 3]))),
    "path": ("value", lambda: Holder(Path("a")), lambda: Holder(Path("b"))),
    "tensor": ("tensor", lambda: Holder(torch.zeros(2)), lambda: Holder(torch.ones(2))),
    "far down": ("'b': 2", lambda: Holder({"a": "x" * 300, "b": 1}), lambda: Holder({"a": "x" * 300, "b": 2})),
    "buffer": ("buffer offset: (2,)", buffered, lambda: buffered(size=3)),
    "persistence": ("not persistent", buffered, lambda: buffered(persistent=False)),
    "ties": ("1.weight is 0.weight", lambda: tied(is_tied=True), lambda: tied(is_tied=False)),
    "frozen": ("frozen", lambda: nn.Linear(2, 2), frozen),
    "type": ("float64", lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).double()),
    "bias": ("parameter bias", lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2, bias=False)),
    "mode of a part": ("mode", lambda: half_frozen(is_training=True), lambda: half_frozen(is_training=False)),
    "hook": ("hooks", lambda: hooked(lambda m, a, out: out * 2), lambda: hooked(lambda m, a, out: out * 3)),
    "hooked": ("hooks", lambda: nn.Linear(2, 2), lambda: hooked(lambda m, a, out: out)),
    "loose module": ("value", lambda: Holder([nn.Linear(2, 2)]), lambda: Holder([nn.Linear(2, 2)])),
    "parametrized": ("module", lambda: nn.Linear(2, 2), lambda: parametrizations.weight_norm(nn.Linear(2, 2))),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_models_that_differ_are_told_apart_by_what_differs(name: str) -> None:
    said, one, other = DIFFERENT[name]
    assert said in (difference(one(), other()) or "")
    with pytest.raises(NotStackableError, match="model 1 is not of the architecture of model 0"):
        stack([one(), other()])


EQUAL: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp().model,
    "lenet": LeNet,
    "encoder": lambda: encoder().model,
    "closure": lambda: Holder(scaled(2.0)),
    "partial": lambda: Holder(functools.partial(F.gelu, approximate="tanh")),
    "array": lambda: Holder(np.arange(5)),
    "objects": lambda: Holder([Slotted(1.0), range(3), {1, 2}, deque([1])]),
    "tied": lambda: tied(is_tied=True),
    "lstm": lambda: nn.LSTM(2, 3),
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "hooked": lambda: hooked(scaled(2.0)),
}


@pytest.mark.parametrize("name", EQUAL)
def test_models_that_differ_in_weights_alone_are_equal(name: str) -> None:
    one, other = EQUAL[name](), EQUAL[name]()
    assert difference(one, other) is None
    assert digest(one) == digest(other)


def test_a_weight_kept_in_a_second_place_that_no_stack_would_fill_is_refused() -> None:
    def holding() -> nn.Module:
        torch.manual_seed(0)
        model = Holder(None)
        model.value = {"again": [model.weight]}
        return model

    with pytest.raises(NotStackableError, match=r"attribute 'value' of the model holds the tensor weight"):
        stack([holding(), holding()])


def test_archives_of_one_architecture_are_equal_and_others_are_not(tmp_path: Path) -> None:
    def archived(model: nn.Module, inputs: object, name: str) -> nn.Module:
        return load_umodel(export(model, inputs, tmp_path / name))

    given = lenet()
    other, wider = LeNet(), LeNet()
    wider.drop = nn.Dropout(0.3)
    one, same, not_same = (
        archived(model, given.inputs, f"{index}.umodel") for index, model in enumerate((given.model, other, wider))
    )
    assert difference(one, same) is None
    assert "graph train" in (difference(one, not_same) or "")
    small = mlp()
    assert "inputs" in (difference(one, archived(small.model, small.inputs, "mlp.umodel")) or "")


def test_archives_with_other_constants_are_told_apart(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.layer, self.shift = nn.Linear(2, 2), torch.full((2,), shift)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.shift

    loaded = [
        load_umodel(export(Shifted(s), torch.zeros(3, 2), tmp_path / f"{i}.umodel")) for i, s in enumerate((1.0, 1.0, 2.0))
    ]
    assert difference(loaded[0], loaded[1]) is None
    assert "constant 0" in (difference(loaded[0], loaded[2]) or "")
