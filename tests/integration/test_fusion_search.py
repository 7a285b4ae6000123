"""Searches from models to fused module: laws that hold for every preset and policy, faults, limits, and later searches."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusion.search.search as loop
from fusion.search.config import PRESETS
from fusion.search.data import FusionData, Part
from fusion.search.progress import Event
from fusion.search.tasks import Task
from fusion.search.training import TrainOutcome, TrainUnit, train_one_by_one
from tests.integration.fusion_searches import (
    THRESHOLDS,
    accuracy,
    assert_answers,
    assert_whole,
    assert_within,
    backwards,
    data,
    digits,
    fates,
    network,
    same_table,
    search,
    tasks,
    teacher,
)

POLICIES = ("guided", "annealing", "random", "exhaustive", "tree", "all-shared", "original")


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Leave what is there already out of the garbage collections that measuring begins with: they take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


LAWS = {**{name: {"variant": name} for name in PRESETS}, **{f"policy {name}": {"policy": name} for name in POLICIES}}


@pytest.mark.parametrize("how", LAWS.values(), ids=LAWS)
def test_whatever_is_handed_out_is_within_its_drop_on_validation_and_held_out_data(how: dict[str, Any]):
    chosen, given, events = tasks(), data(), []
    before = [copy.deepcopy(task.model.state_dict()) for task in chosen]
    states = torch.get_rng_state(), random.getstate()
    report = search(chosen, given, progress=events.append, max_candidates=5, **how)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert list(report.best) == list(THRESHOLDS)
    for entry in report.best.values():
        assert_within(entry, given, chosen)
        assert_answers(entry, ("digit", "parity"))
    assert_whole(report, events)
    assert given.test is not None
    assert given.test.times_opened == 1
    for task, state in zip(chosen, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in task.model.state_dict().items())
        assert not task.model.training
        assert all(parameter.requires_grad for parameter in task.model.parameters())
    if how.get("policy") == "original":
        assert report.candidates == ()
        assert {entry.number for entry in report.best.values()} == {0}


@pytest.mark.parametrize("variant", ["full", "paper-pr"])
def test_one_seed_and_one_table_give_the_same_candidates_whoever_trains_them(variant: str, tmp_path: Path):
    folders = [tmp_path / name for name in ("first", "again", "backwards", "other")]
    first = search(variant=variant, out=folders[0])
    same_table(folders[0], *folders[1:])
    again = search(variant=variant, out=folders[1])
    other_way = search(variant=variant, out=folders[2], cotrain=backwards)
    assert fates(first) == fates(again) == fates(other_way)
    for threshold, entry in first.best.items():
        for report in (again, other_way):
            assert report.best[threshold].graph == entry.graph
            mine, its = entry.module.state_dict(), report.best[threshold].module.state_dict()
            assert all(torch.equal(mine[name], its[name]) for name in mine)
    other = search(variant=variant, out=folders[3], seed=1)
    assert [record["key"] for record in other.candidates] != [record["key"] for record in first.candidates]


def test_a_search_without_labels_sees_none(tmp_path: Path):
    full = data()

    def with_labels(part: Part, labels: dict[str, Tensor]) -> Part:
        return Part(inputs=part.inputs, labels=labels)

    assert full.test is not None
    bare = FusionData(train=with_labels(full.train, {}), validation=with_labels(full.validation, {}))
    report = search(given=bare, out=tmp_path / "bare")
    noise = torch.Generator().manual_seed(0)
    wrong = {name: torch.randint(2, (400,), generator=noise) for name in ("digit", "parity")}
    lied = FusionData(train=full.train, validation=with_labels(full.validation, wrong))
    same_table(tmp_path / "bare", tmp_path / "lied")
    assert fates(search(given=lied, label_free=True, out=tmp_path / "lied")) == fates(report)
    for entry in report.best.values():
        assert {end.kind for end in entry.tasks} == {"agreement"}
        assert all(end.before == 1.0 for end in entry.tasks)
        assert entry.is_within is None
        for task, end in zip(tasks(), entry.tasks, strict=True):
            lost = accuracy(task.model, full.validation, task.name) - accuracy(entry.module, full.validation, task.name)
            assert lost <= 1 - end.after + 1e-12  # agreement is the cautious choice


def test_a_glance_at_a_large_validation_part_decides_about_nobody_who_is_handed_out():
    images, labels = digits()
    noise = torch.Generator().manual_seed(0)
    many = torch.cat([images[800:1200] + 0.1 * torch.randn(400, 64, generator=noise) for _ in range(3)])
    held = {name: labels[name][800:1200].repeat(3) for name in ("digit", "parity")}
    small, chosen = data(), tasks()
    given = FusionData(train=small.train, validation=Part(inputs=many, labels=held), test=small.test)
    report = search(chosen, given)
    for entry in report.best.values():
        assert_within(entry, given, chosen)
    assert any(entry.number for entry in report.best.values())


def test_a_task_may_allow_less_than_the_threshold():
    chosen = [*tasks("digit"), Task(name="parity", model=teacher("parity"), max_drop=0.0, lr=5e-3)]
    free = search(tasks(), data(), thresholds=(0.3,), margin=0.0, policy="all-shared")
    [candidate] = free.candidates
    assert candidate["status"] == "accepted"
    assert 0.0 < candidate["checks"][-1]["drops"]["parity"] <= 0.3
    given = data()
    report = search(chosen, given, thresholds=(0.3,), margin=0.0, policy="all-shared")
    assert_within(report.best[0.3], given, chosen)
    [strict] = report.candidates
    assert strict["checks"][: candidate["epochs"] + 1] == candidate["checks"]  # trained on from where it had been enough
    assert strict["epochs"] > candidate["epochs"]
    assert (strict["status"] == "accepted") == (min(check["drops"]["parity"] for check in strict["checks"]) <= 0.0)


def permuted(model: nn.Sequential) -> nn.Sequential:
    """The same function, its hidden features in another order and of other sizes."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    layers = [layer for layer in twin if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, behind in pairwise(layers):
            order = torch.randperm(layer.out_features, generator=generator)
            size = 0.5 + torch.rand(layer.out_features, generator=generator)
            layer.weight.copy_(layer.weight[order] * size[:, None])
            layer.bias.copy_(layer.bias[order] * size)
            behind.weight.copy_(behind.weight[:, order] / size)
    return twin


