"""Which variants together answer some tasks best: fastest, most accurate, and the Pareto front of both.

A query may be answered by one variant or by a combination: a partition of its tasks into blocks with a variant for each, which
run one after the other, so that costs and scores add up (MTLsys, section 4.3). Trying out all combinations is not needed to
find the best: of each block only the variants matter that no other beats in cost and score at once, and the same holds for
the combinations of a part of the tasks. What is found so is what trying out all would find.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from serving.candidates import TOLERANCE, Candidates, Costs, Ints, Pick, fastest_of
from serving.table import Floats, Table


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """Picks of which none is at most as costly and at least as accurate as another: both grow along it.

    Attributes:
        cost: ``(m,)``, strictly increasing.
        score: ``(m,)``, strictly increasing.
        blocks: ``(m,)``, tasks of the first member.
        places: ``(m,)``, the first member.
        rests: ``(m,)``, where the others are on the front of the tasks that the first one leaves.
    """

    cost: Floats
    score: Floats
    blocks: Ints
    places: Ints
    rests: Ints


def fastest(candidates: Candidates, costs: Costs, floors: Floats | None) -> Pick | None:
    """Return the fastest pick, of equally fast ones the most accurate.

    Args:
        candidates: Of the tasks.
        costs: Of every variant of the table.
        floors: ``(K,)``, for the score of each task of the family; None for none.
    """
    alone = {
        tasks: fastest_of(block, costs, None if floors is None else block.meets(floors))
        for tasks, block in candidates.blocks.items()
    }
    best: dict[int, Pick] = {0: Pick(0.0, 0.0, ())}
    for tasks, blocks in candidates.steps.items():
        picks = [
            _sum_of(pick, best[tasks & ~block])
            for block in blocks
            if (pick := alone[block]) is not None and tasks & ~block in best
        ]
        if picks:
            best[tasks] = min(picks, key=candidates.by_cost)
    return best.get(candidates.tasks)


def fronts_of(table: Table, candidates: Candidates, costs: Costs) -> Fronts:
    """Return the Pareto fronts of the parts of some tasks; those that were used last are kept in the table's memo.

    Residency changes seldom, and what waits does not matter to them: most queries meet the costs of the one before.
    """
    key = ("fronts", candidates.tasks)
    kept = table.memo.get(key)
    if not isinstance(kept, Fronts) or any(old is not new for old, new in zip(kept.costs, costs, strict=True)):
        kept = table.memo[key] = Fronts(candidates, costs)
    return kept


class Fronts:
    """The Pareto fronts of all parts of some tasks, for what variants cost now; each is built when it is first needed."""

    def __init__(self, candidates: Candidates, costs: Costs) -> None:
        self._candidates = candidates
        self.costs = costs
        self._alone: dict[int, Front] = {}
        self._found: dict[int, Front] = {}

    def most_accurate(self, limit: float) -> Pick | None:
        """Return the most accurate pick that takes at most so long, of equally accurate ones the fastest."""
        picks = []
        for block, alone, rest in self._last_steps():
            at = np.searchsorted(rest.cost, limit - alone.cost, side="right") - 1
            fits = at >= 0
            if fits.any():
                score = np.where(fits, alone.score + rest.score[at], -np.inf)
                picks += self._picks(block, alone, np.flatnonzero(score == score.max()), at)
        return min(picks, key=self._candidates.by_score, default=None)

    def fastest(self, score: float) -> Pick | None:
        """Return the fastest pick with at least that score (added up), of equally fast ones the most accurate."""
        picks = []
        for block, alone, rest in self._last_steps():
            at = np.searchsorted(rest.score, score - TOLERANCE - alone.score, side="left")
            fits = at < len(rest.score)
            if fits.any():
                at = np.where(fits, at, 0)
                cost = np.where(fits, alone.cost + rest.cost[at], np.inf)
                picks += self._picks(block, alone, np.flatnonzero(cost == cost.min()), at)
        return min(picks, key=self._candidates.by_cost, default=None)

    def whole(self) -> list[Pick]:
        """Return the Pareto front of all the tasks, the fastest first."""
        front = self._of(self._candidates.tasks)
        return [self._pick(front, self._candidates.tasks, at) for at in range(len(front.cost))]

    def _last_steps(self) -> Iterator[tuple[int, Front, Front]]:
        """Yield blocks of the first task, their fronts and those of what they leave, where neither is empty."""
        tasks = self._candidates.tasks
        for block in self._candidates.steps.get(tasks, ()):
            rest = self._of(tasks & ~block)
            if len(rest.cost):
                yield block, self._alone_of(block), rest

    def _picks(self, block: int, alone: Front, chosen: Ints, at: Ints) -> list[Pick]:
        rest = self._candidates.tasks & ~block
        return [_sum_of(self._pick(alone, block, i), self._pick(self._of(rest), rest, int(at[i]))) for i in chosen.tolist()]

    def _pick(self, front: Front, tasks: int, at: int) -> Pick:
        """Return a point of the front of some tasks with all its members."""
        return Pick(float(front.cost[at]), float(front.score[at]), self._members(front, tasks, at))

    def _members(self, front: Front, tasks: int, at: int) -> tuple[tuple[int, int], ...]:
        if not tasks:
            return ()
        block = int(front.blocks[at])
        rest = tasks & ~block
        return (block, int(front.places[at])), *self._members(self._of(rest), rest, int(front.rests[at]))

    def _alone_of(self, tasks: int) -> Front:
        if tasks not in self._alone:
            block = self._candidates.blocks[tasks]
            cost = self.costs.of(block)
            same = np.full(len(cost), tasks)
            self._alone[tasks] = self._front(Front(cost, block.score, same, block.places, np.zeros_like(block.places)), tasks)
        return self._alone[tasks]

    def _of(self, tasks: int) -> Front:
        if tasks not in self._found:
            self._found[tasks] = self._build(tasks) if tasks else _NOTHING
        return self._found[tasks]

    def _build(self, tasks: int) -> Front:
        blocks = self._candidates.steps.get(tasks, ())
        sums = [_sums_of(self._alone_of(block), self._of(tasks & ~block)) for block in blocks]
        if not sums:
            return _EMPTY
        if len(sums) == 1 and blocks[0] == tasks:
            return self._alone_of(tasks)
        return self._front(_joined(sums), tasks)

    def _front(self, points: Front, tasks: int) -> Front:
        """Return those of some points that none other beats; of equal ones the one that the order of ties puts first."""
        order = np.argsort(points.cost)
        cost, score = points.cost[order], points.score[order]
        if (cost[1:] == cost[:-1]).any():
            # usual: two variants that both answer two tasks can share these in two ways
            order = np.lexsort((-points.score, points.cost))
            cost, score = points.cost[order], points.score[order]
        kept = np.ones(len(order), dtype=np.bool_)
        kept[1:] = score[1:] > np.maximum.accumulate(score)[:-1]
        is_repeated = (cost[1:] == cost[:-1]) & (score[1:] == score[:-1])
        for first in np.flatnonzero(kept[:-1] & is_repeated).tolist():
            last = first + 1
            while last < len(is_repeated) and is_repeated[last]:
                last += 1
            same = order[first : last + 1].tolist()
            order[first] = min(same, key=lambda at: self._candidates.tie(self._pick(points, tasks, at)))
        return Front(*(getattr(points, name)[order[kept]] for name in Front.__slots__))


def _zeros(length: int) -> Front:
    return Front(np.zeros(length), np.zeros(length), *(np.zeros(length, np.int64) for _ in range(3)))


_EMPTY = _zeros(0)
_NOTHING = _zeros(1)  # the one way to answer no task


def _sums_of(alone: Front, rest: Front) -> Front:
    """Return each point of one front followed by each of another."""
    num_alone, num_rest = len(alone.cost), len(rest.cost)
    return Front(
        np.add.outer(alone.cost, rest.cost).ravel(),
        np.add.outer(alone.score, rest.score).ravel(),
        alone.blocks.repeat(num_rest),
        alone.places.repeat(num_rest),
        np.tile(np.arange(num_rest), num_alone),
    )


def _joined(fronts: Iterable[Front]) -> Front:
    fronts = list(fronts)
    return Front(*(np.concatenate([getattr(front, name) for front in fronts]) for name in Front.__slots__))


def _sum_of(first: Pick, rest: Pick) -> Pick:
    return Pick(first.cost + rest.cost, first.score + rest.score, first.members + rest.members)
