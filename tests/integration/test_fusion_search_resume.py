"""What a search leaves on disk: it goes on from there after any end, refuses what does not belong to it, and stays small."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import fusion.search.search as loop
from fusion.graph.errors import FusionError
from fusion.search.data import FusionData
from fusion.search.guided import GuidedPolicy
from fusion.search.policy import MAX_ELITES, Proposal, Snapshot
from fusion.search.progress import Event
from fusion.search.tasks import Task
from fusion.search.training import TrainOutcome, TrainUnit
from tests.integration.fusion_searches import (
    data,
    fates,
    same_table,
    search,
    tasks,
    teacher,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Leave what is there already out of the garbage collections that measuring begins with: they take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_finished_search_that_is_resumed_does_nothing_more(tmp_path: Path):
    first = search(out=tmp_path)
    files = {
        path: path.read_bytes() for path in (tmp_path / "search").rglob("*") if path.is_file() and "features" not in str(path)
    }

    def refuse(units: Sequence[TrainUnit], *, steps: int, seed: int) -> list[TrainOutcome]:
        raise AssertionError("there is nothing left to be trained")

    again = search(out=tmp_path, resume=True, cotrain=refuse)
    assert fates(again) == fates(first)
    assert again.why == first.why
    assert {threshold: entry.graph for threshold, entry in again.best.items()} == {
        threshold: entry.graph for threshold, entry in first.best.items()
    }
    assert {path: path.read_bytes() for path in files} == files
    more = search(out=tmp_path, resume=True, max_candidates=12)
    assert fates(more)[:8] == fates(first)
    assert len(more.candidates) == 12


@pytest.mark.parametrize("metric", ["latency", "parameters"])  # with parameters many candidates cost the same
def test_after_a_resume_a_policy_is_told_the_very_same(metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[list[str]] = []

    class Listening(GuidedPolicy):
        def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
            told.append(words(snapshot))
            return super().propose(snapshot, rng, count)

    def words(snapshot: Snapshot) -> list[str]:
        """Everything but functions; NaN is like NaN here."""
        entries = [snapshot.iteration, snapshot.elites, sorted(snapshot.known.items()), snapshot.best_cost, snapshot.last_drop]
        return [repr(entry) for entry in entries]

    monkeypatch.setattr(loop, "GuidedPolicy", Listening)
    how = {"screen": 6, "cohort": 6, "rungs": (1,), "epochs": 3, "early_termination": False, "thresholds": (0.0, 0.03),
           "margin": 0.0, "metric": metric}  # fmt: skip
    search(out=tmp_path / "whole", max_candidates=24, **how)
    whole, told[:] = [*told], []
    assert len(whole) == 4
    same_table(tmp_path / "whole", tmp_path / "parts")
    search(out=tmp_path / "parts", max_candidates=12, **how)
    search(out=tmp_path / "parts", max_candidates=24, resume=True, **how)
    assert told == whole


def test_what_is_resumed_must_be_what_was_begun(tmp_path: Path):
    search(out=tmp_path, max_candidates=3, policy="exhaustive")
    with pytest.raises(FusionError, match=r"holds an earlier search; go on with it \(resume\), or use a new path"):
        search(out=tmp_path, max_candidates=3, policy="exhaustive")
    other = data()
    other = FusionData(train=other.validation, validation=other.train, test=other.test)
    common = {"out": tmp_path, "max_candidates": 3, "policy": "exhaustive", "resume": True}
    begin = r"history at .* was made for other models, data or settings: "
    with pytest.raises(FusionError, match=begin + "data; use a new path or --fresh"):
        search(given=other, **common)
    with pytest.raises(FusionError, match=begin + r"settings \(seed\)"):
        search(seed=3, **common)
    with pytest.raises(FusionError, match=begin + r"models \(parity\)"):
        search([*tasks("digit"), Task(name="parity", model=teacher("large"), lr=5e-3)], data(), **common)
    with pytest.raises(FusionError, match=begin + r"settings \(task parity\)"):
        search([*tasks("digit"), Task(name="parity", model=teacher("parity"), lr=5e-3, max_drop=0.0)], data(), **common)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(FusionError, match="costs cannot be compared"):
            search(**common)
    finally:
        torch.set_num_threads(threads)
    assert len(search(**common).candidates) == 3  # after all that it is still there


def test_an_output_that_cannot_be_written_and_wrong_data_are_refused_before_anything_happens(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    events: list[Event] = []
    with pytest.raises(FusionError, match="cannot be written"):
        search(out=tmp_path / "file" / "out", progress=events.append)
    good = data()
    with pytest.raises(FusionError, match="two parts are the same samples"):
        search(given=FusionData(train=good.train, validation=good.train), out=tmp_path / "out", progress=events.append)
    assert events == []

    def interrupt(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(given=good, out=tmp_path / "out", seed=7, progress=interrupt)
    # neither the refusal nor what was broken off before its first candidate took the folder
    assert search(given=good, out=tmp_path / "out", max_candidates=1).candidates


@pytest.mark.parametrize("variant", ["full", "paper"])
def test_weights_on_disk_are_bounded_over_60_candidates(variant: str, tmp_path: Path):
    running = 3
    most = 0

    def count(_: Event) -> None:
        nonlocal most
        most = max(most, sum(1 for _ in (tmp_path / "search" / "weights").glob("*.safetensors")))

    given = data(has_test=False)
    report = search(
        given=given, variant=variant, out=tmp_path, progress=count, policy="random", max_candidates=60, epochs=2,
        screen=running,
        cohort=running, rungs=(1,) if variant == "full" else (), thresholds=(0.3, 0.5, 0.7), batch_size=200, num_pairs=None,
    )  # fmt: skip
    assert len(report.candidates) == 60
    assert sum(record["status"] == "accepted" for record in report.candidates) > MAX_ELITES
    assert most <= MAX_ELITES + 3 + running
    count(report)  # type: ignore[arg-type]


def test_a_search_that_is_killed_at_any_point_ends_with_the_very_same_models(tmp_path: Path):
    command = [sys.executable, "-m", "tests.integration.fusion_kills", str(tmp_path), "0", "1"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    told = json.loads(done.stdout)
    whole = told.pop("whole")
    assert whole["kills"] == 0
    assert len(whole["candidates"]) == 18
    assert whole["weights"].keys() == {"0.0", "0.03"}
    for name, result in told.items():
        assert result["kills"] >= 2, name
        assert {key: result[key] for key in ("candidates", "graphs", "weights")} == {
            key: whole[key] for key in ("candidates", "graphs", "weights")
        }, name
    assert sum(result["kills"] for result in told.values()) >= 4