def test_twins_in_other_coordinates_are_fused_without_training_and_without_any_drop():
    model = teacher("digit")
    images, labels = digits()
    chosen = [Task(name="digit", model=model), Task(name="twin", model=permuted(model))]
    parts = [Part(inputs=images[a:b], labels=dict.fromkeys(("digit", "twin"), labels["digit"][a:b])) for a, b in SPLIT]
    given = FusionData(train=parts[0], validation=parts[1])
    report = search(chosen, given, thresholds=(0.0,), policy="all-shared", metric="parameters")
    [candidate] = report.candidates
    assert (candidate["status"], candidate["epochs"]) == ("accepted", 0)
    assert candidate["checks"][0]["drops"] == {"digit": 0.0, "twin": 0.0}
    unaligned = search(chosen, given, thresholds=(0.0,), policy="all-shared", adapter_start="random", metric="parameters")
    assert max(unaligned.candidates[0]["checks"][0]["drops"].values()) > 0.3


SPLIT = ((0, 800), (800, 1200))


def test_a_score_that_raises_for_a_candidate_is_that_candidates_failure():
    raised: list[int] = []
    events: list[Event] = []

    def moody(output: Tensor, labels: Tensor) -> Tensor:
        if events and len(raised) < 4:  # the models themselves were scored before
            raised.append(1)
            raise ZeroDivisionError("of all things")
        return (output.argmax(1) == labels).double()

    chosen, given = [Task(name="digit", model=teacher("digit"), score=moody, lr=5e-3), *tasks("parity")], data()
    report = search(chosen, given, max_candidates=10, progress=events.append)
    broken = [record for record in report.candidates if "ZeroDivisionError: of all things" in record["why"]]
    assert len(broken) == 4
    assert {record["status"] for record in broken} == {"failed"}
    assert len(report.candidates) == 10
    assert any(record["checks"] for record in report.candidates)
    for entry in report.best.values():
        assert_within(entry, given, chosen)


def test_a_score_that_raises_for_the_models_themselves_is_told_at_once():
    def never(output: Tensor, labels: Tensor) -> float:
        raise ZeroDivisionError

    chosen = [Task(name="digit", model=teacher("digit"), score=never), *tasks("parity")]
    with pytest.raises(ZeroDivisionError):
        search(chosen, data())


@pytest.mark.parametrize("variant", ["full", "paper"])
def test_a_candidate_whose_loss_is_not_a_number_has_failed_and_the_others_go_on(variant: str):
    calls: list[int] = []

    def poisoned(units: Sequence[TrainUnit], *, steps: int, seed: int) -> list[TrainOutcome]:
        calls.append(1)
        if len(calls) <= 2:
            with torch.no_grad():
                next(units[0].module.parameters()).fill_(torch.nan)
        return train_one_by_one(units, steps=steps, seed=seed)

    given, chosen = data(), tasks()
    report = search(chosen, given, variant=variant, cotrain=poisoned, policy="exhaustive", thresholds=(0.001,), stitches=False)
    failed = [record for record in report.candidates if "not finite" in record["why"]]
    assert len(failed) == 2
    assert all(record["status"] == "failed" for record in failed)
    assert len(report.candidates) == 8
    assert any(record["epochs"] > 0 for record in report.candidates if record not in failed)
    assert_within(report.best[0.001], given, chosen)


