"""The paper's way with combinations: each task gets the same share of the latency limit (MTLsys, section 4.3).

Each of n tasks takes one variant that answers it inside an n-th of the limit, whatever the others take; a variant that several
of them take runs once. Variants that answer all tasks compete with the combination, and have the whole limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from serving.candidates import TOLERANCE, Block, Candidates, Costs, Pick, fastest_of, most_accurate_of
from serving.table import Floats

_Choose = Callable[[Block, float], Pick | None]


def most_accurate(candidates: Candidates, costs: Costs, limit: float) -> Pick | None:
    """Return the pick with the highest score within a limit, of equal ones the fastest; each task takes its best."""
    picks = _picks(candidates, limit, lambda block, share: most_accurate_of(block, costs, share))
    return min(picks, key=candidates.by_score, default=None)


def fastest(candidates: Candidates, costs: Costs, limit: float, floors: Floats | None) -> Pick | None:
    """Return the fastest pick within a limit, of equal ones the most accurate; each task takes its fastest.

    Args:
        candidates: Of the tasks.
        costs: Of every variant of the table.
        limit: Milliseconds.
        floors: ``(K,)``, for the score of each task of the family; None for none.
    """

    def choose(block: Block, share: float) -> Pick | None:
        return _within(fastest_of(block, costs, None if floors is None else block.meets(floors)), share)

    return min(_picks(candidates, limit, choose), key=candidates.by_cost, default=None)


def fastest_on_average(candidates: Candidates, costs: Costs, limit: float, score: float) -> Pick | None:
    """Return the fastest pick within a limit that has at least a score (added up).

    In a combination each task takes its most accurate, since none knows what the others take.
    """
    picks = []
    whole = candidates.whole
    if whole is not None:
        picks += [_within(fastest_of(whole, costs, whole.score >= score - TOLERANCE), limit)]
    picks += [_combined(candidates, limit, lambda block, share: most_accurate_of(block, costs, share))]
    enough = (pick for pick in picks if pick is not None and pick.score >= score - TOLERANCE)
    return min(enough, key=candidates.by_cost, default=None)


def _picks(candidates: Candidates, limit: float, choose: _Choose) -> Iterator[Pick]:
    for pick in (choose(candidates.whole, limit) if candidates.whole else None, _combined(candidates, limit, choose)):
        if pick is not None:
            yield pick


def _combined(candidates: Candidates, limit: float, choose: _Choose) -> Pick | None:
    """Return what the tasks come to if each chooses for itself, None if one finds nothing."""
    share = limit / candidates.tasks.bit_count()
    taken: dict[int, int] = {}
    spent: dict[int, float] = {}
    score = 0.0
    for bit in range(candidates.tasks.bit_length()):
        if candidates.tasks >> bit & 1:
            block = candidates.blocks.get(1 << bit)
            pick = choose(block, share) if block is not None else None
            if pick is None:
                return None
            [(task, place)] = pick.members
            taken[place] = taken.get(place, 0) | task
            spent[place] = pick.cost
            score += pick.score
    return Pick(math.fsum(spent.values()), score, tuple((tasks, place) for place, tasks in taken.items()))


def _within(pick: Pick | None, limit: float) -> Pick | None:
    return pick if pick is not None and pick.cost <= limit else None
