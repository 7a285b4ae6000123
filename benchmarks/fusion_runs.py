"""One task set with one seed: its models are trained once, searched by every contender in turn, and the finalists measured.

All of it happens in one process, so that contenders share teachers, data and the last measurement.
"""

from __future__ import annotations

import gc
import os
import random
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.fusion_records import THRESHOLDS, Contender, Unit
from benchmarks.fusion_searches import Found, recorded, shape_of
from benchmarks.fusion_stage import Stage
from benchmarks.fusion_starts import measure_starts
from benchmarks.fusion_tasks import SCALES, accuracy, task_sets, trained
from fusion.search.build import build
from fusion.search.config import Config, preset
from fusion.search.progress import Event
from fusion.search.search import run
from fusion.timer import Timing, time_interleaved
from unified.fusing.cotrain import co_train

SETS = ("vgg", "mixed", "vit", "text")
REFERENCE = "paper-pr"

GUIDED = Contender(name="guided", preset="full", policy=None, thresholds=THRESHOLDS)
REFERENCES = tuple(Contender(name=REFERENCE, preset=REFERENCE, policy=None, thresholds=(each,)) for each in THRESHOLDS)
PAPER = Contender(name="paper", preset="paper", policy=None, thresholds=(0.01,))
BASELINES = tuple(
    Contender(name=policy, preset="full", policy=policy, thresholds=THRESHOLDS) for policy in ("all-shared", "tree", "random")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """What is to be done.

    Attributes:
        set: Name out of :data:`SETS`.
        seed: Of teachers, searches and their order.
        scale: Name out of :data:`~benchmarks.fusion_tasks.SCALES`.
        seconds: Budget of each search.
        contenders: That search.
        num_starts: Single adapters to be looked at before any training.
        data: Folder of real data, or None.
        threads: Of PyTorch.
        samples: Of the training part, that searches see; None: all.
    """

    set: str
    seed: int
    scale: str
    seconds: float
    contenders: tuple[Contender, ...]
    num_starts: int
    data: Path | None
    threads: int
    samples: int | None = None

    @property
    def measure_seconds(self) -> float:
        """What a search may spend on measuring the cost of blocks: a twentieth of its budget."""
        return min(5.0, self.seconds / 20)

    @property
    def final_seconds(self) -> float:
        """For the last measurement of all finalists."""
        return min(12.0, self.seconds / 3)


def run_unit(plan: UnitPlan) -> Unit:
    """Train the models of a set, let each contender search, in an order drawn by the seed, and measure the finalists."""
    torch.set_num_threads(plan.threads)
    tasks = task_sets(plan.data, SCALES[plan.scale])[plan.set]()
    models, teacher_seconds = trained(tasks, plan.seed)
    seen = tasks.train if plan.samples is None else tasks.train.first(plan.samples)
    stage = Stage(replace(tasks, train=seen), models, plan.measure_seconds)
    order = list(plan.contenders)
    random.Random(f"{plan.set} {plan.seed}").shuffle(order)
    found: dict[Contender, Found] = {}
    failures: list[str] = []
    for place, contender in enumerate(order):
        try:
            found[contender] = _search(stage, plan, contender, place)
        except Exception:  # noqa: BLE001  what breaks one search is a finding; the others go on
            failures.append(f"{contender.title}: {traceback.format_exc()}")
    reports = [found[contender] for contender in plan.contenders if contender in found]
    timings = _timings(stage, reports, plan.final_seconds)
    test = tasks.test
    return Unit(
        set=plan.set,
        seed=plan.seed,
        models=tasks.name,
        source=tasks.source,
        has_labels=tasks.has_labels,
        teacher_accuracy={task: accuracy(model, test.inputs, test.labels[task]) for task, model in models.items()},
        teacher_seconds=teacher_seconds,
        original_ms=1e3 * timings[shape_of(stage.original)].quiet_seconds,
        searches=tuple(recorded(stage, each, timings, set_name=plan.set, seed=plan.seed) for each in reports),
        starts=measure_starts(stage, plan.seed, plan.num_starts),
        failures=tuple(failures),
    )


def config_of(plan: UnitPlan, contender: Contender, *, has_labels: bool) -> Config:
    """Return the settings of a search."""
    changes: dict[str, Any] = {} if contender.policy is None else {"policy": contender.policy}
    return preset(
        contender.preset,
        thresholds=contender.thresholds,
        budget_seconds=plan.seconds,
        measure_seconds=plan.measure_seconds,
        seed=plan.seed,
        label_free=not has_labels,
        **changes,
    )


def _search(stage: Stage, plan: UnitPlan, contender: Contender, place: int) -> Found:
    gc.collect()
    load, began = os.getloadavg()[0], time.perf_counter()
    events: list[Event] = []
    config = config_of(plan, contender, has_labels=stage.tasks.has_labels)
    report = run(stage.search_tasks, stage.data, config, cotrain=co_train, progress=events.append)
    return Found(
        contender=contender,
        place=place,
        load_before=load,
        whole_seconds=time.perf_counter() - began,
        report=report,
        events=tuple(events),
    )


def _timings(stage: Stage, found: Sequence[Found], max_seconds: float) -> Mapping[str, Timing]:
    """Measure every shape of finalist, and the models side by side, in turns."""
    trees = {shape_of(stage.original): build(stage.original, stage.sequences, seed=0).eval()}
    for each in found:
        for entry in each.report.best.values():
            trees.setdefault(shape_of(entry.graph), entry.module)
    inputs = (stage.tasks.train.inputs[:1],)
    runs = [lambda tree=tree: tree.run(inputs) for tree in trees.values()]
    return dict(zip(trees, time_interleaved(runs, max_seconds=max_seconds, min_runs=20, precision=0.002), strict=True))
