import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from tests.unit.jobs import SCHEDULES
from unified.components import (
    OPTIMIZERS,
    build_loss,
    build_lr_scheduler,
    build_optimizer,
    needs_metric,
    select_output,
)
from unified.job_parts import LossSpec, LRSchedulerSpec, OptimizerSpec


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(3, 2, generator=generator)),
        nn.Parameter(torch.randn(2, 3, generator=generator)),
    ]


def train(params, optimizer, schedule=None, steps=6):
    """Some steps on fixed gradients, the schedule after each; returns the learning rates."""
    generator, rates = torch.Generator().manual_seed(1), []
    for step in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
        if schedule is not None:
            schedule.step(*[1.0 + step] if isinstance(schedule, ReduceLROnPlateau) else [])
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_and_saves_like_pytorchs_own(name):
    ours, theirs = parameters(), parameters()
    built, plain = build_optimizer(OptimizerSpec(name=name), ours), getattr(torch.optim, name)(theirs)
    train(ours, built)
    train(theirs, plain)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert built.defaults == plain.defaults
    assert built.state_dict()["param_groups"] == plain.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("name", "kwargs", "plain"),
    [
        (
            "SGD",
            {"lr": 0.1, "momentum": 0.9, "nesterov": True},
            {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        ),
        ("Adam", {"betas": [0.8, 0.9], "amsgrad": True}, {"betas": (0.8, 0.9), "amsgrad": True}),
        ("AdamW", {"foreach": False}, {"foreach": False}),
        ("AdamW", {"fused": True}, {"fused": True}),
        (
            "Rprop",
            {"etas": [0.4, 1.3], "step_sizes": [1e-5, 10]},
            {"etas": (0.4, 1.3), "step_sizes": (1e-5, 10)},
        ),
        ("Adafactor", {"eps": [None, 0.01]}, {"eps": (None, 0.01)}),
    ],
)
def test_arguments_of_an_optimizer_reach_pytorch(name, kwargs, plain):
    ours, theirs = parameters(), parameters()
    built = build_optimizer(OptimizerSpec(name=name, **kwargs), ours)
    reference = getattr(torch.optim, name)(theirs, **plain)
    train(ours, built)
    train(theirs, reference)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert built.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"ChainedScheduler", "SequentialLR", "OneCycleLR"}))
def test_a_schedule_goes_like_pytorchs_own(name):
    spec = LRSchedulerSpec(name=name, **SCHEDULES[name])
    ours, theirs = (torch.optim.SGD(parameters(), lr=0.1, momentum=0.9) for _ in range(2))
    built, plain = (
        build_lr_scheduler(spec, ours),
        getattr(torch.optim.lr_scheduler, name)(theirs, **SCHEDULES[name]),
    )
    rates = [train(optimizer.param_groups[0]["params"], optimizer, it) for optimizer, it in ((ours, built), (theirs, plain))]
    assert rates[0] == rates[1]
    assert type(built) is type(plain)


def test_schedules_made_of_others_go_like_pytorchs_own():
    ours, theirs = (torch.optim.SGD(parameters(), lr=0.1) for _ in range(2))
    built = build_lr_scheduler(LRSchedulerSpec(name="SequentialLR", **SCHEDULES["SequentialLR"]), ours)
    plain = SequentialLR(theirs, [LinearLR(theirs), CosineAnnealingLR(theirs, T_max=4)], milestones=[2])
    assert train(parameters(), ours, built) == train(parameters(), theirs, plain)

    ours, theirs = (torch.optim.SGD(parameters(), lr=0.1) for _ in range(2))
    built = build_lr_scheduler(LRSchedulerSpec(name="ChainedScheduler", **SCHEDULES["ChainedScheduler"]), ours)
    plain = ChainedScheduler([LinearLR(theirs), ExponentialLR(theirs, gamma=0.9)], optimizer=theirs)
    assert train(parameters(), ours, built) == train(parameters(), theirs, plain)


def test_one_cycle_is_as_long_as_the_job_unless_told():
    def rates(job_steps, **kwargs):
        optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
        schedule = build_lr_scheduler(
            LRSchedulerSpec(name="OneCycleLR", max_lr=0.1, **kwargs), optimizer, total_steps=job_steps
        )
        return train(parameters(), optimizer, schedule, steps=job_steps)

    theirs = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    plain = train(parameters(), theirs, OneCycleLR(theirs, max_lr=0.1, total_steps=7), steps=7)
    assert rates(7) == rates(7, total_steps=7) == rates(7, epochs=7, steps_per_epoch=1) == plain
    assert rates(1) == rates(1, total_steps=1)
    with pytest.raises(ValueError, match="OneCycleLR ends after 6 steps, but the job steps it 7 times"):
        rates(7, total_steps=6)


