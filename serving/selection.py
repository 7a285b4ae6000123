"""Which variants answer a query: a pure function of the query, the profiles and what is loaded (MTLsys, section 4.3).

Without a floor for accuracy the most accurate within the latency limit is taken, with one the fastest that meets it. What the
paper leaves open is decided here: ties go to the lower cost (or the higher accuracy), then to fewer variants, then to lower
ids; time in the queue counts; a variant that is loaded already costs no loading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from serving import even_budget
from serving.candidates import Costs, Pick, find_candidates
from serving.fronts import fastest, fronts_of
from serving.queries import AccuracyMode, Budget, Decision, Mishit, Offer, OnMishit, Query, Reason
from serving.table import Floats, Table


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What is the matter now.

    Attributes:
        load_ms: ``(n,)`` for the variants of a table: what loading each would still take, 0 if it is resident. Not to be
            changed in place: as long as it is the same array, what was computed from it is used again.
        wait_ms: Until what is chosen could begin.
        call_ms: What each variant that runs takes beside its inference.
    """

    load_ms: Floats
    wait_ms: float = 0.0
    call_ms: float = 0.0

    def waiting(self, wait_ms: float, call_ms: float = 0.0) -> State:
        """Return this with another wait, and with what calls take now."""
        return replace(self, wait_ms=wait_ms, call_ms=call_ms)

    @classmethod
    def all_resident(cls, table: Table) -> Self:
        """Return the state in which nothing is to be loaded."""
        zeros = table.memo.setdefault("all resident", np.zeros(len(table)))
        return cls(load_ms=zeros)  # pyrefly: ignore[bad-argument-type] - the memo holds what was put under this key

    @classmethod
    def none_resident(cls, table: Table) -> Self:
        """Return the state in which everything is to be loaded from its file."""
        return cls(load_ms=table.load_cold_ms)


def select(query: Query, table: Table, state: State, *, rows: int = 1, quantile: str = "p95") -> Decision | Mishit:
    """Return what answers a query.

    The cost of a candidate is the wait, and the loading and inference of its variants, which run one after the other.

    - No floor: within the limit the highest mean score; of equal ones the lowest cost.
    - A floor: of what meets it within the limit the lowest cost; of equal ones the highest mean score.
    - Then fewer variants, then lower ids.

    With ``budget="equal"``, combinations are as in the paper: each of n tasks gets an n-th of the limit (less the wait) and
    takes by these rules one variant inside its share, and nothing left over is passed on; with a floor for the average each
    takes the most accurate in its share. A variant that several tasks take runs once. Variants that answer all tasks have the
    whole limit all the same.

    If nothing fits, the nearest offers are, in this order and as far as they exist: the fastest that meets the floor, the most
    accurate within the limit, the fastest. The first is what a query for best effort gets.

    Args:
        query: Tasks and limits.
        table: Profiles.
        state: Of the machine.
        rows: Samples to be inferred in one batch.
        quantile: Of inference latency, one of :data:`serving.table.QUANTILES`.

    Returns:
        What is chosen, marked as a mishit where best effort was asked for and made; or why nothing is.

    Raises:
        ServingError: If the family has no such task.
    """
    return _Selection(query, table, state, rows, quantile).decide()


def pareto_offers(
    tasks: frozenset[str], table: Table, state: State, *, rows: int = 1, quantile: str = "p95"
) -> tuple[Offer, ...]:
    """Return the offers for some tasks that no other beats in predicted latency and mean accuracy at once, fastest first."""
    return _Selection(Query(tasks=tasks), table, state, rows, quantile).front()


