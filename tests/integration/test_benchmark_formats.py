"""The formats benchmark runs end to end at its smallest scale and says what it should; no test looks at a time."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import formats
from benchmarks.formats_measure import measure
from benchmarks.formats_models import FAMILIES, default_names, entries
from benchmarks.formats_tables import Row, aims_of


@pytest.mark.slow
def test_the_benchmark_measures_what_is_accepted_and_tells_why_the_rest_is_not(tmp_path: Path) -> None:
    out = tmp_path / "formats.json"
    names = ["mlp", "branch_on_value", "several_inputs"]
    arguments = [*(word for name in names for word in ("--model", name)), "--seconds", "0.01", "--out", str(out)]
    assert formats.main(arguments) == 0
    report = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert {"command", "date", "git_commit", "machine", "versions", "settings", "rows", "aims"} <= set(report)
    assert [row["name"] for row in report["rows"]] == names
    mlp, branching, several = report["rows"]
    for row in (mlp, several):
        assert (row["outcome"], row["is_identical"], row["max_difference"]) == ("accepted", True, 0.0)
        assert len(row["eager_ms"]) == len(row["loaded_ms"]) > 0
        assert row["peak_ratio"] == pytest.approx(1.0, abs=0.1)
        assert row["flops"] > row["eval_flops"] > 0
    assert branching["outcome"] == "refused"
    assert "…/fusion_zoo_user.py:" in branching["reason"]
    assert "if x.mean() > 0:" in branching["reason"]


def test_a_model_that_fails_is_a_row_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no such layer in /home/somebody/model.py")

    known = entries()
    known["mlp"] = replace(known["mlp"], build=broken)
    monkeypatch.setattr("benchmarks.formats_measure.entries", lambda: known)
    row = measure("mlp", threads=1, seconds=0.0)
    assert (row.outcome, row.reason) == ("failed", "RuntimeError: no such layer in …/model.py")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_models_of_a_library_that_is_not_installed_are_named_and_left_out() -> None:
    row = measure("mixer_s32_224", threads=1, seconds=0.0)
    assert (row.outcome, row.reason) == ("not installed", "needs timm")


def test_the_table_names_each_model_once_and_only_models_that_there_are() -> None:
    names = default_names()
    assert len(set(names)) == len(names) >= 50
    assert set(names) <= entries().keys()
    assert {"VGG", "Swin", "DeiT", "MLP-Mixer", "DeBERTa-v2", "Dict input", "Tied weights"} <= FAMILIES.keys()


def test_aims_are_of_what_was_measured() -> None:
    row = Row(
        name="resnet18",
        family="ResNet",
        library="torchvision",
        inputs="8x3x64x64",
        outcome="accepted",
        is_identical=True,
        load_ms=[100.0, 200.0, 300.0],
        eager_ms=[10.0, 10.0],
        loaded_ms=[11.0, 11.0],
        estimated_peak_bytes=95,
        measured_peak_bytes=100,
    )
    verdicts = {
        aim.text: (aim.value, aim.verdict) for aim in aims_of([row, replace(row, outcome="refused", is_identical=None)])
    }
    assert verdicts["load of ResNet-18, ms"] == (200.0, "reached")
    assert verdicts["step against eager, median over the models"][1] == "not reached"
    assert verdicts["peak estimate, 95th percentile of its error"] == (pytest.approx(0.05), "reached")
    assert verdicts["evaluation estimate, 95th percentile of its error"] == (None, "not measured")
