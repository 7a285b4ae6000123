"""The settings of a search: refused all at once where they are wrong, and the presets that stand for the paper's variants."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.graph.errors import FusionError
from fusion.search.config import PRESETS, Config, Metric, preset


def test_all_problems_are_told_at_once():
    wrong = {
        "thresholds": (0.01, 1.0), "policy": "best", "adapter_start": "zero", "epochs": 0, "batch_size": 0, "lr": -1.0,
        "budget_seconds": 0.0, "rungs": (2, 1), "margin": -1.0, "metric": "speed", "sharing": "all", "barred": {"atention"},
        "measure_seconds": 0.0, "resume": True,
    }  # fmt: skip
    with pytest.raises(FusionError, match="the settings of the search: ") as caught:
        Config(**wrong)
    for name in wrong:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thresholds", ()), ("thresholds", (float("nan"),)), ("thresholds", (-0.01,)), ("thresholds", 0.01),
        ("budget_seconds", float("nan")), ("max_candidates", 0), ("stall", 0), ("cohort", 0), ("screen", 0), ("num_pairs", 0),
        ("check_epochs", 0), ("latency_batch", 0), ("rungs", (0, 1)), ("rungs", (1, 1)), ("margin", float("nan")),
        ("adapter_lr_factor", 0.0), ("lr", float("nan")),
    ],
)  # fmt: skip
def test_each_problem_names_its_setting_and_the_value(name, value):
    with pytest.raises(FusionError, match=name) as caught:
        Config(**{name: value})
    assert str(value) in str(caught.value)


def test_the_defaults_and_metrics_and_sharings_by_name_are_fine():
    assert Config().thresholds == (0.01,)
    assert Config(metric="flops", sharing="any", barred=frozenset({"attention"})).metric == Metric.FLOPS
    assert Config(thresholds=(0.0,)).thresholds == (0.0,)


@pytest.mark.parametrize(
    ("epochs", "rungs", "check_epochs", "checks"),
    [
        (8, (1, 2, 4), 2, (1, 2, 4, 6, 8)),
        (8, (), 2, (2, 4, 6, 8)),
        (7, (), 3, (3, 6, 7)),
        (4, (1, 2, 4), 2, (1, 2, 4)),
        (1, (1, 2, 4), 2, (1,)),
        (5, (2,), 10, (2, 5)),
    ],
)
def test_candidates_are_looked_at_at_the_rungs_then_in_regular_steps_and_at_the_end(epochs, rungs, check_epochs, checks):
    assert Config(epochs=epochs, rungs=rungs, check_epochs=check_epochs).checks == checks


@given(st.integers(1, 30), st.sets(st.integers(1, 40), max_size=4), st.integers(1, 12))
def test_the_looks_ascend_and_end_with_the_last_epoch(epochs, rungs, check_epochs):
    checks = Config(epochs=epochs, rungs=tuple(sorted(rungs)), check_epochs=check_epochs).checks
    assert list(checks) == sorted(set(checks))
    assert checks[-1] == epochs
    assert {rung for rung in rungs if rung < epochs} <= set(checks)
    assert max(after - before for before, after in zip((0, *checks), checks, strict=False)) <= max(check_epochs, *rungs, 0)


def test_without_any_budget_there_is_an_end_all_the_same():
    assert Config().candidates == 120
    assert Config(max_candidates=5, budget_seconds=1.0).candidates == 5
    assert Config(budget_seconds=1.0).candidates == float("inf")


def test_the_presets_are_the_variants_of_the_paper():
    paper, early, both = (preset(name) for name in ("paper", "paper-p", "paper-pr"))
    assert preset("full") == Config()
    assert (paper.policy, paper.num_pairs, paper.cohort, paper.rungs, paper.fifo_elites) == ("annealing", 2, 1, (), True)
    assert paper.adapter_start == "random"
    assert paper.stitches is paper.averages is False
    assert [(c.early_termination, c.rule_filter, c.unknown_fails) for c in (paper, early, both)] == [
        (False, False, False), (True, False, False), (True, True, True),
    ]  # fmt: skip
    for name, settings in PRESETS.items():
        assert settings.keys() <= {field.name for field in fields(Config)}
        assert preset(name, seed=7, epochs=3).epochs == 3


def test_an_unknown_preset_or_setting_is_refused_by_name():
    with pytest.raises(FusionError, match="'papre'"):
        preset("papre")
    with pytest.raises(FusionError, match="'epoch'"):
        preset("full", epoch=3)
    with pytest.raises(FusionError, match="epochs is at least 1"):
        preset("full", epochs=0)


def test_a_history_goes_on_with_other_budgets_and_folders_only():
    base = Config(seed=3, barred=frozenset({"conv", "attention"}))
    free = {"budget_seconds": 5.0, "max_candidates": 3, "stall": 2, "out": Path("x"), "resume": True, "measure_seconds": 1.0}
    changed = {field.name: getattr(base, field.name) for field in fields(Config)} | free
    assert Config(**changed).identity() == base.identity()
    assert json.loads(json.dumps(base.identity())) == base.identity()
    for name, value in {"seed": 4, "epochs": 9, "thresholds": (0.02,), "policy": "random", "label_free": True}.items():
        assert Config(**{name: value}).identity() != Config().identity()
