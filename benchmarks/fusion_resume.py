"""T9: searches that are killed with SIGKILL at random points and gone on with, against the same searches in peace.

A table of costs is measured anew by every search, and two tables differ; so all searches of a seed are given the same one.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.fusion_records import Kill
from fusion.search.config import preset
from fusion.search.data import FusionData
from fusion.search.hashing import hash_tensors, tensors_of
from fusion.search.search import run
from fusion.search.tasks import Task

MAX_CANDIDATES = 28
ALLOWED = (0.02, 0.05)
NUM_SAMPLES, WIDTH = 6000, 12
_PATIENCE = 300.0
Result = dict[str, list[Any]]  # by threshold: the candidate, its graph, a hash of all of its tensors
_POLL = 0.002


def measure_kills(seed: int, kills: int, folder: Path, *, threads: int = 1) -> tuple[Kill, ...]:
    """Search once in peace, then once per kill: killed at a random point of that time, and gone on with to its end.

    Args:
        seed: Of models, searches and points in time.
        kills: How many.
        folder: To work in.
        threads: Of PyTorch.
    """
    rng = random.Random(f"kills {seed}")
    peace = folder / "peace"
    process, began = _begun(peace, seed, threads)
    process.join()
    span = time.perf_counter() - began
    expected = _result(peace)
    if expected is None:
        raise RuntimeError(f"the search that was not killed ended without a result: exit code {process.exitcode}")
    found = []
    for number in range(kills):
        share = (number + rng.random()) / kills  # at random, but not all in one phase
        found.append(_killed(folder / f"kill-{number}", peace, seed, share, span, expected, threads))
    return tuple(found)


def search_small(folder: str, seed: int, threads: int) -> None:
    """Search over two small models, or go on with it, and write what came out; runs in a process of its own."""
    torch.set_num_threads(threads)
    place = Path(folder)
    (place / "begun").touch()
    tasks, data = _small(seed)
    config = preset(
        "full",
        thresholds=ALLOWED,
        max_candidates=MAX_CANDIDATES,
        seed=seed,
        epochs=4,
        rungs=(1, 2),
        cohort=2,
        screen=4,
        measure_seconds=0.2,
        out=place,
        resume=(place / "search" / "candidates.jsonl").exists(),
    )
    report = run(tasks, data, config)
    content = {
        str(threshold): [entry.number, entry.graph.to_json(), hash_tensors(tensors_of(entry.module).items())]
        for threshold, entry in report.best.items()
    }
    (place / "result.json").write_text(json.dumps(content))


def _killed(place: Path, peace: Path, seed: int, share: float, span: float, expected: Result, threads: int) -> Kill:
    (place / "search").mkdir(parents=True)
    shutil.copy(peace / "search" / "table.json", place / "search" / "table.json")
    process, began = _begun(place, seed, threads)
    process.join(timeout=max(0.0, began + share * span - time.perf_counter()))
    is_killed = process.is_alive()
    process.kill()
    process.join()
    after = time.perf_counter() - began
    done = _num_candidates(place)
    if not (place / "result.json").exists():
        _begun(place, seed, threads)[0].join()
    return Kill(
        seed=seed,
        after_seconds=after if is_killed else None,
        share=share,
        candidates=done,
        is_equal=_result(place) == expected,
        num_better=sum(number > 0 for number, *_ in expected.values()),
    )


def _begun(place: Path, seed: int, threads: int) -> tuple[BaseProcess, float]:
    """Start a search in a process of its own; return it, and when it began to search."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "begun").unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fusion_resume"])
    process = context.Process(target=search_small, args=(str(place), seed, threads))
    process.start()
    end = time.perf_counter() + _PATIENCE
    while not (place / "begun").exists() and process.is_alive() and time.perf_counter() < end:
        time.sleep(_POLL)
    return process, time.perf_counter()


def _result(place: Path) -> Result | None:
    path = place / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def _num_candidates(place: Path) -> int:
    path = place / "search" / "candidates.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(len(entry["candidates"]) for entry in _whole(lines))


def _whole(lines: list[str]) -> Iterator[dict[str, list[object]]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return  # the kill struck while it was written


def _small(seed: int) -> tuple[list[Task], FusionData]:
    """Return two trained perceptrons of unequal width on the same made-up samples."""
    torch.manual_seed(seed)
    inputs = torch.randn(NUM_SAMPLES, WIDTH)
    hidden = torch.tanh(inputs @ torch.randn(WIDTH, WIDTH))
    labels = {name: (hidden @ torch.randn(WIDTH, classes)).argmax(1) for name, classes in (("one", 4), ("two", 3))}
    tasks = [Task(name="one", model=_model(20, 3, 4)), Task(name="two", model=_model(16, 2, 3))]
    for task in tasks:
        optimizer = torch.optim.Adam(task.model.parameters(), lr=5e-3)
        for rows in torch.randint(NUM_SAMPLES, (150, 64)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(task.model(inputs[rows]), labels[task.name][rows]).backward()
            optimizer.step()
        task.model.eval()
    return tasks, FusionData.split(inputs, labels, validation=0.25, test=0.25, seed=seed)


def _model(width: int, depth: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(WIDTH, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))
