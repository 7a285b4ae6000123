"""The merging benchmark runs at its smallest scale and says what it should; no test looks at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.merging import main
from benchmarks.merging_aims import aims
from benchmarks.merging_tables import PUBLISHED

needs_data = pytest.mark.skipif("UNIFIED_DATA" not in os.environ, reason="needs Fashion-MNIST: set UNIFIED_DATA")


@needs_data
@pytest.mark.slow
def test_the_tables_targets_and_picture_are_of_what_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merging.json"
    main(["--tiny", "--only", "M3", "M4", "M5", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "published" in printed
    assert PUBLISHED["taylor", "A"].split(",")[0] in " ".join(printed.split())
    found = json.loads(out.read_text())
    assert {"machine", "versions", "commit", "command"} <= found.keys()
    (run,) = found["runs"]
    assert (run["network"], run["tasks"], run["method"], run["seed"]) == ("lenet5", "two", "taylor", 0)
    assert run["report"]["schemes"].keys() == {"original", "PAM", "B1", "B2"}
    assert run["checks"]["subsets_equal"] == 3
    assert run["checks"]["flops_monotone"] == 1
    assert run["groups"]["large_alpha_difference"] < 1e-5
    verdicts = {(target["id"], target["measure"]): target["verdict"] for target in found["targets"]}
    assert verdicts["M5", "specialised_max_difference"] == "PASS"
    assert verdicts["M7", "gpu_layer_seconds"] == "NOT-RUN"
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_without_data_nothing_is_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merging.json"
    assert main(["--tiny", "--only", "M4", "--data", str(tmp_path), "--out", str(out)]) == 0
    assert "NOT-RUN" in capsys.readouterr().out
    assert json.loads(out.read_text())["runs"] == []


def test_targets_without_runs_are_not_run() -> None:
    assert {target.verdict for target in aims([], None)} == {"NOT-RUN"}
