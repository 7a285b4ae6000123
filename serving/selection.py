"""Which variants answer a query: a pure function of the query, the profiles and what is loaded (MTLsys, section 4.3).

Without a floor for accuracy the most accurate within the latency limit is taken, with one the fastest that meets it. What the
paper leaves open is decided here: ties go to the lower cost (or the higher accuracy), then to fewer variants, then to lower
ids; time in the queue counts; a variant that is loaded already costs no loading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from serving import even_budget
from serving.candidates import Pick, find_candidates
from serving.fronts import Fronts, fastest
from serving.queries import AccuracyMode, Budget, Decision, Mishit, Offer, OnMishit, Query, Reason
from serving.table import Floats, Table


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What is the matter now.

    Attributes:
        load_ms: ``(n,)`` for the variants of a table: what loading each would still take, 0 if it is resident. Not to be
            changed in place.
        wait_ms: Until what is chosen could begin.
    """

    load_ms: Floats
    wait_ms: float = 0.0
    memo: dict[int, Fronts] = field(default_factory=dict, repr=False)  # what is computed from load_ms, by id of candidates

    def waiting(self, wait_ms: float) -> State:
        """Return this with another wait: several times faster to select by than one that is made anew."""
        return replace(self, wait_ms=wait_ms)

    @classmethod
    def all_resident(cls, table: Table) -> Self:
        """Return the state in which nothing is to be loaded."""
        return cls(load_ms=np.zeros(len(table)))

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
        self._infer_ms = table.latency(rows, quantile)
        self._candidates = find_candidates(table, table.mask_of(query.tasks), rows, quantile)
        self._fronts = self._remembered_fronts()

    def decide(self) -> Decision | Mishit:
        query, within = self._query, self._query.limit_ms - self._state.wait_ms
        has_floor = query.min_accuracy is not None
        pick = self._fastest(within, query.min_accuracy) if has_floor else self._most_accurate(within)
        if pick is not None:
            return Decision(offer=self._offer(pick))
        mishit = self._mishit(within)
        if query.on_mishit is OnMishit.REJECT or not mishit.closest:
            return mishit
        return Decision(offer=mishit.closest[0], mishit=mishit)

    def front(self) -> tuple[Offer, ...]:
        return tuple(self._offer(pick) for pick in self._fronts.whole())

    def _remembered_fronts(self) -> Fronts:
        fronts = self._state.memo.get(id(self._candidates))
        if fronts is None:
            # it keeps its candidates alive, so that no others can have their id
            fronts = self._state.memo[id(self._candidates)] = Fronts(self._candidates, self._state.load_ms)
        return fronts

    def _mishit(self, within: float) -> Mishit:
        quick = self._fastest(math.inf, None)
        if quick is None:
            return Mishit(reason=Reason.TASKS)
        floor = self._query.min_accuracy
        accurate = self._fastest(math.inf, floor) if floor is not None else None
        timely = self._most_accurate(within)
        if floor is not None and accurate is None:
            reason = Reason.ACCURACY
        else:
            reason = Reason.LATENCY if timely is None else Reason.CONFLICT
        closest = {pick.members: pick for pick in (accurate, timely, quick) if pick is not None}
        return Mishit(reason=reason, closest=tuple(self._offer(pick) for pick in closest.values()))

    def _most_accurate(self, within: float) -> Pick | None:
        if self._query.budget is Budget.EQUAL:
            return even_budget.most_accurate(self._candidates, self._state.load_ms, within)
        return self._fronts.most_accurate(within)

    def _fastest(self, within: float, floor: float | Mapping[str, float] | None) -> Pick | None:
        query, load_ms, is_even = self._query, self._state.load_ms, self._query.budget is Budget.EQUAL
        if query.accuracy_mode is AccuracyMode.AVERAGE and isinstance(floor, float | int):
            score = floor * len(query.tasks)
            if is_even:
                return even_budget.fastest_on_average(self._candidates, load_ms, within, score)
            pick = self._fronts.fastest(score)
        else:
            floors = self._floors(floor)
            if is_even:
                return even_budget.fastest(self._candidates, load_ms, within, floors)
            pick = fastest(self._candidates, load_ms, floors)
        return pick if pick is not None and pick.cost <= within else None

    def _floors(self, floor: float | Mapping[str, float] | None) -> Floats | None:
        if floor is None:
            return None
        by_task = floor if isinstance(floor, Mapping) else dict.fromkeys(self._query.tasks, floor)
        return np.array([by_task.get(task, 0.0) for task in self._table.family.task_names])

    def _offer(self, pick: Pick) -> Offer:
        names = self._table.family.task_names
        places = [place for _, place in pick.members]
        tasks = [tuple(name for bit, name in enumerate(names) if block >> bit & 1) for block, _ in pick.members]
        taken_from = {task: place for block, place in zip(tasks, places, strict=True) for task in block}
        load_ms = float(self._state.load_ms[places].sum())
        infer_ms = float(self._infer_ms[places].sum())
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
