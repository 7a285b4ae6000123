"""Searches of a second over tiny models on scikit-learn's digits, and what all of them have to keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fusion.search.config import preset
from fusion.search.data import FusionData, Part, SealedPart
from fusion.search.page import page
from fusion.search.progress import CandidateDone, Event, Finished, Improved, Started
from fusion.search.report import Entry, FusionReport
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


def accuracy(model: nn.Module, part: Part, task: str) -> float:
    with torch.no_grad():
        answer = model(part.inputs)
    answer = answer[task] if isinstance(answer, dict) else answer
    return float((answer.argmax(1) == part.labels[task]).double().mean())


def assert_within(entry: Entry, given: FusionData, chosen: Sequence[Task]) -> None:
    """Scored by hand, on the validation part and on the held-out one."""
    assert given.test is not None
    for part in (given.validation, given.test._part):
        for task, end in zip(chosen, entry.tasks, strict=True):
            lost = accuracy(task.model, part, task.name) - accuracy(entry.module, part, task.name)
            limit = entry.threshold if task.max_drop is None else min(entry.threshold, task.max_drop)
            assert lost <= limit + 1e-12  # shares of 400 samples, added up in another order
            told = end.drop if part is given.validation else end.test_drop
            assert told == pytest.approx(lost, abs=1e-9)


def assert_answers(entry: Entry, names: Sequence[str]) -> None:
    """Outputs by task, and any subset bit for bit the same."""
    images = digits()[0][:7]
    with torch.no_grad():
        whole = entry.module(images)
        assert list(whole) == list(names)
        for name in names:
            assert torch.equal(entry.module(images, tasks=[name])[name], whole[name])
            assert torch.equal(entry.module.only(name)(images)[name], whole[name])
            assert torch.equal(entry.module.split()[name](images), whole[name])
    assert not entry.module.training


def assert_whole(report: FusionReport, events: list[Event]) -> None:
    """What a report and the events on the way say agrees, whatever was searched and how."""
    text = json.dumps(report.to_json(), allow_nan=False, default=str)
    assert page(json.loads(text)).rstrip().endswith("</html>")
    numbers = [record["number"] for record in report.candidates]
    assert numbers == [*range(1, len(numbers) + 1)] == [e.number for e in events if isinstance(e, CandidateDone)]
    assert {record["status"] for record in report.candidates} <= {"accepted", "failed", "unknown", "skipped"}
    assert len({record["key"] for record in report.candidates if record["status"] == "accepted"}) == sum(
        record["status"] == "accepted" for record in report.candidates
    )
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    costs = [point["cost"] for point in report.front]
    assert costs == sorted(costs)
    assert not any(
        one is not other and all(one[name] <= other[name] for name in ("cost", "drop", "parameters"))
        for one in report.front
        for other in report.front
    )
    best = {event.threshold: event.speedup for event in events if isinstance(event, Improved)}
    for threshold, entry in report.best.items():
        assert best.get(threshold, 1.0) >= report.original["cost"] / entry.cost - 1e-9
        assert entry.number == 0 or report.candidates[entry.number - 1]["status"] == "accepted"
