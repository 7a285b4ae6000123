"""Searches that are killed again and again and go on: ``python -m tests.integration.fusion_kills FOLDER SEED...``.

Each search is a child of this process, so that what it needs is imported once. It kills itself (SIGKILL: nothing is tidied up)
at a point drawn at random of all those at which it trains or brings something to disk. Prints what every one ended with.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusion.search.hashing import hash_tensors
from fusion.search.training import TrainOutcome, TrainUnit, train_one_by_one
from tests.integration.fusion_searches import same_table, search, teacher

NUM_CANDIDATES = 18
MAX_KILLS = 3


class Points:
    """Counts the points that a search has passed, and kills it at one of them."""

    def __init__(self, last: int | None) -> None:
        self.passed = 0
        self._last = last
        self._sync = os.fsync

    def count(self) -> None:
        self.passed += 1
        if self.passed == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(self, handle: int) -> None:
        """Stands in for ``os.fsync``: a point before, when names may be temporary, and one after."""
        self.count()
        self._sync(handle)
        self.count()

    def train(self, units: Sequence[TrainUnit], *, steps: int, seed: int) -> list[TrainOutcome]:
        """Train, with a point halfway."""
        half = steps // 2
        train_one_by_one(units, steps=half, seed=seed)
        self.count()
        later = [replace(unit, first_step=unit.first_step + half) for unit in units]
        return train_one_by_one(later, steps=steps - half, seed=seed)


def main(root: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    for name in ("digit", "parity"):
        teacher(name)
    gc.collect()
    gc.freeze()
    results = {"whole": _until_done(root / "whole", None, 0)}
    for seed in seeds:
        folder = root / f"seed {seed}"
        same_table(root / "whole", folder)
        results[folder.name] = _until_done(folder, random.Random(seed), results["whole"]["points"])
    sys.stdout.write(json.dumps(results))


def _until_done(folder: Path, rng: random.Random | None, num_points: int) -> dict[str, Any]:
    """Search, be killed, go on, until a child has ended by itself; without random numbers nobody is killed."""
    kills = 0
    while True:
        last = rng.randint(1, num_points // 2) if rng is not None and kills < MAX_KILLS else None
        child = os.fork()
        if child == 0:
            _search(folder, Points(last), resume=kills > 0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, f"the search in {folder} failed"
            return json.loads((folder / "result.json").read_text()) | {"kills": kills}
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1


def _search(folder: Path, points: Points, *, resume: bool) -> None:
    """Search in a child, write down what was found, and end."""
    os.fsync = points.fsync
    code = 1
    try:
        report = search(
            out=folder,
            resume=resume,
            max_candidates=NUM_CANDIDATES,
            thresholds=(0.0, 0.03),
            margin=0.0,
            cohort=6,
            screen=6,
            rungs=(1,),
            epochs=3,
            early_termination=False,
            cotrain=points.train,
        )
        result = {
            "candidates": report.to_json()["candidates"],
            "graphs": {str(threshold): entry.graph.key() for threshold, entry in report.best.items()},
            "weights": {
                str(threshold): hash_tensors(sorted(entry.module.state_dict().items()))
                for threshold, entry in report.best.items()
            },
            "points": points.passed,
        }
        (folder / "result.json").write_text(json.dumps(result))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
