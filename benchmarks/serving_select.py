"""What a selection takes among many variants (target V2 of the design), and whether it grows with those that do not matter.

Three tasks; half of the variants answer all of them, a quarter one, a quarter two, so that most of them matter to a query for
all tasks, in every combination. Latency and scores are drawn; residency changes now and then, and waiting with each query.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.quantiles import Quantiles
from serving.candidates import find_candidates
from serving.queries import AccuracyMode, Budget, Mishit, Query
from serving.records import Family, Kind, Source, TaskSpec, Variant
from serving.selection import State, select
from serving.table import Floats, Table

TASKS = ("tops", "shoe", "first")
_ALL = frozenset(TASKS)
_UNRELATED = ("further",)
_SUBSETS = ((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
_WEIGHTS = np.array([1, 1, 1, 1, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]) / 8


def measure_select(
    num_variants: int = 1000,
    *,
    num_queries: int = 4000,
    num_kept: int = 20,
    sizes: Sequence[int] = (10, 100, 1000),
    seed: int = 0,
) -> dict[str, Any]:
    """Select for queries of mixed limits, floors, modes and budgets, all of which are for all tasks.

    Args:
        num_variants: In the table.
        num_queries: Measured, after a tenth as many that are not.
        num_kept: Queries for which residency stays the same.
        sizes: Numbers of unrelated variants beside 40 that matter, for ``lookup_us``.
        seed: Of what is drawn.

    Returns:
        ``p50_ms``, ``p90_ms``, ``p99_ms``, ``highest_ms`` and ``mishits``; the percentiles as ``cpu`` in time of this thread,
        which others on the machine do not lengthen; both again as ``new_state``, where residency changes before every query;
        and by size ``lookup_us``, the median of finding what may answer a query.
    """
    table = make_table(num_variants, seed)
    generator = np.random.default_rng(seed)
    queries = [make_query(generator) for _ in range(num_queries)]
    kept, cpu, mishits = _select_all(table, queries, generator, num_kept)
    renewed, renewed_cpu, _ = _select_all(table, queries, generator, 1)
    return {
        "variants": num_variants,
        "queries": num_queries,
        "mishits": mishits,
        **_milliseconds(kept),
        "cpu": _milliseconds(cpu),
        "new_state": {**_milliseconds(renewed), "cpu": _milliseconds(renewed_cpu)},
        "lookup_us": {str(size): _lookup_us(size, seed) for size in sizes},
    }


def make_table(num_variants: int, seed: int, *, num_unrelated: int = 0) -> Table:
    """Return a table of drawn variants, and further ones of a task that no query asks for."""
    generator = np.random.default_rng(seed)
    names = (*TASKS, *_UNRELATED)
    lines = []
    for place in range(num_variants + num_unrelated):
        own = _SUBSETS[generator.choice(len(_SUBSETS), p=_WEIGHTS)] if place < num_variants else (len(TASKS),)
        size = generator.uniform(0.05, 1)
        scores = np.full(len(names), np.nan)
        scores[list(own)] = np.clip(1 - 0.3 * (1 - size) ** 2 + generator.normal(0, 0.02, len(own)), 0, 1)
        infer_ms = 2 + 8 * size * (1 + 0.3 * len(own)) + generator.exponential(0.3)
        key = f"{generator.integers(1 << 62):016x}"
        lines.append((infer_ms, key, tuple(names[task] for task in own), scores, 5 + 10 * size))
    lines.sort(key=lambda line: line[:2])
    latency = np.array([line[0] for line in lines])[:, None]
    load_ms = np.array([line[4] for line in lines])
    return Table(
        family=Family(name="drawn", inputs=(), tasks=tuple(TaskSpec(name=n, kind=Kind.REGRESSION, shape=()) for n in names)),
        hardware="drawn",
        variants=tuple(_variant(key, tasks) for _, key, tasks, _, _ in lines),
        batches=(1,),
        infer_ms={"p50": latency, "p95": 1.2 * latency},
        load_cold_ms=load_ms,
        load_warm_ms=load_ms / 3,
        num_bytes=1e6 * load_ms,
        scores=np.array([line[3] for line in lines]),
    )


def make_query(generator: np.random.Generator) -> Query:
    """Draw a query for all tasks."""
    budget = list(Budget)[generator.choice(2)]
    has_limit = budget is Budget.EQUAL or generator.random() < 0.9
    return Query(
        tasks=_ALL,
        latency_ms=float(generator.uniform(4, 60)) if has_limit else None,
        min_accuracy=None if generator.random() < 1 / 3 else float(generator.uniform(0.7, 1)),
        accuracy_mode=list(AccuracyMode)[generator.choice(2)],
        budget=budget,
    )


def _select_all(
    table: Table, queries: Sequence[Query], generator: np.random.Generator, num_kept: int
) -> tuple[list[float], list[float], int]:
    """Return seconds of each query, the same in time of this thread, and how many were mishits."""
    seconds, cpu, mishits = [], [], 0
    loads = np.zeros(len(table))
    for number, query in enumerate([*queries[: len(queries) // 10], *queries]):
        if number % num_kept == 0:
            loads = _drawn_loads(table, generator)
        state = State(load_ms=loads, wait_ms=float(generator.exponential(1.0)))
        began, began_cpu = time.perf_counter(), time.thread_time()
        answer = select(query, table, state)
        cpu.append(time.thread_time() - began_cpu)
        seconds.append(time.perf_counter() - began)
        mishits += isinstance(answer, Mishit)
    first = len(queries) // 10
    return seconds[first:], cpu[first:], mishits


def _drawn_loads(table: Table, generator: np.random.Generator) -> Floats:
    share = generator.choice([0.0, 0.05, 0.3, 1.0])
    return np.where(generator.random(len(table)) < share, 0.0, table.load_cold_ms)


def _lookup_us(num_unrelated: int, seed: int, repeats: int = 2000) -> float:
    table = make_table(40, seed, num_unrelated=num_unrelated)
    mask = table.mask_of(_ALL)
    find_candidates(table, mask)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        find_candidates(table, mask)
        seconds.append(time.perf_counter() - began)
    return 1e6 * float(np.median(seconds))


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    found = Quantiles.of(seconds)
    assert found is not None, "there is at least one query"
    return {f"{name}_ms": 1e3 * value for name, value in asdict(found).items() if name != "count" and math.isfinite(value)}


def _variant(key: str, tasks: tuple[str, ...]) -> Variant:
    return Variant(id=key, name=key, family="drawn", tasks=tasks, source=Source.GIVEN, parent=None, ratio=0.0, achieved={},
                   num_parameters=1, flops=1, num_bytes=1, weights_sha256="")  # fmt: skip
