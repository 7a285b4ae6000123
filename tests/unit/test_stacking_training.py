"""A stack trains its members as each would train alone: the contract, held against a loop in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn, optim

from tests.unit.stacked_models import MODELS
from tests.unit.stacked_training import OPTIMIZERS, Alone, Draw, Pair, alone, between, of_dtype, varied
from tests.zoo import Case
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import export

STEPS = 50
TOLERANCE = 1e-12
#: An optimizer for the long run of each model; the others make a short one.
LONG = {
    "mlp": "sgd", "lenet": "adam", "conv, norm, dropout": "adamw", "depthwise": "sgd", "encoder": "adam", "bert": "adamw",
    "lstm": "sgd", "gpt2": "adamw",
}  # fmt: skip
VARIANTS = ("loop", "grouped", "grouped, channels-last", "one cell for all members")
HAS_VARIANTS = ("lenet", "conv, norm, dropout", "depthwise", "lstm")
#: What 10 steps in float32 may differ by: about ten times what they do, several roundings of 6e-8, and more behind norms.
SINGLE = {
    "mlp": 2e-6, "lenet": 5e-6, "conv, norm, dropout": 3e-5, "depthwise": 5e-5, "encoder": 1e-5, "bert": 5e-6, "lstm": 3e-6,
    "gpt2": 2e-5,
}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> Callable[[str], Case]:
    made: dict[str, Case] = {}
    return lambda name: made.setdefault(name, MODELS[name]())


def double(case: Case, count: int = 3) -> tuple[list[nn.Module], Draw]:
    return varied(case.model, count, torch.float64), of_dtype(case.draw, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_fifty_steps_are_those_of_each_member_alone(name: str, cases: Callable[[str], Case]) -> None:
    pair = Pair(*double(cases(name)), LONG[name])
    for _ in range(STEPS):
        pair.step()
    assert pair.worst_loss <= TOLERANCE
    assert pair.difference() <= TOLERANCE


@pytest.mark.parametrize(("name", "optimizer"), [(n, o) for n in LONG for o in OPTIMIZERS if o != LONG[n]])
def test_a_few_steps_of_every_other_optimizer_are_so_too(name: str, optimizer: str, cases: Callable[[str], Case]) -> None:
    pair = Pair(*double(cases(name), 2), optimizer)
    for _ in range(5):
        pair.step()
    assert pair.difference() <= TOLERANCE


@pytest.mark.slow
def test_fifty_steps_of_resnet18_are_so_where_training_is_not_chaotic(cases: Callable[[str], Case], monkeypatch) -> None:
    """Batches of 8 and small steps: a change of the last bit of its weights grows to 3e-13 in 50 steps, and so does ours."""
    monkeypatch.setattr("tests.unit.stacked_training.BATCH", 8)
    gentle = lambda model, i: optim.SGD(model.parameters(), lr=0.002 * (i + 1), momentum=0.9 / (i + 1))  # noqa: E731
    monkeypatch.setitem(OPTIMIZERS, "gentle", gentle)
    models, draw = double(cases("resnet18"), 2)
    pair = Pair(models, draw, "gentle", forced=("grouped",))
    for _ in range(STEPS):
        pair.step()
    assert pair.difference() <= TOLERANCE


@pytest.mark.slow
def test_where_training_is_chaotic_a_stack_differs_less_than_a_last_bit_does(cases: Callable[[str], Case]) -> None:
    """ResNet-18's deepest norms, over 4 samples of 2 x 2, multiply any rounding: one of the last bit in all weights, too."""
    models, draw = double(cases("resnet18"), 2)
    nudged = [copy.deepcopy(model) for model in models]
    with torch.no_grad():
        for parameter in (parameter for model in nudged for parameter in model.parameters()):
            parameter.mul_(1 + 2.2e-16 * torch.sign(parameter))
    pair, others = Pair(models, draw, "sgd"), alone(nudged, draw, "sgd")
    for _ in range(10):
        pair.step()
        for other in others:
            other.step(other.batch())
    apart = max(between(one, other) for one, other in zip(pair.alone, others, strict=True))
    assert pair.difference() <= max(10 * apart, TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", HAS_VARIANTS)
def test_every_variant_of_an_operator_trains_alike(name: str, variant: str, cases: Callable[[str], Case]) -> None:
    pair = Pair(*double(cases(name), 2), "sgd", forced=(variant, "grouped"))
    for _ in range(4):
        pair.step()
    assert pair.difference() <= TOLERANCE


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "conv, norm, dropout", "encoder"])
def test_members_come_and_go_and_step_alone_in_between(name: str, optimizer: str, cases: Callable[[str], Case]) -> None:
    case = cases(name)
    if name.startswith("conv"):  # its second norm counts its batches, which members that join later have fewer of
        case.model.norm2.momentum = 0.2
    models, draw = double(case, 5)
    *models, late = models
    pair = Pair(models, draw, optimizer, width=2)
    gone: list[tuple[Alone, Alone]] = []
    for step in range(8):
        pair.step()
        if step == 1:
            pair.step_alone(2)
        if step == 2:
            gone.append(pair.leave(1))
        if step == 3:
            pair.join(late, draw, optimizer, 5)
            pair.step_alone(3)
        if step == 4:
            pair.training.rewiden(3)
        if step == 5:
            gone.append(pair.leave(0))
    for one, other in gone:
        batch = one.batch()
        one.step(batch)
        other.step(batch)
    assert pair.difference() <= TOLERANCE
    assert max(between(one, other) for one, other in gone) <= TOLERANCE


@pytest.mark.parametrize("name", SINGLE)
def test_single_precision_stays_within_its_bound(name: str, cases: Callable[[str], Case]) -> None:
    case = cases(name)
    pair = Pair(varied(case.model, 2, torch.float32), case.draw, LONG[name])
    for _ in range(10):
        pair.step()
    assert pair.difference() <= SINGLE[name]


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Callable[[str], tuple[Case, Path]]:
    folder, made = tmp_path_factory.mktemp("archives"), {}

    def get(name: str) -> tuple[Case, Path]:
        if name not in made:
            case = MODELS[name]()
            if name.startswith("conv"):  # a momentum of None asks how many batches there were, which no archive can
                case.model.norm2.momentum = 0.2
            inputs = of_dtype(case.draw, torch.float64)(4)[0]
            made[name] = case, export(case.model.double(), inputs, folder / "model.umodel")
        return made[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LONG))
def test_graphs_of_archives_train_as_one_like_each_alone(name: str, archives: Callable[[str], tuple[Case, Path]]) -> None:
    case, path = archives(name)
    models = varied(load_umodel(path), 3, torch.float64)
    pair = Pair(models, of_dtype(case.draw, torch.float64), LONG[name], width=2)
    for _ in range(5):
        pair.step()
    assert pair.difference() <= TOLERANCE
