"""Planned mishits: which share of a grid of queries a system cannot satisfy (MTLsys, figures 5 and 8).

A query of the grid has a latency limit and a floor for accuracy. Limits are evenly spaced from the least to the greatest
latency of the multi-task system's variants that answer the tasks, as in the paper, which does not say in how many steps. Nor
does it say how it chose its floors; here those of all tasks rise together, in even steps from the lowest to the highest score
of each that any of the compared variants has, so that a task whose scores are low counts like the others.

This says what could be promised. What was promised and came late is counted where requests are answered.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from serving.errors import ServingError
from serving.queries import AccuracyMode, Budget, Decision, Query
from serving.selection import State, select
from serving.systems import System, view
from serving.table import Bools, Floats, Table

Floor = Mapping[str, float]


class Residency(StrEnum):
    """What is assumed to be loaded when a query comes."""

    ALL = "all"
    NONE = "none"

    def state(self, table: Table) -> State:
        """Return what loading costs then."""
        return State.all_resident(table) if self is Residency.ALL else State.none_resident(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What holds for all queries of a grid.

    Attributes:
        residency: See :class:`Residency`.
        mode: What floors are about.
        rows: Samples in a query.
        quantile: Of inference latency.
    """

    residency: Residency = Residency.ALL
    mode: AccuracyMode = AccuracyMode.PER_TASK
    rows: int = 1
    quantile: str = "p50"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """What a system cannot satisfy.

    Attributes:
        tasks: Of all the queries.
        floors: F of them, rising.
        limits: ``(L,)`` milliseconds, rising.
        missed: ``(F, L)``.
    """

    tasks: frozenset[str]
    floors: tuple[Floor, ...]
    limits: Floats
    missed: Bools

    @property
    def ratios(self) -> Floats:
        """``(F,)``: the share of limits at which a floor is missed."""
        return self.missed.mean(1)

    @property
    def ratio(self) -> float:
        """Share of all the queries."""
        return float(self.missed.mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """The systems under the same queries.

    Attributes:
        tasks: Of the queries.
        setting: Of the queries.
        grids: By system and the way in which it splits a limit among variants.
    """

    tasks: frozenset[str]
    setting: Setting
    grids: Mapping[tuple[System, Budget], Grid]

    def times_fewer(self, budget: Budget = Budget.EQUAL) -> float:
        """Return the mishits of the single-task system over those of the multi-task one (published: 1.6).

        Infinite if only the first has any, 1 if neither has.
        """
        ours, theirs = self.grids[System.A, Budget.OPTIMAL].ratio, self.grids[System.C, budget].ratio
        return theirs / ours if ours else math.inf if theirs else 1.0


#: The single-task system as published, and with the budget split as is best for it.
COMPARED = (
    (System.A, Budget.OPTIMAL),
    (System.B, Budget.OPTIMAL),
    (System.C, Budget.EQUAL),
    (System.C, Budget.OPTIMAL),
)


def compare(table: Table, tasks: frozenset[str], setting: Setting, *, steps: int = 20) -> Comparison:
    """Return what each system cannot satisfy of ``steps`` times ``steps`` queries for some tasks.

    Raises:
        ServingError: If the table has no multi-task variant that answers these tasks, or ``steps`` is below 2.
    """
    if steps < 2:
        raise ServingError(f"expected at least 2 steps of limits and floors, got {steps}")
    systems = {system: view(table, system) for system in System}
    limits = latency_limits(systems[System.A], tasks, setting, steps)
    floors = accuracy_floors(list(systems.values()), tasks, steps)
    grids = {
        (system, budget): plan(systems[system], tasks, limits, floors, setting, budget=budget) for system, budget in COMPARED
    }
    return Comparison(tasks=tasks, setting=setting, grids=grids)


def plan(
    table: Table,
    tasks: frozenset[str],
    limits: Floats,
    floors: Sequence[Floor],
    setting: Setting,
    *,
    budget: Budget = Budget.OPTIMAL,
) -> Grid:
    """Return which queries the variants of a table cannot satisfy.

    Args:
        table: Of one system.
        tasks: Of all queries.
        limits: ``(L,)`` milliseconds above 0, rising.
        floors: For each task; of the average where the setting says so.
        setting: Of all queries.
        budget: How a limit is split among variants.
    """
    state = setting.residency.state(table)
    missed = np.ones((len(floors), len(limits)), dtype=np.bool_)
    for line, floor in enumerate(floors):
        by_mode = floor if setting.mode is AccuracyMode.PER_TASK else sum(floor.values()) / len(floor)

        def is_satisfied(limit: float, accuracy: float | Floor = by_mode) -> bool:
            query = Query(tasks=tasks, latency_ms=limit, min_accuracy=accuracy, accuracy_mode=setting.mode, budget=budget)
            answer = select(query, table, state, rows=setting.rows, quantile=setting.quantile)
            return isinstance(answer, Decision)

        # what is satisfied within a limit is so within all that are looser
        missed[line, bisect_left(limits.tolist(), True, key=is_satisfied) :] = False
    return Grid(tasks=tasks, floors=tuple(floors), limits=limits, missed=missed)


def latency_limits(table: Table, tasks: frozenset[str], setting: Setting, steps: int) -> Floats:
    """Return ``(steps,)``: from the least to the greatest milliseconds of the variants that answer all of some tasks.

    Raises:
        ServingError: If there is none.
    """
    mask = table.mask_of(tasks)
    cost = table.latency(setting.rows, setting.quantile) + setting.residency.state(table).load_ms
    found = cost[table.masks & mask == mask]
    if not len(found):
        raise ServingError(
            f"family {table.family.name!r} has no profiled multi-task variant that answers {', '.join(sorted(tasks))};"
            " 'unified variants build' and 'profile' make some"
        )
    return np.linspace(found.min(), found.max(), steps)


def accuracy_floors(tables: Sequence[Table], tasks: frozenset[str], steps: int) -> list[Floor]:
    """Return floors that rise together, from the lowest to the highest score of each task in some tables."""
    names = tables[0].family.task_names
    scores = np.concatenate([table.scores for table in tables])
    columns = [names.index(task) for task in names if task in tasks]
    low, high = np.nanmin(scores[:, columns], 0), np.nanmax(scores[:, columns], 0)
    levels = np.linspace(low, high, steps)
    return [{names[column]: float(value) for column, value in zip(columns, level, strict=True)} for level in levels]
