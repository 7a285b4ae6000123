"""Sweeps as they are expanded: how many jobs, in which order, under which names, and what is wrong with one."""

import copy
import json
import re
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.jobs import changed
from tests.unit.test_job_schema import fits
from unified.errors import InvalidSubmission
from unified.job import JobSpec
from unified.sweeps import MAX_MEMBERS, member_fields

#: A field, some of its values, and how the same is written by hand.
SWEPT = {
    "seed": st.integers(0, 2**40),
    "batch_size": st.integers(1, 512),
    "optimizer.lr": st.floats(1e-9, 10.0),
    "optimizer.momentum": st.floats(0.0, 1.0),
    "loss.label_smoothing": st.floats(0.0, 1.0),
    "lr_scheduler": st.sampled_from([None, "ConstantLR", {"name": "MultiStepLR", "milestones": [1, 2]}]),
    "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "early_stopping.patience": st.integers(1, 99),
    "drop_last": st.booleans(),
    "clip_grad_norm": st.one_of(st.none(), st.floats(0.1, 9.0)),
    "output": st.one_of(st.none(), st.text("ab/é +", min_size=1, max_size=5)),
}  # fmt: skip


@st.composite
def sweeps(draw):
    fields = draw(st.lists(st.sampled_from(sorted(SWEPT)), min_size=1, max_size=3, unique=True))
    return {field: draw(st.lists(SWEPT[field], min_size=1, max_size=3, unique_by=json.dumps)) for field in fields}


def by_hand(name, values):
    """Return the example job with these values, set one by one."""
    job = copy.deepcopy(changed(name=name))
    for path, value in values.items():
        part, _, argument = path.partition(".")
        if not argument:
            job[part] = value
        elif isinstance(job[part], str):
            job[part] = {"name": job[part], argument: value}
        else:
            job[part][argument] = value
    return JobSpec.parse(job, asks_torch=False)


def problems(**fields):
    with pytest.raises(InvalidSubmission) as caught:
        JobSpec.parse(changed(**fields))
    return caught.value.problems


@settings(max_examples=60, deadline=None)
@given(sweep=sweeps())
def test_every_member_is_the_job_that_one_would_write_by_hand(sweep):
    job = JobSpec.parse(changed(sweep=sweep), asks_torch=False)
    members = job.members()
    assert len(members) == prod(map(len, sweep.values()))
    for index, member in enumerate(members):
        expected, rest = {}, index
        for field in reversed(sweep):  # the last field changes fastest
            rest, digit = divmod(rest, len(sweep[field]))
            expected = {field: sweep[field][digit]} | expected
        assert member.from_sweep.values == expected
        assert member.from_sweep.name == job.name
        same = by_hand(member.name, expected)
        assert member.model_copy(update={"from_sweep": None}) == same
        assert member.fingerprint("model", "data") == same.fingerprint("model", "data")
        assert JobSpec.parse(member.to_json(), asks_torch=False) == member
        assert member.members() == (member,)


