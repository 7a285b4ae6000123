"""Data parts: disjoint, told apart by content, with labels for some tasks only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusion.graph.errors import FusionError
from fusion.search.data import FusionData, Part, SealedPart, check_data, join, labelled
from fusion.search.tasks import Task, check_tasks, learning_rate


def rows(part: Part) -> set[int]:
    return {int(value) for value in part.inputs[:, 0]}


@settings(max_examples=30, deadline=None)
@given(count=st.integers(3, 60), validation=st.integers(1, 5), test=st.integers(0, 5), seed=st.integers(0, 99))
def test_split_deals_every_sample_into_exactly_one_part(count, validation, test, seed):
    if count <= validation + test:
        return
    inputs = torch.arange(count, dtype=torch.float32)[:, None]
    data = FusionData.split(inputs, {"age": torch.arange(count)}, validation=validation, test=test, seed=seed)
    parts = [data.train, data.validation, *([data.test.open()] if data.test else [])]
    dealt = [rows(part) for part in parts]
    assert [len(part) for part in parts] == [count - validation - test, validation, *([test] if test else [])]
    assert set.union(*dealt) == set(range(count))
    for part in parts:
        assert part.labels["age"].tolist() == part.inputs[:, 0].tolist()  # labels travel with their samples


def test_same_seed_same_parts_and_another_seed_others():
    inputs = torch.arange(50.0)[:, None]
    first, again, other = (FusionData.split(inputs, seed=seed) for seed in (1, 1, 2))
    assert first.content == again.content
    assert rows(first.validation) != rows(other.validation)


def test_equal_inputs_go_into_one_part():
    inputs = torch.arange(20.0).repeat(3)[:, None]
    data = FusionData.split(inputs, validation=0.3, test=0.3, seed=0)
    parts = [rows(data.train), rows(data.validation), rows(data.test.open())]
    assert sum(len(part) for part in parts) == 20


@pytest.mark.parametrize(("validation", "test"), [(10, 0), (5, 5), (0, 2), (0.01, 0.2)])
def test_a_part_without_samples_is_refused(validation, test):
    with pytest.raises(FusionError, match="10 samples leave"):
        FusionData.split(torch.randn(10, 2), validation=validation, test=test)


def test_inputs_may_be_a_tuple_or_named():
    x, mask = torch.arange(6.0)[:, None], torch.arange(6)
    for inputs in ((x, mask), {"x": x, "mask": mask}):
        part = Part(inputs=inputs).select(torch.tensor([4, 1]))
        chosen = part.inputs.values() if isinstance(inputs, dict) else part.inputs
        assert [tensor.flatten().tolist() for tensor in chosen] == [[4, 1], [4, 1]]


def test_a_part_says_which_rows_do_not_match():
    with pytest.raises(FusionError, match=r"rows \{'0': 3, 'age': 2\}"):
        Part(inputs=torch.zeros(3, 1), labels={"age": torch.zeros(2)})
    with pytest.raises(FusionError, match="at least one"):
        Part(inputs=torch.zeros(0, 1))


def test_content_is_that_of_the_tensors():
    base = Part(inputs=torch.arange(4.0)[:, None], labels={"age": torch.arange(4)})
    same = Part(inputs=torch.arange(4.0)[:, None].clone(), labels={"age": torch.arange(4)})
    strided = Part(inputs=torch.arange(8.0).reshape(4, 2)[:, ::2] / 2, labels={"age": torch.arange(4)})
    others = [
        Part(inputs=torch.arange(4.0).double()[:, None], labels={"age": torch.arange(4)}),
        Part(inputs=torch.arange(4.0)[:, None], labels={"mood": torch.arange(4)}),
        Part(inputs=torch.arange(4.0)[:, None]),
        Part(inputs={"x": torch.arange(4.0)[:, None]}, labels={"age": torch.arange(4)}),
        Part(inputs=torch.arange(4.0)[:, None].flip(0), labels={"age": torch.arange(4)}),
    ]
    assert base.content == same.content == strided.content
    assert len({base.content, *(other.content for other in others)}) == 6


def test_bfloat16_and_bool_inputs_have_a_content():
    first = Part(inputs=(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([True, False])))
    second = Part(inputs=(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([True, True])))
    assert first.content != second.content


def test_a_sealed_part_counts_how_often_it_is_opened():
    sealed = SealedPart(Part(inputs=torch.zeros(2, 1)))
    assert (len(sealed), len(sealed.content), sealed.times_opened) == (2, 32, 0)
    sealed.open()
    assert sealed.times_opened == 1


def test_joined_data_sets_have_labels_only_where_they_had_them():
    ages = Part(inputs={"x": torch.zeros(2, 3)}, labels={"age": torch.tensor([[5, 6], [7, 8]])})
    poses = Part(inputs={"x": torch.ones(1, 3)}, labels={"pose": torch.tensor([[0.5]])})
    both = join([ages, poses])
    assert both.inputs["x"].shape == (3, 3)
    assert labelled(both.labels["age"]).tolist() == [[True, True], [True, True], [False, False]]
    assert labelled(both.labels["pose"]).tolist() == [[False], [False], [True]]
    with pytest.raises(FusionError, match=r"\['x'\] and \['0'\]"):
        join([ages, Part(inputs=torch.zeros(1, 3))])


def test_check_data_names_everything_that_is_wrong():
    part = Part(inputs=torch.zeros(4, 3), labels={"agee": torch.arange(4)})
    with pytest.raises(FusionError, match=r"'agee', the tasks are age, mood.*two parts are the same samples"):
        check_data(FusionData(train=part, validation=part), ["age", "mood"])
    other = FusionData(train=Part(inputs=torch.zeros(4, 3)), validation=Part(inputs=torch.zeros(4, 2)))
    with pytest.raises(FusionError, match=r"validation part takes inputs .*\(2,\).*\(3,\)"):
        check_data(other, ["age"])
    check_data(FusionData.split(torch.randn(10, 3)), ["age"])


@pytest.mark.parametrize("wrong", [{"name": "a b"}, {"name": ""}, {"max_drop": -0.1}, {"lr": 0.0}, {"max_drop": float("nan")}])
def test_a_task_refuses_what_makes_no_sense(wrong):
    with pytest.raises(FusionError, match=r"expected|a name is"):
        Task(**({"name": "age", "model": nn.Identity()} | wrong))


def test_tasks_are_two_at_least_with_names_of_their_own():
    tasks = [Task(name=name, model=nn.Identity(), lr=lr) for name, lr in (("a", 1e-2), ("b", 1e-3), ("c", None))]
    check_tasks(tasks)
    assert learning_rate(tasks) == 1e-3
    assert learning_rate(tasks[2:], default=0.5) == 0.5
    with pytest.raises(FusionError, match="at least 2 tasks, got 1"):
        check_tasks(tasks[:1])
    with pytest.raises(FusionError, match="two tasks are called 'a'"):
        check_tasks([tasks[0], tasks[0]])
