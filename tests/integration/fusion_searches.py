"""Searches of a second over tiny models on scikit-learn's digits, and what all of them have to keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fusion.search.config import preset
from fusion.search.data import FusionData, Part, SealedPart
from fusion.search.progress import Event
from fusion.search.report import FusionReport
from fusion.search.search import run
from fusion.search.tasks import Task
from fusion.search.training import TrainOutcome, TrainUnit, train_one_by_one

NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 800, 400, 400
THRESHOLDS = (0.02, 0.08)


@lru_cache
def digits() -> tuple[Tensor, dict[str, Tensor]]:
    """Images as vectors, and what may be asked of them."""
    found = load_digits()
    count = NUM_TRAIN + NUM_VALIDATION + NUM_TEST
    digit = torch.tensor(found.target)[:count]
    labels = {"digit": digit, "parity": digit % 2, "large": (digit >= 5).long(), "round": torch.isin(digit, ROUND).long()}
    return torch.tensor(found.data, dtype=torch.float32)[:count] / 16, labels


ROUND = torch.tensor([0, 3, 6, 8, 9])


def network(num_classes: int, width: int = 20, depth: int = 4) -> nn.Sequential:
    """Linear layers of one width."""
    sizes = [64, *[width] * (depth - 1)]
    layers = [part for before, after in pairwise(sizes) for part in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


@lru_cache
def teacher(name: str, width: int = 20, depth: int = 4) -> nn.Sequential:
    """A trained network; it is not to be changed."""
    images, labels = digits()
    generator = torch.Generator().manual_seed(len(name))
    model = network(10 if name == "digit" else 2, width, depth)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = (2 / parameter.shape[-1]) ** 0.5 if parameter.ndim > 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for index in torch.randint(NUM_TRAIN, (250, 32), generator=generator):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[index]), labels[name][index]).backward()
        optimizer.step()
    return model.eval()


def tasks(*names: str, **changes: Any) -> list[Task]:
    return [Task(name=name, model=teacher(name), lr=5e-3, **changes) for name in names or ("digit", "parity")]


def data(names: Sequence[str] = ("digit", "parity"), *, has_test: bool = True) -> FusionData:
    images, labels = digits()
    ends = (0, NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION, NUM_TRAIN + NUM_VALIDATION + NUM_TEST)
    train, validation, test = (
        Part(inputs=images[begin:end], labels={name: labels[name][begin:end] for name in names})
        for begin, end in pairwise(ends)
    )
    return FusionData(train=train, validation=validation, test=SealedPart(test) if has_test else None)


def search(
    chosen: Sequence[Task] | None = None,
    given: FusionData | None = None,
    *,
    variant: str = "full",
    cotrain: Callable[..., Sequence[TrainOutcome]] = train_one_by_one,
    progress: Callable[[Event], None] | None = None,
    **settings: Any,
) -> FusionReport:
    """Search for a moment."""
    chosen = tasks() if chosen is None else chosen
    given = data([task.name for task in chosen]) if given is None else given
    defaults = {
        "thresholds": THRESHOLDS, "max_candidates": 8, "epochs": 4, "batch_size": 64, "measure_seconds": 0.1, "screen": 5,
        "cohort": 2, "check_epochs": 1,
    }  # fmt: skip
    return run(chosen, given, preset(variant, **(defaults | settings)), cotrain=cotrain, progress=progress)


def same_table(source: Path, *folders: Path) -> None:
    """Let searches decide by the costs that another one measured."""
    for folder in folders:
        (folder / "search").mkdir(parents=True, exist_ok=True)
        (folder / "search" / "table.json").write_bytes((source / "search" / "table.json").read_bytes())


def fates(report: FusionReport) -> list[Mapping[str, Any]]:
    return json.loads(json.dumps(report.candidates))


def weights(report: FusionReport, threshold: float) -> dict[str, Tensor]:
    return report.best[threshold].module.state_dict()


def backwards(units: Sequence[TrainUnit], *, steps: int, seed: int) -> list[TrainOutcome]:
    """Train the last unit first, in two goes: the contract says that nobody may notice."""
    half = steps // 2
    outcomes = {}
    for unit in reversed(units):
        [first] = train_one_by_one([unit], steps=half, seed=seed)
        later = TrainUnit(
            id=unit.id, module=unit.module, optimizer=unit.optimizer, batch=unit.batch, loss=unit.loss,
            first_step=unit.first_step + half, schedule=unit.schedule, clip=unit.clip,
        )  # fmt: skip
        [second] = train_one_by_one([later], steps=steps - half, seed=seed)
        outcomes[unit.id] = second if first.failure is None else first
    return [outcomes[unit.id] for unit in units]