def test_no_schedule_is_none():
    assert build_lr_scheduler(None, torch.optim.SGD(parameters())) is None
    assert not needs_metric(None)


def test_only_a_schedule_that_follows_the_loss_needs_it():
    optimizer = torch.optim.SGD(parameters(), momentum=0.9)
    needing = {
        name
        for name, kwargs in SCHEDULES.items()
        if needs_metric(build_lr_scheduler(LRSchedulerSpec(name=name, **kwargs), optimizer, total_steps=9))
    }
    assert needing == {"ReduceLROnPlateau"}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("CrossEntropyLoss", {"weight": [0.1, 0.2, 0.7], "label_smoothing": 0.1}),
        ("CrossEntropyLoss", {"ignore_index": 0}),
        ("NLLLoss", {"weight": [1, 2, 3]}),
        ("MultiMarginLoss", {"weight": [1, 2, 3], "p": 2}),
    ],
)
def test_a_loss_of_classes_is_pytorchs_own(name, kwargs):
    plain = {key: torch.tensor(value, dtype=torch.float32) if key == "weight" else value for key, value in kwargs.items()}
    output, target = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 1, 0]),
    )
    expected = getattr(nn, name)(**plain)(output, target)
    torch.testing.assert_close(build_loss(LossSpec(name=name, **kwargs))(output, target), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("BCEWithLogitsLoss", {"pos_weight": [2.0], "reduction": "sum"}),
        ("BCEWithLogitsLoss", {"pos_weight": [1, 2, 3], "weight": [0.5, 1, 2]}),
        ("HuberLoss", {"delta": 0.5}),
        ("SmoothL1Loss", {"beta": 0.5}),
        ("KLDivLoss", {"reduction": "batchmean", "log_target": True}),
        ("PoissonNLLLoss", {"full": True}),
    ],
)
def test_a_loss_of_values_is_pytorchs_own(name, kwargs):
    plain = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    output = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    target = output.sigmoid()
    expected = getattr(nn, name)(**plain)(output, target)
    torch.testing.assert_close(build_loss(LossSpec(name=name, **kwargs))(output, target), expected, rtol=0, atol=0)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


A, B = torch.tensor(1.0), torch.tensor(2.0)


@pytest.mark.parametrize(
    ("output", "which"),
    [
        (A, None),
        ((A, B), None),
        ([A, B], None),
        (Pair(A, B), None),
        ({"loss": B, "logits": A}, None),
        (SimpleNamespace(logits=A), None),
        ((B, A), 1),
        ({"x": B, "y": A}, 1),
        ({"x": B, "y": A}, "y"),
        (Pair(B, A), "second"),
        (SimpleNamespace(out=A), "out"),
    ],
    ids=str,
)
def test_the_right_output_is_selected_not_copied(output, which):
    assert select_output(output, which) is A


def test_the_output_of_a_transformers_model_is_its_logits():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.SequenceClassifierOutput(loss=B, logits=A)
    assert select_output(output) is A
    assert select_output(output, "logits") is A
    assert select_output(output, 1) is A


@pytest.mark.parametrize(
    ("output", "which", "told"),
    [
        ({"out": A, "aux": B}, None, "a mapping with 'out', 'aux'"),
        ((), None, "a tuple of nothing"),
        ((3, A), None, "a tuple of int, Tensor"),
        (None, None, "a NoneType"),
        (A, 0, "output 0, got one tensor"),
        (A, "data", "output 'data', got one tensor"),
        ((A, B), 2, "output 2, got a tuple of Tensor, Tensor"),
        ({"x": A}, "y", "output 'y', got a mapping with 'x'"),
        (SimpleNamespace(), "forward", "output 'forward'"),
        (math.pi, None, "a float"),
    ],
    ids=str,
)
def test_an_output_that_is_not_there_is_told_with_what_is(output, which, told):
    with pytest.raises(TypeError, match="set 'output' to fit the model") as caught:
        select_output(output, which)
    assert told in str(caught.value)


def test_built_schedules_are_lr_schedulers():
    optimizer = torch.optim.SGD(parameters(), momentum=0.9)
    for name, kwargs in SCHEDULES.items():
        built = build_lr_scheduler(LRSchedulerSpec(name=name, **kwargs), optimizer, total_steps=9)
        assert isinstance(built, LRScheduler)