@settings(max_examples=60, deadline=None)
@given(sweep=sweeps(), name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", fullmatch=True))
def test_names_are_allowed_unique_and_in_order(sweep, name):
    members = JobSpec.parse(changed(name=name, sweep=sweep), asks_torch=False).members()
    names = [member.name for member in members]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", each) for each in names)
    assert all(each.startswith(f"{name}-") for each in names)
    assert len(set(names)) == len(names)
    assert sorted(names) == names


@settings(max_examples=30, deadline=None)
@given(sweep=sweeps())
def test_a_sweep_comes_back_from_json_and_changes_nothing(sweep):
    fields = changed(sweep=sweep)
    before = copy.deepcopy(fields)
    job = JobSpec.parse(fields, asks_torch=False)
    schema = JobSpec.json_schema()
    assert all(fits(each.to_json(), schema, schema["$defs"]) for each in (job, *job.members()))
    assert JobSpec.parse(json.loads(json.dumps(job.to_json())), asks_torch=False) == job
    assert [member["name"] for member in member_fields(fields)] == [member.name for member in job.members()]
    assert fields == before
    assert job.fingerprint() == JobSpec.parse(changed(), asks_torch=False).fingerprint()


def test_names_say_what_a_member_got():
    sweep = {
        "optimizer.lr": [1e-05, 1e20],
        "lr_scheduler": [None, {"name": "StepLR", "step_size": 1}],
        "metrics": [["accuracy", "mae"]],
    }
    names = [member.name for member in JobSpec.parse(changed(sweep=sweep)).members()]
    assert names == [
        "lenet-fashion-000-lr1e-05-lr_schedulernull-metricsaccuracy_mae",
        "lenet-fashion-001-lr1e-05-lr_schedulerStepLR-metricsaccuracy_mae",
        "lenet-fashion-002-lr1e20-lr_schedulernull-metricsaccuracy_mae",
        "lenet-fashion-003-lr1e20-lr_schedulerStepLR-metricsaccuracy_mae",
    ]
    both = {"loss.name": ["CrossEntropyLoss"], "optimizer.name": ["SGD"]}
    (member,) = JobSpec.parse(changed(sweep=both)).members()
    assert member.name == "lenet-fashion-000-loss.nameCrossEntropyLoss-optimizer.nameSGD"


def test_a_whole_part_is_set_before_the_fields_in_it():
    sweep = {"optimizer.lr": [0.1, 0.2], "optimizer": ["SGD", {"name": "Adam", "lr": 9, "amsgrad": True}]}
    found = [(member.optimizer.name, member.optimizer.kwargs) for member in JobSpec.parse(changed(sweep=sweep)).members()]
    adams = [("Adam", {"lr": lr, "amsgrad": True}) for lr in (0.1, 0.2)]
    assert found == [("SGD", {"lr": 0.1}), adams[0], ("SGD", {"lr": 0.2}), adams[1]]


def test_each_member_has_a_token_of_its_own():
    members = JobSpec.parse(changed(client_token="mine", sweep={"seed": [0, 1]})).members()
    assert [member.client_token for member in members] == ["mine/000", "mine/001"]


def test_members_share_the_objects_that_a_sweep_was_made_with():
    model, data = torch.nn.Linear(4, 2), (torch.randn(8, 4), torch.zeros(8).long())
    job = JobSpec(
        name="a", model=model, data={"train": data}, loss="CrossEntropyLoss", optimizer="SGD", epochs=1, batch_size=4,
        sweep={"optimizer.lr": (0.1, 0.2)},
    )  # fmt: skip
    for member in job.members():
        assert member.model is model
        assert member.data.train[0] is data[0]


#: What is wrong with a sweep: the change, then code and field of each problem that results.
WRONG = [
    ({"sweep": {}}, [("E-VALUE", "sweep")]),
    ({"sweep": [1]}, [("E-TYPE", "sweep")]),
    ({"sweep": {"seed": 3}}, [("E-TYPE", "sweep.seed")]),
    ({"sweep": {"seed": []}}, [("E-VALUE", "sweep.seed")]),
    ({"sweep": {"seed": [0, 1, 0]}}, [("E-VALUE", "sweep.seed[2]")]),
    ({"sweep": {"optimizer": [{"name": "SGD", "lr": 1}, {"lr": 1, "name": "SGD"}]}}, [("E-VALUE", "sweep.optimizer[1]")]),
    ({"sweep": {"sed": [0]}}, [("E-FIELD", "sweep.sed")]),
    ({"sweep": {"": [0]}}, [("E-FIELD", "sweep.")]),
    ({"sweep": {"seed.x": [0]}}, [("E-FIELD", "sweep.seed.x")]),
    ({"sweep": {"checkpoint.every": [1]}}, [("E-FIELD", "sweep.checkpoint.every")]),
    ({"sweep": {"optimizer.": [0]}}, [("E-FIELD", "sweep.optimizer.")]),
    ({"sweep": {"optimizer.betas.x": [0]}}, [("E-FIELD", "sweep.optimizer.betas.x")]),
    ({"sweep": {"name": ["a"], "data.train": ["c"]}}, [("E-VALUE", "sweep.name"), ("E-VALUE", "sweep.data.train")]),
    ({"sweep": {"model": ["b"]}}, [("E-VALUE", "sweep.model")]),
    ({"sweep": {"sweep": [{}], "from_sweep.name": ["a"]}}, [("E-VALUE", "sweep.sweep"), ("E-VALUE", "sweep.from_sweep.name")]),
    ({"sweep": {"seed": [*range(MAX_MEMBERS + 1)]}}, [("E-VALUE", "sweep")]),
    ({"sweep": {"seed": [0]}, "name": "a" * 81}, [("E-VALUE", "name")]),
    ({"sweep": {"seed": [0]}, "client_token": "a" * 191}, [("E-VALUE", "client_token")]),
    ({"sweep": {"seed": [0]}, "id": "mine"}, [("E-VALUE", "id")]),
    ({"sweep": {"seed": [0]}, "from_sweep": {"name": "a", "values": {}}}, [("E-VALUE", "from_sweep")]),
    ({"sweep": {"optimizer": ["SGD", {"name": "SGD", "lr": 3}], "optimizer.lr": [1]}}, [("E-VALUE", "sweep")]),
    # and with its members
    ({"sweep": {"seed": [0, -1]}}, [("E-VALUE", "seed")]),
    ({"sweep": {"optimizer.lr": [0.1, -1], "optimizer.a": [9]}}, [("E-FIELD", "optimizer.a"), ("E-VALUE", "optimizer.lr")]),
    ({"sweep": {"lr_scheduler": [None], "lr_scheduler.gamma": [0.1]}}, [("E-MISSING", "lr_scheduler.name")]),
    ({"sweep": {"max_steps": [None, 5]}}, [("E-VALUE", "max_steps")]),
    ({"epochs": "3", "sweep": {"seed": [0, -1]}}, [("E-TYPE", "epochs"), ("E-VALUE", "seed")]),
    ({"optimizer": ..., "sweep": {"optimizer": ["SGD"], "sed": [0]}}, [("E-MISSING", "optimizer"), ("E-FIELD", "sweep.sed")]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), WRONG, ids=lambda part: str(part)[:40])
def test_everything_wrong_with_a_sweep_is_told_at_once(change, expected):
    found = problems(**change)
    assert [(problem.code, problem.field) for problem in found] == expected
    assert all((problem.expected, problem.given, problem.remedy) for problem in found)


def test_a_mistake_of_many_members_is_told_once_with_the_first_combination():
    (problem,) = problems(sweep={"seed": [0, 1, 2], "optimizer.lr": [0.1, -1]})
    assert problem.given == "-1 in the combination seed=0, optimizer.lr=-1 and 2 more"
    assert problem.job == "lenet-fashion"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": [0, 1]}, '"sweep": {"seed": [0, 1]}'),
        ({"precision": ["fp32", "bf16"]}, '"sweep": {"precision": ["fp32", "bf16"]}'),
        ({"optimizer": {"name": "SGD", "lr": [0.1, 0.2]}}, '"sweep": {"optimizer.lr": [0.1, 0.2]}'),
        ({"optimizer": ["SGD", "Adam"]}, '"sweep": {"optimizer": ["SGD", "Adam"]}'),
        ({"checkpoint": {"every_steps": [1, 2]}}, '"sweep": {"checkpoint.every_steps": [1, 2]}'),
        ({"lr_scheduler": [None, {"name": "StepLR"}]}, '"sweep": {"lr_scheduler": […]}'),
    ],
)
def test_a_list_where_one_value_belongs_is_pointed_to_a_sweep(change, told):
    (problem,) = problems(**change)
    assert problem.remedy.endswith(told)


@pytest.mark.parametrize("change", [{"name": ["a", "b"]}, {"model": ["a"]}, {"metrics": [["accuracy"]]}])
def test_a_list_where_a_sweep_would_not_help_is_not(change):
    assert all("sweep" not in problem.remedy for problem in problems(**change, early_stopping=None))
