import inspect
import warnings

import pytest
import torch
from torch import nn

from tests.unit.jobs import SCHEDULES
from unified.component_problems import component_problems
from unified.components import (
    LOSSES,
    LR_SCHEDULERS,
    OPTIMIZERS,
    UNFIT,
)
from unified.job_parts import LossSpec, LRSchedulerSpec, OptimizerSpec


def problems_of(kind, name, **kwargs):
    spec = {"loss": LossSpec, "optimizer": OptimizerSpec, "lr_scheduler": LRSchedulerSpec}[kind](name=name, **kwargs)
    return component_problems("job", **{kind: spec})


def test_every_class_of_pytorch_is_taken_or_refused_with_a_reason():
    schedules = set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"}
    assert schedules == set(LR_SCHEDULERS) | (schedules & set(UNFIT))
    assert schedules & set(UNFIT) == {"LambdaLR", "MultiplicativeLR"}
    optimizers = {name for name, kind in vars(torch.optim).items() if inspect.isclass(kind)} - {"Optimizer"}
    assert optimizers == set(OPTIMIZERS) | {"LBFGS", "SparseAdam"}
    losses = set(torch.nn.modules.loss.__all__)
    assert losses == set(LOSSES) | (losses & set(UNFIT))
    assert {"CTCLoss", "TripletMarginLoss", "CosineEmbeddingLoss", "GaussianNLLLoss"} <= set(UNFIT)


@pytest.mark.parametrize("name", sorted(UNFIT))
def test_what_is_unfit_is_refused_with_its_reason(name):
    kind = "loss" if "Loss" in name else "lr_scheduler" if name.endswith("LR") else "optimizer"
    (problem,) = problems_of(kind, name)
    assert (problem.code, problem.field, problem.remedy) == ("E-NAME", f"{kind}.name", UNFIT[name])


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("loss", name) for name in LOSSES), *(("optimizer", name) for name in OPTIMIZERS)],
)
def test_defaults_of_every_loss_and_optimizer_are_fine(kind, name):
    assert problems_of(kind, name) == []


@pytest.mark.parametrize(
    ("kind", "name", "kwargs"),
    [
        ("optimizer", "SGD", {"lr": 1, "momentum": 0.9, "nesterov": True}),
        ("optimizer", "AdamW", {"fused": True}),
        ("optimizer", "AdamW", {"capturable": True}),
        ("optimizer", "Adafactor", {"eps": [None, 0.01]}),
        ("loss", "CrossEntropyLoss", {"weight": [0.1, 0.2, 0.7], "label_smoothing": 0.1, "ignore_index": 0}),
        ("loss", "BCEWithLogitsLoss", {"pos_weight": [2.0], "reduction": "sum"}),
        ("loss", "BCEWithLogitsLoss", {"pos_weight": [1, 2, 3], "weight": [0.5, 1, 2]}),
        ("loss", "KLDivLoss", {"reduction": "batchmean", "log_target": True}),
        ("loss", "MultiMarginLoss", {"weight": [1, 2, 3], "p": 2}),
        ("lr_scheduler", "OneCycleLR", {"max_lr": [0.1], "epochs": 3, "steps_per_epoch": 5}),
        ("lr_scheduler", "CyclicLR", {"base_lr": [0.1], "max_lr": 1, "scale_fn": None}),
    ],
    ids=str,
)
def test_what_pytorch_takes_is_taken(kind, name, kwargs):
    assert problems_of(kind, name, **kwargs) == []


