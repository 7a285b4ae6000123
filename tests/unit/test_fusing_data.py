"""Data for fusion: rows joined by content, parts that share nothing, files and folders of all kinds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from unified.errors import InvalidSubmission, UnifiedError
from unified.fusing.data_files import from_objects, read_data
from unified.fusing.parting import part
from unified.fusing.rows import Rows, has_label, join, make_rows, signature_text


def rows_of(numbers: list[int], task: str, labels: list[int] | None = None) -> Rows:
    inputs = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1)
    return make_rows(inputs, {task: torch.tensor(numbers if labels is None else labels)})


# ---- rows


def test_equal_inputs_are_one_set_with_all_labels():
    joined = join([rows_of([5, 6, 5], "a", [0, 1, 2]), rows_of([5, 6, 5], "b", [3, 4, 5])])
    assert joined.inputs.flatten().tolist() == [5, 6, 5]
    assert {task: labels.tolist() for task, labels in joined.labels.items()} == {"a": [0, 1, 2], "b": [3, 4, 5]}


def test_other_inputs_come_behind_without_the_others_labels():
    joined = join([rows_of([1, 2], "a"), rows_of([3], "b")])
    assert joined.inputs.flatten().tolist() == [1, 2, 3]
    assert joined.labels["a"].tolist() == [1, 2, -100]
    assert joined.labels["b"].tolist() == [-100, -100, 3]


def test_rows_of_another_order_find_their_inputs():
    joined = join([rows_of([1, 2, 2], "a"), rows_of([4, 2, 1, 2, 2], "b", [40, 21, 10, 22, 23])])
    assert joined.inputs.flatten().tolist() == [1, 2, 2, 4, 2]
    assert joined.labels["b"].tolist() == [10, 21, 22, 40, 23]


def test_missing_labels_of_numbers_are_nan():
    first = make_rows(torch.zeros(2, 1), {"a": torch.tensor([0.5, 0.25], dtype=torch.float64)})
    joined = join([first, rows_of([7], "b")])
    assert has_label(joined.labels["a"]).tolist() == [True, True, False]
    assert joined.labels["a"][:2].tolist() == [0.5, 0.25]


def test_joined_data_leaves_what_was_handed_in_alone():
    first, second = rows_of([1, 2], "a"), rows_of([2, 3], "a", [9, 9])
    join([first, second])
    assert first.labels["a"].tolist() == [1, 2]
    assert first.inputs.flatten().tolist() == [1, 2]


def test_inputs_of_another_signature_are_refused_in_one_line():
    text = make_rows({"ids": torch.zeros(2, 8, dtype=torch.int64)}, {"b": torch.zeros(2)})
    with pytest.raises(UnifiedError) as caught:
        join([rows_of([1], "a"), text])
    assert str(caught.value) == "tasks must take the same input signature: 'a' float32 (1), 'b' ids: int64 (8)"


def test_labels_of_one_task_must_be_alike():
    with pytest.raises(UnifiedError, match="task 'a': expected labels of one kind"):
        join([rows_of([1], "a"), make_rows(torch.zeros(1, 1), {"a": torch.tensor([0.5])})])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=1, max_size=4))
def test_every_row_keeps_its_label_however_sets_are_joined(sets):
    joined = join([rows_of(numbers, f"t{i}") for i, numbers in enumerate(sets)])
    for i, numbers in enumerate(sets):
        labels = joined.labels[f"t{i}"]
        present = has_label(labels)
        assert sorted(labels[present].tolist()) == sorted(numbers)
        assert labels[present].tolist() == joined.inputs.flatten()[present].long().tolist()
    most = {n: max(numbers.count(n) for numbers in sets) for numbers in sets for n in numbers}
    assert len(joined) == sum(most.values())


# ---- parts


def contents(rows: Rows) -> list[int]:
    return sorted(rows.inputs.flatten().long().tolist())


def test_parts_share_no_sample_and_lose_none():
    train = join([rows_of([*range(50)], "a"), rows_of([*range(30, 90)], "b")])
    parts = part(train, None, rows_of([*range(100, 120)], "a"), seed=3)
    everything = contents(parts.train) + contents(parts.validation) + contents(parts.test)
    assert sorted(everything) == [*range(90), *range(100, 120)]
    for task in ("a", "b"):
        assert has_label(parts.validation.labels[task]).sum() > 4
    assert has_label(parts.test.labels["b"]).sum() > 5  # its own data gave it a test part
    assert "no test data of b" in parts.notes[0]


def test_training_samples_that_are_tested_too_are_left_out():
    parts = part(rows_of([*range(40)], "a"), None, rows_of([38, 39, 40], "a"), seed=0)
    assert not {38, 39} & set(contents(parts.train) + contents(parts.validation))
    assert parts.notes == ("2 training samples left out: they are in the test data too",)


def test_equal_samples_stay_together():
    parts = part(rows_of([1, 2, 3, 4, 5] * 4, "a"), None, None, seed=1)
    sets = [set(contents(rows)) for rows in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sets)) == 5
    assert "which the models have seen" in parts.notes[0]


def test_a_given_validation_part_is_kept():
    parts = part(rows_of([*range(20)], "a"), rows_of([19, 50, 51], "a"), rows_of([51, 60], "a"), seed=0)
    assert contents(parts.validation) == [19, 50]
    assert contents(parts.train) == [*range(19)]


def test_half_of_the_test_samples_judge_and_all_training_samples_teach():
    train = join([rows_of([*range(60)], "a"), rows_of([*range(60)], "b")])
    test = join([rows_of([*range(100, 140), 100, 101], "a"), rows_of([*range(120, 160)], "b")])
    parts = part(train, None, test, seed=0)
    assert contents(parts.train) == [*range(60)]
    assert sorted(contents(parts.validation) + contents(parts.test)) == contents(test)
    assert not set(contents(parts.validation)) & set(contents(parts.test))  # equal ones together
    for rows in (parts.validation, parts.test):  # 20 samples each for a alone, for both and for b alone
        assert sorted(rows.patterns()).count(3) == 10
        assert len(set(contents(rows))) == 30
    again, other = (part(train, None, test, seed=seed) for seed in (0, 1))
    assert contents(again.validation) == contents(parts.validation) != contents(other.validation)
    assert parts.notes == ()


def test_test_samples_without_labels_are_halved_too():
    bare = [make_rows(torch.arange(start, start + 40.0).reshape(-1, 1), {}) for start in (0, 100)]
    parts = part(bare[0], None, bare[1], seed=0)
    assert [len(rows) for rows in (parts.train, parts.validation, parts.test)] == [40, 20, 20]


@pytest.mark.parametrize(("count", "sizes"), [(19, (32, 8, 19)), (20, (40, 10, 10))])
def test_few_test_samples_are_all_held_out(count, sizes):
    parts = part(rows_of([*range(40)], "a"), None, rows_of([*range(100, 100 + count)], "a"), seed=0)
    assert tuple(len(rows) for rows in (parts.train, parts.validation, parts.test)) == sizes


def test_a_task_with_few_test_samples_is_judged_on_training_samples_that_judge_no_other():
    train = join([rows_of([*range(50)], "a"), rows_of([*range(50)], "b"), rows_of([*range(50)], "c")])
    test = join([rows_of([*range(100, 140)], "a"), rows_of([*range(130, 145)], "b")])
    parts = part(train, None, test, seed=0)
    counts = {
        task: [int(has_label(rows.labels[task]).sum()) for rows in (parts.train, parts.validation, parts.test)]
        for task in ("a", "b", "c")
    }
    assert counts == {"a": [32, 15, 25], "b": [32, 8, 15], "c": [32, 8, 10]}  # 10 of 130 … 139 are kept for b
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 50 + 45


def test_samples_of_an_untested_task_that_are_tested_by_another_stay_there():
    parts = part(
        join([rows_of([*range(30)], "a"), rows_of([*range(50, 60)], "b")]), None, rows_of([*range(40, 80)], "a"), seed=0
    )
    assert contents(parts.train) == [*range(30)]
    assert len(parts.validation) == len(parts.test) == 20


def test_parts_are_those_of_the_seed():
    rows = rows_of([*range(60)], "a")
    first, again, other = (part(rows, None, None, seed=seed) for seed in (1, 1, 2))
    assert contents(first.validation) == contents(again.validation) != contents(other.validation)


# ---- files


INPUTS = torch.arange(12.0).reshape(6, 2)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])


def test_a_file_of_inputs_alone_has_no_labels(tmp_path):
    torch.save(INPUTS, tmp_path / "some.pt")
    (rows,) = read_data(tmp_path / "some.pt", ("a", "b")).values()
    assert rows.labels == {}
    assert torch.equal(rows.inputs, INPUTS)


def test_one_tensor_of_targets_is_the_labels_of_every_task(tmp_path):
    torch.save((INPUTS, LABELS), tmp_path / "some.pt")
    rows = read_data(tmp_path / "some.pt", ("a", "b"))["train"]
    assert torch.equal(rows.labels["a"], LABELS)
    assert torch.equal(rows.labels["b"], LABELS)


def test_a_folder_holds_parts_and_targets_by_task(tmp_path):
    torch.save({"inputs": {"x": INPUTS}, "targets": {"a": LABELS, "of another": LABELS}}, tmp_path / "train.pt")
    save_file({"inputs.x": INPUTS, "targets.b": LABELS}, tmp_path / "test.safetensors")
    found = read_data(tmp_path, ("a", "b"))
    assert list(found) == ["train", "test"]
    assert list(found["train"].labels) == ["a"]
    assert list(found["test"].labels) == ["b"]
    assert list(found["test"].inputs) == ["x"]


def test_python_objects_are_read_alike():
    found = from_objects({"train": (INPUTS, {"a": LABELS}), "test": {"inputs": INPUTS, "targets": LABELS}}, ("a", "b"))
    assert list(found["train"].labels) == ["a"]
    assert list(found["test"].labels) == ["a", "b"]
    assert from_objects(INPUTS, ("a",))["train"].labels == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"inputs": INPUTS, "targets": {"c": LABELS}}, "labels by task: a, b"),
        ({"inputs": INPUTS, "targets": LABELS[:3]}, "equal length"),
        ({"inputs": "text"}, "a str for inputs"),
        (torch.full((3, 2), torch.nan), "finite numbers"),
        ({"test": INPUTS}, "the part 'train'"),
    ],
)
def test_what_is_wrong_with_data_is_said(content, told):
    with pytest.raises(InvalidSubmission, match=told):
        from_objects(content, ("a", "b"))


def test_a_folder_without_training_data_is_refused(tmp_path):
    with pytest.raises(InvalidSubmission, match="a folder without it"):
        read_data(tmp_path, ("a",))
    with pytest.raises(InvalidSubmission, match="nothing there"):
        read_data(tmp_path / "gone", ("a",))


def test_signatures_are_spelled_shortly():
    assert signature_text(torch.zeros(3, 1, 28, 28)) == "float32 (1, 28, 28)"
