"""The stacking benchmark runs end to end at its smallest scale and says what it should; no test looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import stacking
from benchmarks.stacking_models import KINDS, populate
from benchmarks.stacking_tables import Cell, targets_of
from benchmarks.stacking_ways import WAYS

STEPS = 2


@pytest.mark.slow
def test_the_benchmark_measures_every_way_and_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "stacking.json"
    arguments = ["--model", "mlp", "--count", "1", "--count", "2", "--threads", "1", "--seconds", "0.01", "--out", str(out)]
    assert stacking.main(arguments) == 0
    report = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert {"command", "git_commit", "machine", "versions", "settings", "models", "cells", "targets"} <= set(report)
    found = [(cell["kind"], cell["count"], cell["phase"]) for cell in report["cells"]]
    assert found == [("mlp", count, phase) for phase in ("training", "inference") for count in (1, 2)]
    for cell in report["cells"]:
        assert set(cell["seconds"]) == {"loop", "stack", "vmap", "unified"}
        assert len({len(rounds) for rounds in cell["seconds"].values()}) == 1
        assert cell["differences"]["stack"] < 1e-5


@pytest.mark.parametrize("phase", list(WAYS))
@pytest.mark.parametrize("kind", ["mlp", "conv-norm", "encoder"])
def test_every_way_computes_what_the_loop_does(kind: str, phase: str) -> None:
    assert kind in KINDS
    people = populate(kind, 3, batch_size=4)
    results = {}
    for name, make in WAYS[phase].items():
        way = make(people)
        if phase == "inference":
            results[name] = way.step()
        elif name != "stack":  # which trains on while it finds its width
            for _ in range(STEPS):
                way.step()
            results[name] = way.result()
    assert len(results) > 1
    for result in results.values():
        assert (result - results["loop"]).abs().max() < 1e-5


def test_an_aim_is_reached_only_by_what_was_measured() -> None:
    cell = Cell(
        kind="encoder",
        count=8,
        phase="training",
        threads=1,
        seconds={"loop": [3.0, 3.0], "stack": [2.0, 2.0], "unified": [2.0, 2.0]},
        notes={},
        tried={},
        differences={"stack": 1e-7},
        failed={},
        peak_bytes={},
        whole_machine_seconds={"processes": 3.0, "stacks": 2.5},
    )
    verdicts = {target.text: target.is_reached for target in targets_of([cell])}
    assert verdicts["encoder, N=8, 1 thread, training: times the loop"] is True
    assert verdicts["encoder, N=8, whole machine: times 8 processes"] is False
    assert verdicts["mlp, N=32, 1 thread, training: times the loop"] is None
