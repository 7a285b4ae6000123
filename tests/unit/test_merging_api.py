"""``unified.merge`` from Python: modules and samples in, a network for every subset of tasks and its files out."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import unified
from fusion.graph.flop_counter import FlopCounter
from fusion.merging.samples import score
from fusion.merging.saving import load
from unified.errors import UnifiedError
from unified.merging.labels import check_outputs, fitting_labels

NUM = 160
QUICK = {"steps": 2, "alpha": 0.2, "latency_batch": 0, "device": "cpu"}


def a_model(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, classes))


def labelled(num: int = NUM, *, tasks: tuple[str, ...] = ("sign", "third")) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs = torch.randn(num, 8, generator=torch.Generator().manual_seed(3))
    labels = {"sign": (inputs[:, 0] > 0).long(), "third": inputs[:, 1:4].argmax(1), "sum": (inputs.sum(1) > 0).long()}
    return inputs, {task: labels[task] for task in tasks}


def models(tasks: tuple[str, ...] = ("sign", "third")) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    inputs, labels = labelled(tasks=tasks)
    trained = {}
    for task in tasks:
        model = trained[task] = a_model(3 if task == "third" else 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels[task]).backward()
            optimizer.step()
    return trained


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    out = tmp_path_factory.mktemp("merge") / "out"
    given = models()
    before = {task: {name: value.clone() for name, value in model.state_dict().items()} for task, model in given.items()}
    result = unified.merge(given, labelled(), out=out, baselines=True, **QUICK)
    for task, model in given.items():  # nothing of theirs was changed
        assert all(torch.equal(value, before[task][name]) for name, value in model.state_dict().items())
    return result


def test_the_network_answers_any_tasks_and_so_do_plain_modules(merged):
    inputs, _ = labelled(5)
    with torch.no_grad():
        whole = merged.network(inputs)
        for tasks in (["sign"], ["third"], ["sign", "third"]):
            answers = merged.module(*tasks)(inputs)
            assert list(answers) == tasks
            for task in tasks:
                torch.testing.assert_close(answers[task], whole[task], rtol=1e-5, atol=1e-5)  # sums in another order
    with pytest.raises(UnifiedError, match="unknown: taste"):
        merged.module("taste")


def test_the_report_compares_with_both_baselines_under_one_rule(merged):
    report = merged.report
    assert list(report.schemes) == ["original", "B1", "B2", "PAM"]
    assert set(report.gains) == {"original", "B1", "B2"}
    for scheme in report.schemes.values():
        assert [record.tasks for record in scheme.combinations] == [("sign",), ("third",), ("sign", "third")]
    assert {record.network for record in report.schemes["B1"].rounds} == {("sign",), ("third",)}
    original = report.schemes["original"]
    assert report.floors == {task: value - 0.01 for task, value in original.validation.items()}
    assert original.flops["sign", "third"] == original.flops["sign",] + original.flops["third",]
    assert {curve.tasks for curve in report.curves} == {("sign",), ("third",)}


def test_models_pruned_alone_are_their_owners_modules_with_fewer_neurons(merged):
    inputs, _ = labelled(5)
    assert list(merged.alone) == ["sign", "third"]
    for task, module in merged.alone.items():
        expected = merged.report.schemes["B1"].flops[task,]
        with FlopCounter() as counter:
            answer = module(inputs)
        assert counter.get_total_flops() == expected * len(inputs)
        assert answer.shape == merged.network(inputs)[task].shape
        assert any(isinstance(layer, nn.Sequential) for layer in module.modules()), "the class that was given"


def test_every_file_answers_as_the_network_does(merged):
    inputs, _ = labelled(5)
    out = merged.folder
    with torch.no_grad():
        whole = merged.network(inputs)
        files = {
            "model.pt2": whole,
            "subsets/sign+third.pt2": whole,
            "tasks/sign.pt2": whole["sign"],
            "tasks/third.pt2": whole["third"],
        }
        for name, expected in files.items():
            torch.testing.assert_close(torch.export.load(out / name).module()(inputs), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(unified.load_umodel(out / "model.umodel").eval()(inputs), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(load(out / "merged")(inputs), whole)
    for task, module in merged.alone.items():
        with torch.no_grad():
            answer = module(inputs)
            torch.testing.assert_close(
                torch.export.load(out / "alone" / f"{task}.pt2").module()(inputs), answer, rtol=1e-5, atol=1e-5
            )
    written = json.loads((out / "report.json").read_text())
    assert written["gains"]["B1"]["average"] == merged.report.gains["B1"].average
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_what_comes_out_can_be_fused_and_merged_again(merged):
    inputs, labels = labelled(tasks=("sign", "sum"))
    other = models(("sign", "sum"))["sum"]
    parts = {"sign": merged.network.specialize(["sign"], single=True).eval(), "sum": other}
    fusion = unified.fuse(parts, inputs, max_candidates=1, measure_seconds=0.05, epochs=1)
    assert list(fusion.module(inputs[:3])) == ["sign", "sum"]
    again = unified.merge(parts, (inputs, labels), prune=None, **QUICK)
    assert again.network.tasks == ("sign", "sum")


def test_three_tasks_have_seven_combinations(tmp_path):
    tasks = ("sign", "third", "sum")
    result = unified.merge(models(tasks), labelled(tasks=tasks), out=tmp_path / "out", prune=None, **QUICK)
    assert len(result.report.schemes["PAM"].combinations) == 7
    assert {path.stem for path in (tmp_path / "out" / "subsets").iterdir()} == {
        "sign+third", "sign+sum", "third+sum", "sign+third+sum",
    }  # fmt: skip


def test_of_several_alphas_the_cheapest_that_is_good_enough_is_taken():
    told = []
    result = unified.merge(
        models(), labelled(), prune=None, steps=2, alphas=(0.1, float("inf")), latency_batch=0, device="cpu", max_drop=0.99,
        progress=told.append,
    )  # fmt: skip
    tried = result.report.alphas
    assert [record.alpha for record in tried] == [0.1, float("inf")]
    assert all(record.is_feasible for record in tried)  # any score is within that drop
    assert result.report.alpha == min(tried, key=lambda record: record.cost).alpha
    assert [type(event).__name__ for event in told] == ["Started", *["StageBegan", "AlphaTried"] * 2, "StageBegan", "Finished"]


def test_scores_of_the_report_are_those_of_held_out_samples():
    inputs, labels = labelled()
    parts = {name: (inputs[place], {task: found[place] for task, found in labels.items()}) for name, place in {
        "train": slice(0, 80), "validation": slice(80, 120), "test": slice(120, 160),
    }.items()}  # fmt: skip
    result = unified.merge(models(), parts, prune=None, **QUICK)
    held_out, expected = parts["test"]
    with torch.no_grad():
        answers = result.network(held_out)
    assert result.report.is_held_out
    assert result.report.schemes["PAM"].scores == {task: score(answers[task], expected[task]) for task in expected}


def refused(given, data, **options) -> str:
    with pytest.raises(UnifiedError) as caught:
        unified.merge(given, data, **(QUICK | options))
    return str(caught.value)


def test_samples_without_some_labels_are_refused():
    inputs, labels = labelled()
    assert "task 'third': 102 of 102 training samples have no label of it" in refused(
        models(), (inputs, {"sign": labels["sign"]})
    )
    assert "give samples as data=" in refused(models(), None)


def test_labels_that_do_not_fit_the_model_are_refused():
    inputs, labels = labelled()
    said = refused(models(), (inputs, labels | {"sign": labels["third"]}))
    assert "task 'sign': its model answers (2,) for a sample, so expected one class below that number" in said
    assert "largest 2" in said


def test_labels_that_make_the_estimate_meaningless_are_refused():
    inputs, labels = labelled()
    assert "sign" in refused(models(), (inputs, labels | {"sign": torch.zeros(NUM, dtype=torch.long)}))


def test_too_few_samples_are_refused():
    assert "sample" in refused(models(), labelled(12))


def test_networks_without_corresponding_layers_are_refused_with_where_and_why():
    def wide(kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, kernel), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    inputs = torch.randn(NUM, 1, 8, 8)
    labels = labelled(tasks=("sign", "sum"))[1]
    said = refused({"sign": wide(3), "sum": wide(5)}, (inputs, labels))
    assert "sign: from the start, layer '0' (conv, kernel 3 x 3, stride 1 x 1, feature 6 x 6) corresponds to none" in said
    assert "kernel 5 x 5" in said


def test_a_network_that_shares_nothing_is_written_whole(tmp_path):
    """Its alpha is infinite, which JSON has no number for."""
    out = tmp_path / "out"
    result = unified.merge(models(), labelled(), out=out, **QUICK | {"alpha": math.inf, "prune": None})
    assert not any("was not written" in note for note in result.notes)
    assert (out / "merged" / "merged.json").is_file()


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    assert "expected a new or an empty folder" in refused(models(), labelled(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("keep")
    told = []
    said = refused(models(), labelled(), out=tmp_path / "file" / "out", progress=told.append)
    assert "cannot be made" in said
    assert not told


def test_nothing_is_left_of_a_result_that_could_not_be_written_whole(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unified.merging.writing.write_page", interrupted)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(KeyboardInterrupt):
            unified.merge(models(), labelled(), out=tmp_path / name, prune=None, **QUICK)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_without_sharing_the_network_is_written_too(tmp_path):
    result = unified.merge(models(), labelled(), out=tmp_path / "out", prune=None, **(QUICK | {"alpha": float("inf")}))
    assert not any("was not written" in note for note in result.notes)
    inputs, _ = labelled(5)
    torch.testing.assert_close(load(tmp_path / "out" / "merged")(inputs), result.network(inputs))


def test_a_name_that_no_file_can_bear_is_refused(tmp_path):
    given = {"a+b": a_model(2), "c/d": a_model(2)}
    assert "'a+b', 'c/d'" in refused(given, labelled(), out=tmp_path / "out")


def test_attributes_and_binary_labels_get_the_form_that_says_so():
    flags = torch.tensor([0.0, 1.0, 1.0])
    assert fitting_labels(torch.zeros(2, 1), flags, "BCEWithLogitsLoss").shape == (3, 1)
    assert fitting_labels(torch.zeros(2, 1), flags, "MSELoss") is flags
    with pytest.raises(UnifiedError, match="one number alone"):
        check_outputs({"a": torch.zeros(2)}, {"a": flags}, {"a": "BCEWithLogitsLoss"})
    with pytest.raises(UnifiedError, match="expected 2 values for each"):
        check_outputs({"a": torch.zeros(2, 2)}, {"a": flags}, {"a": "MSELoss"})


def test_one_network_and_a_wrong_alpha_are_refused():
    assert "at least two" in refused({"sign": a_model(2)}, labelled(tasks=("sign",)))
    assert "alpha is a number or 'auto', got 'low'" in refused(models(), labelled(), alpha="low")
