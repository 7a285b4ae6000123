"""Jobs to try things on: the published example, its one-mistake variants, and any job at all."""

import copy

from hypothesis import strategies as st

from unified.metrics import METRIC_NAMES

LENET = {
    "name": "lenet-fashion",
    "user": "alice",
    "model": "lenet.umodel",
    "data": {"train": "fashion-train.pt", "test": "fashion-test.pt"},
    "loss": "CrossEntropyLoss",
    "metrics": ["accuracy"],
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9},
    "lr_scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.7, "every": "epoch"},
    "epochs": 3,
    "batch_size": 64,
    "drop_last": False,
    "clip_grad_norm": None,
    "seed": 0,
    "priority": 0,
    "deadline_seconds": None,
    "deadline_kind": "hard",
    "early_stopping": {"metric": "accuracy", "patience": 5},
    "checkpoint": {"every_steps": 500},
    "precision": "fp32",
    "stacking": "auto",
}


def changed(**fields):
    """The example job with other fields; a field of ... is left out."""
    job = copy.deepcopy(LENET) | fields
    return {field: value for field, value in job.items() if value is not ...}


# Each row: what is changed in the example, and the code and the field of the one problem that results.
ONE_PROBLEM = [
    ({"name": ...}, "E-MISSING", "name"),
    ({"name": ""}, "E-VALUE", "name"),
    ({"name": "../etc"}, "E-VALUE", "name"),
    ({"name": "-x"}, "E-VALUE", "name"),
    ({"name": "a\n"}, "E-VALUE", "name"),
    ({"name": "a" * 101}, "E-VALUE", "name"),
    ({"name": 3}, "E-TYPE", "name"),
    ({"user": ""}, "E-VALUE", "user"),
    ({"user": "al\x1b[2Jice"}, "E-VALUE", "user"),
    ({"model": ...}, "E-MISSING", "model"),
    ({"model": None}, "E-TYPE", "model"),
    ({"model": ""}, "E-VALUE", "model"),
    ({"model": "a\0b"}, "E-VALUE", "model"),
    ({"model": ["a"]}, "E-TYPE", "model"),
    ({"data": "train.pt"}, "E-TYPE", "data"),
    ({"data": {"train": 3}, "early_stopping": None}, "E-TYPE", "data.train"),
    ({"data": {"test": "a.pt"}}, "E-MISSING", "data.train"),
    ({"data": {"train": "a.pt", "test": "b.pt", "validation": "c"}}, "E-FIELD", "data.validation"),
    ({"data": {"train": "a", "test": "b", "tokenizer": "t"}}, "E-MISSING", "data.columns"),
    ({"data": {"train": "a", "test": "b", "max_length": 128}}, "E-MISSING", "data.tokenizer"),
    (
        {"data": {"train": "a", "test": "b", "columns": {"inputs": [], "targets": "y"}}},
        "E-TYPE",
        "data.columns.inputs",
    ),
    ({"data": {"train": "a", "test": "b", "columns": {"inputs": "x"}}}, "E-MISSING", "data.columns.targets"),
    ({"loss": 3}, "E-TYPE", "loss"),
    ({"loss": {"weight": [1.0]}}, "E-MISSING", "loss.name"),
    ({"loss": "crossentropyloss"}, "E-NAME", "loss.name"),
    ({"loss": {"name": "CrossEntropyLoss", "label_smoothing": 2}}, "E-VALUE", "loss.label_smoothing"),
    ({"loss": {"name": "CrossEntropyLoss", "reduction": "none"}}, "E-VALUE", "loss.reduction"),
    ({"metrics": "accuracy", "early_stopping": None}, "E-TYPE", "metrics"),
    ({"metrics": [3], "early_stopping": None}, "E-TYPE", "metrics[0]"),
    ({"metrics": ["accuracy", "acuracy"]}, "E-NAME", "metrics[1]"),
    ({"metrics": ["accuracy", "accuracy"]}, "E-VALUE", "metrics[1]"),
    ({"optimizer": ...}, "E-MISSING", "optimizer"),
    ({"optimizer": {"name": "SGD", "lr": float("inf")}}, "E-VALUE", "optimizer.lr"),
    ({"optimizer": {"name": "SGD", "lr": 2**70}}, "E-VALUE", "optimizer.lr"),
    ({"optimizer": {"name": "SGD", "lr": "0.1"}}, "E-TYPE", "optimizer.lr"),
    ({"optimizer": {"name": "SGD", "lr": True}}, "E-TYPE", "optimizer.lr"),
    ({"optimizer": {"name": "SGD", "lr": -1}}, "E-VALUE", "optimizer.lr"),
    ({"optimizer": {"name": "SGD", "momentun": 0.9}}, "E-FIELD", "optimizer.momentun"),
    ({"optimizer": {"name": "SGD", "nesterov": True}}, "E-VALUE", "optimizer.nesterov"),
    ({"optimizer": {"name": "LBFGS"}}, "E-NAME", "optimizer.name"),
    ({"optimizer": {"name": "SGD", **{f"a{i}": 1 for i in range(99)}}}, "E-VALUE", "optimizer"),
    ({"optimizer": {"name": "SGD", "lr": [[[[[[[[[[1]]]]]]]]]]}}, "E-VALUE", "optimizer.lr"),
    ({"lr_scheduler": "StepLR"}, "E-MISSING", "lr_scheduler.step_size"),
    ({"lr_scheduler": {"name": "StepLR", "step_size": 1, "every": "batch"}}, "E-VALUE", "lr_scheduler.every"),
    ({"lr_scheduler": {"name": "ReduceLROnPlateau", "every": "step"}}, "E-VALUE", "lr_scheduler.every"),
    (
        {"lr_scheduler": {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 2}},
        "E-VALUE",
        "lr_scheduler.total_steps",
    ),
    ({"epochs": ...}, "E-MISSING", "epochs"),
    ({"epochs": None}, "E-MISSING", "epochs"),
    ({"max_steps": 5}, "E-VALUE", "max_steps"),
    ({"epochs": 0}, "E-VALUE", "epochs"),
    ({"epochs": True}, "E-TYPE", "epochs"),
    ({"epochs": 3.0}, "E-TYPE", "epochs"),
    ({"epochs": 2**64}, "E-VALUE", "epochs"),
    ({"batch_size": "3"}, "E-TYPE", "batch_size"),
    ({"batch_size": -1}, "E-VALUE", "batch_size"),
    ({"batch_size": None}, "E-TYPE", "batch_size"),
    ({"drop_last": 1}, "E-TYPE", "drop_last"),
    ({"clip_grad_norm": 0}, "E-VALUE", "clip_grad_norm"),
    ({"clip_grad_norm": float("nan")}, "E-VALUE", "clip_grad_norm"),
    ({"clip_grad_norm": float("inf")}, "E-VALUE", "clip_grad_norm"),
    ({"clip_grad_norm": True}, "E-TYPE", "clip_grad_norm"),
    ({"seed": -1}, "E-VALUE", "seed"),
    ({"priority": 1.5}, "E-TYPE", "priority"),
    ({"deadline_seconds": -3}, "E-VALUE", "deadline_seconds"),
    ({"deadline_kind": "firm"}, "E-VALUE", "deadline_kind"),
    ({"early_stopping": {"metric": "acuracy", "patience": 1}}, "E-NAME", "early_stopping.metric"),
    ({"early_stopping": {"metric": "mae", "patience": 1}}, "E-VALUE", "early_stopping.metric"),
    ({"early_stopping": {"metric": "accuracy", "patience": 0}}, "E-VALUE", "early_stopping.patience"),
    ({"early_stopping": {"metric": "accuracy"}}, "E-MISSING", "early_stopping.patience"),
    ({"data": {"train": "a"}}, "E-VALUE", "early_stopping.metric"),
    ({"checkpoint": {"every_steps": 0}}, "E-VALUE", "checkpoint.every_steps"),
    ({"precision": "fp8"}, "E-VALUE", "precision"),
    ({"stacking": None}, "E-VALUE", "stacking"),
    ({"on_nan": "ignore"}, "E-VALUE", "on_nan"),
    ({"output": True}, "E-TYPE", "output"),
    ({"output": -1}, "E-VALUE", "output"),
    ({"nme": 3}, "E-FIELD", "nme"),
]


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
RATES = st.floats(1e-6, 1.0)
LOSSES = st.one_of(
    st.sampled_from(["MSELoss", "L1Loss", "BCEWithLogitsLoss"]),
    st.fixed_dictionaries(
        {"name": st.just("CrossEntropyLoss"), "weight": st.lists(RATES, min_size=1, max_size=4)},
        optional={"label_smoothing": st.floats(0, 1), "ignore_index": st.integers(-100, -1)},
    ),
)
OPTIMIZERS = st.one_of(
    st.sampled_from(["SGD", "AdamW", {"name": "RMSprop"}]),
    st.fixed_dictionaries(
        {"name": st.just("Adam")},
        optional={
            "lr": RATES,
            "betas": st.tuples(RATES, RATES).filter(lambda pair: max(pair) < 1),
            "amsgrad": st.booleans(),
        },
    ),
)
SCHEDULES = st.one_of(
    st.none(),
    st.just({"name": "OneCycleLR", "max_lr": [0.1], "every": "step"}),
    st.fixed_dictionaries(
        {"name": st.just("MultiStepLR"), "milestones": st.lists(st.integers(1, 99), max_size=4)},
        optional={"every": st.sampled_from(["epoch", "step"]), "gamma": RATES},
    ),
)
TABLES = st.fixed_dictionaries(
    {
        "inputs": st.one_of(PATHS, st.lists(PATHS, min_size=1), st.dictionaries(PATHS, PATHS, min_size=1)),
        "targets": PATHS,
    }
)
DATA = st.one_of(
    st.fixed_dictionaries({"train": PATHS, "test": PATHS}),
    st.fixed_dictionaries(
        {
            "train": PATHS,
            "test": PATHS,
            "columns": TABLES,
            "tokenizer": PATHS,
            "max_length": st.integers(1, 512),
        }
    ),
)
LENGTHS = st.one_of(
    st.fixed_dictionaries({"epochs": st.integers(1, 2**63 - 1)}),
    st.fixed_dictionaries({"max_steps": st.integers(1, 2**63 - 1), "epochs": st.none()}),
)
JOBS = st.builds(
    lambda required, length, optional: required | length | optional,
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "model": PATHS,
            "data": DATA,
            "loss": LOSSES,
            "optimizer": OPTIMIZERS,
            "batch_size": st.integers(1, 4096),
        }
    ),
    LENGTHS,
    st.fixed_dictionaries(
        {},
        optional={
            "user": st.one_of(st.none(), st.just("Zoë")),
            "metrics": st.lists(st.sampled_from(METRIC_NAMES), unique=True),
            "lr_scheduler": SCHEDULES,
            "drop_last": st.booleans(),
            "clip_grad_norm": st.one_of(st.none(), st.integers(1, 9), RATES),
            "seed": st.integers(0, 2**63 - 1),
            "priority": st.integers(-9, 9),
            "deadline_seconds": RATES,
            "deadline_kind": st.sampled_from(["hard", "soft"]),
            "early_stopping": st.just({"metric": "test_loss", "patience": 2, "min_delta": 0.5}),
            "checkpoint": st.just({"every_steps": 7}),
            "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
            "stacking": st.sampled_from(["auto", "never", "exact"]),
            "on_nan": st.sampled_from(["fail", "keep"]),
            "output": st.one_of(st.none(), st.just("logits"), st.integers(0, 3)),
        },
    ),
)

# A few arguments for each schedule that cannot do without.
SCHEDULES = {
    "ChainedScheduler": {"schedulers": [{"name": "LinearLR"}, {"name": "ExponentialLR", "gamma": 0.9}]},
    "ConstantLR": {"total_iters": 2},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 1e-3},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.5, "total_iters": 3},
    "MultiStepLR": {"milestones": [1, 3], "gamma": 0.5},
    "OneCycleLR": {"max_lr": 0.1},
    "PolynomialLR": {"total_iters": 4, "power": 2.0},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "SequentialLR": {
        "schedulers": [{"name": "LinearLR"}, {"name": "CosineAnnealingLR", "T_max": 4}],
        "milestones": [2],
    },
    "StepLR": {"step_size": 2},
}