def test_an_example_stands_here_for_every_schedule():
    assert set(SCHEDULES) == set(LR_SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_every_schedule_is_fine_with_its_arguments(name, optimizer):
    found = component_problems(
        "job",
        optimizer=OptimizerSpec(name=optimizer, **{"momentum": 0.9} if optimizer == "SGD" else {}),
        lr_scheduler=LRSchedulerSpec(name=name, **SCHEDULES[name]),
    )
    assert found == []


@pytest.mark.parametrize(
    ("kind", "name", "kwargs", "expected"),
    [
        ("optimizer", "SGD", {"momentum": -1}, {("E-VALUE", "optimizer.momentum")}),
        ("optimizer", "SGD", {"nesterov": True, "momentum": 0.9, "lr": -1}, {("E-VALUE", "optimizer.lr")}),
        (
            "optimizer",
            "SGD",
            {"lr": -1, "momentum": -1, "weight_decay": -1, "nesterov": True, "maximise": True, "foreach": 1},
            {
                ("E-VALUE", "optimizer.lr"),
                ("E-VALUE", "optimizer.momentum"),
                ("E-VALUE", "optimizer.weight_decay"),
                ("E-VALUE", "optimizer.nesterov"),
                ("E-FIELD", "optimizer.maximise"),
                ("E-TYPE", "optimizer.foreach"),
            },
        ),
        (
            "optimizer",
            "Adam",
            {"betas": [1.5, 0.9], "eps": -1},
            {("E-VALUE", "optimizer.betas"), ("E-VALUE", "optimizer.eps")},
        ),
        ("optimizer", "Adam", {"betas": [0.9, 0.9, 0.9]}, {("E-VALUE", "optimizer.betas")}),
        ("optimizer", "Adam", {"betas": 0.9}, {("E-VALUE", "optimizer.betas")}),
        ("optimizer", "Adam", {"betas": [True, 0.9]}, {("E-TYPE", "optimizer.betas")}),
        ("optimizer", "Adam", {"differentiable": True}, {("E-VALUE", "optimizer.differentiable")}),
        ("optimizer", "Adam", {"fused": True, "foreach": True}, {("E-VALUE", "optimizer.fused")}),
        ("optimizer", "Adam", {"lr": None}, {("E-TYPE", "optimizer.lr")}),
        ("optimizer", "Adam", {"params": [1.0]}, {("E-FIELD", "optimizer.params")}),
        ("lr_scheduler", "StepLR", {}, {("E-MISSING", "lr_scheduler.step_size")}),
        ("lr_scheduler", "StepLR", {"step_size": 0}, {("E-VALUE", "lr_scheduler.step_size")}),
        ("lr_scheduler", "StepLR", {"step_size": 1.5}, {("E-TYPE", "lr_scheduler.step_size")}),
        (
            "lr_scheduler",
            "StepLR",
            {"step_size": 1, "last_epoch": 3},
            {("E-FIELD", "lr_scheduler.last_epoch")},
        ),
        ("lr_scheduler", "CosineAnnealingLR", {"T_max": 0}, {("E-VALUE", "lr_scheduler.T_max")}),
        (
            "lr_scheduler",
            "CyclicLR",
            {**SCHEDULES["CyclicLR"], "scale_fn": 3},
            {("E-TYPE", "lr_scheduler.scale_fn")},
        ),
        (
            "lr_scheduler",
            "OneCycleLR",
            {"pct_start": 7, "anneal_strategy": "no"},
            {
                ("E-MISSING", "lr_scheduler.max_lr"),
                ("E-VALUE", "lr_scheduler.pct_start"),
                ("E-VALUE", "lr_scheduler.anneal_strategy"),
            },
        ),
        ("lr_scheduler", "ReduceLROnPlateau", {"factor": 2.0}, {("E-VALUE", "lr_scheduler.factor")}),
        ("lr_scheduler", "SequentialLR", {"milestones": [1]}, {("E-MISSING", "lr_scheduler.schedulers")}),
        (
            "lr_scheduler",
            "SequentialLR",
            {**SCHEDULES["SequentialLR"], "milestones": [1, 2]},
            {("E-VALUE", "lr_scheduler.milestones")},
        ),
        (
            "lr_scheduler",
            "SequentialLR",
            {
                "schedulers": [3, "ReduceLROnPlateau", "StepLr", {"name": "StepLR", "every": "step"}],
                "milestones": [3],
            },
            {
                ("E-TYPE", "lr_scheduler.schedulers[0]"),
                ("E-VALUE", "lr_scheduler.schedulers[1]"),
                ("E-NAME", "lr_scheduler.schedulers[2].name"),
                ("E-FIELD", "lr_scheduler.schedulers[3].every"),
                ("E-MISSING", "lr_scheduler.schedulers[3].step_size"),
            },
        ),
        ("loss", "CrossEntropyLoss", {"label_smoothing": 2.0}, {("E-VALUE", "loss.label_smoothing")}),
        ("loss", "CrossEntropyLoss", {"weight": 3}, {("E-TYPE", "loss.weight")}),
        ("loss", "CrossEntropyLoss", {"weight": ["a"]}, {("E-VALUE", "loss.weight")}),
        ("loss", "CrossEntropyLoss", {"weight": [[1, 2], [3]]}, {("E-VALUE", "loss.weight")}),
        ("loss", "CrossEntropyLoss", {"weight": [[1, 2], [3, 4]]}, {("E-VALUE", "loss.weight")}),
        ("loss", "MSELoss", {"reduction": "none"}, {("E-VALUE", "loss.reduction")}),
        ("loss", "MSELoss", {"reduction": "average"}, {("E-VALUE", "loss.reduction")}),
        ("loss", "MSELoss", {"size_average": True}, {("E-FIELD", "loss.size_average")}),
        (
            "loss",
            "HuberLoss",
            {"delta": -1, "reduction": "x"},
            {("E-VALUE", "loss.delta"), ("E-VALUE", "loss.reduction")},
        ),
        (
            "loss",
            "BCEWithLogitsLoss",
            {"weight": [[1.0]] * 20_000, "pos_weight": [1.0] * 20_000},
            {("E-VALUE", "loss.weight")},
        ),
    ],
    ids=lambda part: str(part)[:30],
)
def test_whatever_pytorch_refuses_is_told_with_its_argument(kind, name, kwargs, expected):
    found = problems_of(kind, name, **kwargs)
    assert {(problem.code, problem.field) for problem in found} == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("optimizer", "adam", "Adam"),
        ("optimizer", "SDG", "SGD"),
        ("loss", "cross_entropy", "CrossEntropyLoss"),
        ("loss", "MSE", "MSELoss"),
        ("lr_scheduler", "CosineAnealingLR", "CosineAnnealingLR"),
    ],
)
def test_the_nearest_name_is_suggested(kind, name, meant):
    (problem,) = problems_of(kind, name)
    assert problem.remedy == f"did you mean '{meant}'?"


