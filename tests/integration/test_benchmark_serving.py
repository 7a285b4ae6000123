"""The benchmark of serving runs at its smallest scale and says what it should; no test looks at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.serving import main
from benchmarks.serving_aims import aims

needs_data = pytest.mark.skipif("UNIFIED_DATA" not in os.environ, reason="needs Fashion-MNIST: set UNIFIED_DATA")


@needs_data
@pytest.mark.slow
def test_what_is_built_is_judged_loaded_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "serving.json"
    main(["--tiny", "--only", "V4", "V6", "--work", str(tmp_path / "work"), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "share of planned queries that miss" in printed
    content = json.loads(out.read_text())
    assert {"machine", "versions", "recipe"} <= content.keys()
    assert [run.keys() for run in content["runs"]] == [{"command", "commit", "load_average_before"}]
    found = content["found"]
    assert (found["build"]["variants_mtl"], found["build"]["variants_single"]) == (8, 6)  # of two ratios
    assert {row["source"] for row in found["build"]["rows"]} == {"pruned", "head_removed", "single"}
    assert len(found["mishits"]["grids"]) == 16  # two residencies, two modes, all tasks and each of three
    assert (found["drain"]["lost"], found["drain"]["exit_code"]) == (0, 0)
    assert (found["swap"]["lost"], found["swap"]["variants_gone"], found["swap"]["variants_new"]) == (0, 1, 1)
    assert found["fuzz"]["status_5xx"] == 0
    verdicts = {(target["id"], target["measure"]): target["verdict"] for target in content["targets"]}
    assert verdicts["V6", "lost_in_drain"] == verdicts["V6", "status_5xx"] == "PASS"
    assert verdicts["V1", "seconds"] == verdicts["V5", "gpu_latency_cut_at_15"] == "NOT-RUN"
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_without_data_nothing_is_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "serving.json"
    assert main(["--tiny", "--data", str(tmp_path), "--out", str(out)]) == 0
    assert "NOT-RUN" in capsys.readouterr().out
    assert not out.exists()


def test_targets_without_measurements_are_not_run() -> None:
    assert {target.verdict for target in aims({})} == {"NOT-RUN"}