class _Selection:
    """One query: its candidates, and the best by each rule."""

    def __init__(self, query: Query, table: Table, state: State, rows: int, quantile: str) -> None:
        for task in query.tasks:
            table.family.task(task)
        self._query = query
        self._table = table
        self._state = state
        infer_ms = table.call(rows, quantile, state.call_ms) if state.call_ms else table.latency(rows, quantile)
        self._costs = Costs(infer_ms, state.load_ms)
        self._candidates = find_candidates(table, table.mask_of(query.tasks))
        self._fronts = fronts_of(table, self._candidates, self._costs)

    def decide(self) -> Decision | Mishit:
        query, within = self._query, self._query.limit_ms - self._state.wait_ms
        pick = self._most_accurate(within) if query.min_accuracy is None else self._accurate(within)
        if pick is not None:
            return Decision(offer=self._offer(pick))
        mishit = self._mishit(within)
        if query.on_mishit is OnMishit.REJECT or not mishit.closest:
            return mishit
        return Decision(offer=mishit.closest[0], mishit=mishit)

    def front(self) -> tuple[Offer, ...]:
        return tuple(self._offer(pick) for pick in self._fronts.whole())

    def _mishit(self, within: float) -> Mishit:
        quick = self._quick()
        if quick is None:
            return Mishit(reason=Reason.TASKS)
        has_floor = self._query.min_accuracy is not None
        accurate = self._accurate(math.inf) if has_floor else None
        timely = self._most_accurate(within)
        reason = Reason.LATENCY if timely is None else Reason.CONFLICT
        if has_floor and accurate is None:
            reason = Reason.ACCURACY
        closest = {pick.members: pick for pick in (accurate, timely, quick) if pick is not None}
        return Mishit(reason=reason, closest=tuple(self._offer(pick) for pick in closest.values()))

    def _most_accurate(self, within: float) -> Pick | None:
        if self._is_even:
            return even_budget.most_accurate(self._candidates, self._costs, within)
        return self._fronts.most_accurate(within)

    def _accurate(self, within: float) -> Pick | None:
        """Return the fastest that meets the floor."""
        if not self._is_even:
            pick = self._accurate_without_limit
            return pick if pick is not None and pick.cost <= within else None
        if self._score is not None:
            return even_budget.fastest_on_average(self._candidates, self._costs, within, self._score)
        return even_budget.fastest(self._candidates, self._costs, within, self._floors)

    def _quick(self) -> Pick | None:
        """Return the fastest of all."""
        if self._is_even:
            return even_budget.fastest(self._candidates, self._costs, math.inf, None)
        return self._fronts.fastest(-math.inf)

    @cached_property
    def _accurate_without_limit(self) -> Pick | None:
        if self._score is not None:
            return self._fronts.fastest(self._score)
        return fastest(self._candidates, self._costs, self._floors)

    @property
    def _is_even(self) -> bool:
        return self._query.budget is Budget.EQUAL

    @property
    def _score(self) -> float | None:
        """What all tasks must have together; None where there is a floor for each."""
        floor = self._query.min_accuracy
        if self._query.accuracy_mode is AccuracyMode.PER_TASK or not isinstance(floor, float | int):
            return None
        return floor * len(self._query.tasks)

    @property
    def _floors(self) -> Floats:
        floor = self._query.min_accuracy
        by_task = floor if isinstance(floor, Mapping) else dict.fromkeys(self._query.tasks, floor or 0.0)
        return np.array([by_task.get(task, 0.0) for task in self._table.family.task_names])

    def _offer(self, pick: Pick) -> Offer:
        names = self._table.family.task_names
        places = [place for _, place in pick.members]
        tasks = [tuple(name for bit, name in enumerate(names) if block >> bit & 1) for block, _ in pick.members]
        taken_from = {task: place for block, place in zip(tasks, places, strict=True) for task in block}
        load_ms = float(self._costs.load_ms[places].sum())
        infer_ms = float(self._costs.infer_ms[places].sum())
        return Offer(
            variants=tuple(self._table.variants[place].id for place in places),
            tasks=tuple(tasks),
            predicted_ms=self._state.wait_ms + load_ms + infer_ms,
            load_ms=load_ms,
            infer_ms=infer_ms,
            accuracy={
                name: float(self._table.scores[taken_from[name], column])
                for column, name in enumerate(names)
                if name in taken_from
            },
        )
