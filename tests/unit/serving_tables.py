"""Profile tables written by hand or drawn, and selection by trying out everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serving.queries import AccuracyMode, Budget, Query
from serving.records import Family, Kind, Source, TaskSpec, Variant
from serving.selection import State
from serving.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant of a table: its latency by batch size (p50; p95 is a quarter more), and its scores by task."""

    id: str
    scores: dict[str, float]
    infer_ms: tuple[float, ...]
    load_ms: float = 0.0
    source: Source = Source.PRUNED
    ratio: float = 0.0


def table_of(rows: Sequence[Row], tasks: Sequence[str] = ("a", "b", "c"), batches: tuple[int, ...] = (1,)) -> Table:
    """Return a table of these variants."""
    rows = sorted(rows, key=lambda row: (row.infer_ms[0], row.id))
    family = Family(name="f", inputs=(), tasks=tuple(TaskSpec(name=t, kind=Kind.REGRESSION, shape=()) for t in tasks))
    latency = np.array([row.infer_ms for row in rows], float).reshape(len(rows), len(batches))
    scores = np.array([[row.scores.get(task, math.nan) for task in tasks] for row in rows], float)
    return Table(
        family=family,
        hardware="a hand",
        variants=tuple(_variant(row, tasks) for row in rows),
        batches=batches,
        infer_ms={"p50": latency, "p95": latency * 1.25},
        load_cold_ms=np.array([row.load_ms for row in rows]),
        load_warm_ms=np.array([row.load_ms / 2 for row in rows]),
        num_bytes=np.full(len(rows), 1024.0),
        scores=scores.reshape(len(rows), len(tasks)),
    )


def _variant(row: Row, tasks: Sequence[str]) -> Variant:
    return Variant(
        id=row.id,
        name=row.id,
        family="f",
        tasks=tuple(task for task in tasks if task in row.scores),
        source=row.source,
        parent=None,
        ratio=row.ratio,
        achieved={},
        num_parameters=1,
        flops=1,
        num_bytes=1024,
        weights_sha256="",
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What trying out everything comes to; compared by cost, score and ids."""

    cost: float
    score: float
    ids: tuple[str, ...]


def try_all(query: Query, table: Table, state: State) -> Found | None:
    """Return the best answer among all partitions of the query's tasks, with each variant for each block."""
    cost_of = table.latency(1, "p50") + state.load_ms
    within = query.limit_ms - state.wait_ms
    found = []
    for partition in _partitions([task for task in table.family.task_names if task in query.tasks]):
        choices = [[p for p, v in enumerate(table.variants) if set(block) <= set(v.tasks)] for block in partition]
        for places in itertools.product(*choices):
            scores = _scores(table, partition, places)
            if sum(cost_of[list(places)]) <= within and _is_accurate(query, scores):
                ids = tuple(table.variants[place].id for place in places)
                found.append(Found(float(sum(cost_of[list(places)])), sum(scores.values()), ids))
    if query.min_accuracy is None:
        return min(found, key=lambda f: (-f.score, f.cost, len(f.ids), f.ids), default=None)
    return min(found, key=lambda f: (f.cost, -f.score, len(f.ids), f.ids), default=None)


def try_all_evenly(query: Query, table: Table, state: State) -> Found | None:
    """Return the best of the variants that answer all tasks and of what the tasks take in equal shares."""
    assert query.budget is Budget.EQUAL
    cost_of = table.latency(1, "p50") + state.load_ms
    within = query.limit_ms - state.wait_ms
    tasks = [task for task in table.family.task_names if task in query.tasks]
    is_average = query.accuracy_mode is AccuracyMode.AVERAGE
    sets = [{place} for place, variant in enumerate(table.variants) if query.tasks <= set(variant.tasks)]
    taken = {}
    for task in tasks:
        ok = [p for p, v in enumerate(table.variants) if task in v.tasks and cost_of[p] <= within / len(tasks)]
        floor = query.min_accuracy if not is_average else None
        floor = floor.get(task, 0.0) if isinstance(floor, dict) else floor
        ok = [p for p in ok if floor is None or table.scores[p, table.family.task_names.index(task)] >= floor]
        column = table.scores[:, table.family.task_names.index(task)]
        by_score = query.min_accuracy is None or is_average
        orders = {p: (-column[p], cost_of[p]) if by_score else (cost_of[p], -column[p]) for p in ok}
        if ok:
            taken[task] = min(ok, key=lambda p, orders=orders: (orders[p], table.variants[p].id))
    found = []
    for place in itertools.chain.from_iterable(sets):
        found.append(((place,), {task: table.scores[place, table.family.task_names.index(task)] for task in tasks}))
    if len(taken) == len(tasks):
        scores = {task: table.scores[taken[task], table.family.task_names.index(task)] for task in tasks}
        found.append((tuple(dict.fromkeys(taken[task] for task in tasks)), scores))
    answers = [
        Found(
            float(sum(cost_of[list(places)])),
            float(sum(scores.values())),
            tuple(table.variants[place].id for place in places),
        )
        for places, scores in found
        if sum(cost_of[list(places)]) <= within and _is_accurate(query, scores)
    ]
    if query.min_accuracy is None:
        return min(answers, key=lambda f: (-f.score, f.cost, len(f.ids), f.ids), default=None)
    return min(answers, key=lambda f: (f.cost, -f.score, len(f.ids), f.ids), default=None)


def _partitions(tasks: list[str]) -> Iterator[list[list[str]]]:
    if not tasks:
        yield []
        return
    first, rest = tasks[0], tasks[1:]
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [task for task in rest if task not in others]
            for partition in _partitions(left):
                yield [[first, *others], *partition]


def _scores(table: Table, partition: list[list[str]], places: Sequence[int]) -> dict[str, float]:
    names = table.family.task_names
    pairs = zip(partition, places, strict=True)
    return {task: float(table.scores[place, names.index(task)]) for block, place in pairs for task in block}


def _is_accurate(query: Query, scores: dict[str, float]) -> bool:
    floor = query.min_accuracy
    if floor is None:
        return True
    if query.accuracy_mode is AccuracyMode.AVERAGE:
        assert isinstance(floor, float)
        return sum(scores.values()) >= floor * len(scores)
    floors = floor if isinstance(floor, dict) else dict.fromkeys(scores, floor)
    return all(scores[task] >= value for task, value in floors.items())


def family_table(seed: int = 0, tasks: Sequence[str] = ("a", "b", "c")) -> Table:
    """Return a table like that of the paper: 40 variants of a multi-task system and 30 of a single-task one, scores drawn."""
    generator = np.random.default_rng(seed)
    rows = []
    for step in range(10):
        ratio = step / 10
        encoder, head = 6 * (1 - ratio) ** 1.5 + 1, 1.5 * (1 - ratio) + 0.2
        ways = [(Source.PRUNED, tuple(tasks), "all")]
        ways += [(Source.HEAD_REMOVED, (task,), task) for task in tasks] + [
            (Source.SINGLE, (task,), f"single-{task}") for task in tasks
        ]
        for source, own, name in ways:
            drop = 0.35 * ratio**3 + generator.normal(0, 0.01)
            best = {task: 0.95 - 0.08 * place for place, task in enumerate(tasks)}
            rows.append(
                Row(
                    id=f"{name}-p{step}0",
                    scores={task: best[task] - drop - 0.01 * (source is Source.SINGLE) for task in own},
                    infer_ms=(encoder + head * len(own) + generator.uniform(0, 0.2),),
                    load_ms=2 * (encoder + head * len(own)),
                    source=source,
                    ratio=ratio,
                )
            )
    return table_of(rows, tasks)