def test_a_candidate_that_cannot_be_built_has_failed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    make_trial = loop.make_trial

    def clumsy(*args: Any, number: int, **rest: Any) -> Any:
        if number == 2:
            raise RuntimeError("no memory left")
        return make_trial(*args, number=number, **rest)

    monkeypatch.setattr(loop, "make_trial", clumsy)
    report = search(max_candidates=4)
    assert (report.candidates[1]["status"], report.candidates[1]["why"]) == ("failed", "RuntimeError: no memory left")
    assert len(report.candidates) == 4


def test_four_tasks_become_one_module():
    names = ("digit", "parity", "large", "round")
    chosen, given = tasks(*names), data(names)
    report = search(chosen, given, thresholds=(0.05,), max_candidates=10)
    entry = report.best[0.05]
    assert_within(entry, given, chosen)
    assert_answers(entry, names)
    assert report.original["parameters"] > entry.parameters or entry.number == 0


def test_what_was_fused_can_be_fused_again():
    first = search(tasks(), data(has_test=False), thresholds=(0.2,), margin=0.0).best[0.2]
    assert first.number
    parts = first.module.split()
    images = digits()[0][:5]
    before = {name: part(images) for name, part in parts.items()}
    chosen = [Task(name=name, model=part, lr=5e-3) for name, part in parts.items()] + tasks("large")
    given = data(("digit", "parity", "large"))
    second = search(chosen, given, thresholds=(0.2,), margin=0.0).best[0.2]
    assert second.number
    assert_within(second, given, chosen)
    assert_answers(second, ("digit", "parity", "large"))
    assert all(torch.equal(part(images), before[name]) for name, part in parts.items())
    whole = [Task(name="both", model=first.module, output="parity", lr=5e-3), *tasks("large")]
    given = data(("large",))
    third = search(whole, given, thresholds=(0.2,), margin=0.0, max_candidates=3)
    with torch.no_grad():
        assert list(third.module(images)["both"]) == ["digit", "parity"]


def test_an_audit_trains_what_would_have_been_ended_and_counts_mistakes():
    report = search(variant="paper-pr", audit=True, max_candidates=10, epochs=5, thresholds=(0.05,))
    assert report.audit is not None
    assert all(record["status"] != "skipped" for record in report.candidates)
    ended = [record for record in report.candidates if record["given_up"] is not None]
    assert report.audit["ended_early"] == len(ended)
    assert report.audit["would_have_met"] == sum(record["status"] == "accepted" for record in report.candidates)
    assert report.audit["wrongly_ended"] == [record["number"] for record in ended if record["status"] == "accepted"]
    counts = report.audit["reasons"]
    assert sum(count["ended"] for count in counts.values()) == len(ended)
    assert sum(count["wrong"] for count in counts.values()) == len(report.audit["wrongly_ended"])
    assert "shares more than a candidate that failed" in counts
    full = search(audit=True, max_candidates=6)
    assert full.audit is not None
    assert any(why.startswith("others promised more") for why in full.audit["reasons"])


def test_the_rule_filter_leaves_out_what_shares_more_than_what_failed():
    report = search(variant="paper-pr", max_candidates=12, thresholds=(0.05,), early_termination=False)
    skipped = [record for record in report.candidates if record["status"] == "skipped"]
    assert skipped
    assert all(record["epochs"] == 0 and record["checks"] == [] for record in skipped)


def test_a_budget_of_seconds_leaves_a_valid_front():
    given, chosen, events = data(), tasks(), []
    report = search(chosen, given, max_candidates=None, budget_seconds=1.0, epochs=50, progress=events.append)
    assert report.why == "the time was up"
    for entry in report.best.values():
        assert_within(entry, given, chosen)
    assert_whole(report, events)
    assert search(max_candidates=None, budget_seconds=0.001).candidates == ()


def test_a_search_that_finds_nothing_better_for_long_ends():
    report = search(policy="random", thresholds=(0.0,), stall=4, max_candidates=40, epochs=1, margin=30.0)
    assert report.why.endswith("candidates brought nothing better")
    assert len(report.candidates) < 40


def test_an_exhausted_space_ends_a_search():
    models = [Task(name=name, model=network(2, 8, 2).eval()) for name in ("one", "two")]
    images = digits()[0]
    given = FusionData(train=Part(inputs=images[:200]), validation=Part(inputs=images[200:300]))
    report = search(models, given, policy="exhaustive", max_candidates=500, epochs=1, rungs=())
    assert report.why == "every graph of the space has been looked at"
    assert 1 <= len(report.candidates) < 100


def test_the_front_of_a_report_is_that_of_all_points_within_a_threshold():
    report = search(max_candidates=8, thresholds=(0.9,), margin=0.0)
    accepted = {record["number"] for record in report.candidates if record["status"] == "accepted"}
    assert accepted
    assert {point["candidate"] for point in report.front} <= accepted | {0}
    assert report.front[0]["cost"] == min(report.candidates[number - 1]["cost"] for number in accepted)
    assert min(point["drop"] for point in report.front) <= 0.0  # the original, or what has nowhere lost against it