def test_the_reason_of_pytorch_is_told():
    (problem,) = problems_of("optimizer", "SGD", momentum=-1)
    assert str(problem) == (
        "[E-VALUE] job 'job': optimizer.momentum: expected what torch.optim.SGD accepts, got -1; "
        "trying it gave: Invalid momentum value: -1"
    )


def test_an_optimizer_is_tried_on_the_parameters_of_the_model():
    model, muon = nn.Linear(3, 2), OptimizerSpec(name="Muon")
    before = [param.clone() for param in model.parameters()]
    (problem,) = component_problems("job", optimizer=muon, params=model.parameters())
    assert problem.field == "optimizer"
    assert "Muon only supports 2D parameters" in problem.remedy
    assert component_problems("job", optimizer=muon, params=[model.weight]) == []
    torch.testing.assert_close([*model.parameters()], before, rtol=0, atol=0)


def test_a_schedule_is_tried_even_if_the_optimizer_is_wrong():
    found = component_problems(
        "job",
        optimizer=OptimizerSpec(name="Adamm"),
        lr_scheduler=LRSchedulerSpec(name="StepLR", step_size=0),
        loss=LossSpec(name="MSELoss", reduction="none"),
    )
    assert [problem.field for problem in found] == [
        "optimizer.name",
        "lr_scheduler.step_size",
        "loss.reduction",
    ]


def test_trying_draws_no_random_number_and_warns_of_nothing():
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, kwargs in SCHEDULES.items():
            problems_of("lr_scheduler", name, **kwargs)
        for name in LOSSES:
            problems_of("loss", name)
    assert torch.equal(torch.get_rng_state(), state)
