"""What may answer some tasks: variants that answer all of them, and the ways to put several together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serving.table import Bools, Floats, Table

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

#: Blocks to look at in all the steps of an answer: five tasks have 121. Of more tasks, not all parts are blocks.
MAX_STEPS = 128
TOLERANCE = 1e-9  #: scores of tasks are added and compared with a multiple of the floor, which rounds

_log = logging.getLogger(__name__)


class Costs(NamedTuple):
    """Milliseconds that each of the n variants of a table takes, ``(n,)`` each: inference, and loading as things are."""

    infer_ms: Floats
    load_ms: Floats

    def of(self, block: Block) -> Floats:
        """Return ``(m,)``: both, for the variants of a block."""
        return self.infer_ms[block.places] + self.load_ms[block.places]


class Pick(NamedTuple):
    """Variants that together answer some tasks.

    Attributes:
        cost: Milliseconds of loading and inference, added up.
        score: Of the tasks, added up.
        members: The tasks (bits) that are taken from a variant, and its place in the table; by the first of its tasks.
    """

    cost: float
    score: float
    members: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Variants that answer all of some tasks, m of them by increasing id.

    Attributes:
        tasks: Their bits.
        columns: ``(b,)``, the places of the tasks in the family.
        places: ``(m,)`` in the table.
        scores: ``(b, m)``.
        score: ``(m,)``, those added up.
    """

    tasks: int
    columns: Ints
    places: Ints
    scores: Floats
    score: Floats

    def meets(self, floors: Floats) -> Bools:
        """Return ``(m,)``: which reach floors for each task, given ``(K,)`` for the family's."""
        return np.all(self.scores >= floors[self.columns, None], axis=0)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """All that may answer some tasks.

    Attributes:
        tasks: Bits.
        blocks: By their bits.
        steps: From few tasks to all: tasks that may be left to answer, and the blocks that can answer the first of them. What
            a block leaves is in an earlier step, or nothing.
        order: ``(n,)``, the place of each variant of the table in the order of ids.
    """

    tasks: int
    blocks: Mapping[int, Block]
    steps: Mapping[int, tuple[int, ...]]
    order: Ints

    @property
    def whole(self) -> Block | None:
        """Variants that answer all the tasks, if there are any."""
        return self.blocks.get(self.tasks)

    def tie(self, pick: Pick) -> tuple[int, list[int]]:
        """Return what decides between picks of equal cost and score: fewer variants, then lower ids."""
        return len(pick.members), [int(self.order[place]) for _, place in pick.members]

    def by_cost(self, pick: Pick) -> tuple[float, float, int, list[int]]:
        """Return the order of fast picks."""
        return pick.cost, -pick.score, *self.tie(pick)

    def by_score(self, pick: Pick) -> tuple[float, float, int, list[int]]:
        """Return the order of accurate picks."""
        return -pick.score, pick.cost, *self.tie(pick)


def find_candidates(table: Table, tasks: int) -> Candidates:
    """Return all that may answer some tasks (bits); found once for a table, and kept in its memo."""
    key = ("candidates", tasks)
    found = table.memo.get(key)
    if found is None:
        found = table.memo[key] = _find_candidates(table, tasks)
    return found  # pyrefly: ignore[bad-return] - the memo holds what was put under this key


def fastest_of(block: Block, costs: Costs, usable: Bools | None = None) -> Pick | None:
    """Return the fastest variant of a block, of equally fast ones the most accurate.

    Args:
        block: Variants of some tasks.
        costs: Of every variant of the table.
        usable: ``(m,)``, which of the block's; None for all.
    """
    cost = costs.of(block)
    cost = cost if usable is None else np.where(usable, cost, np.inf)
    least = cost.min()
    ties = np.flatnonzero(cost == least)
    return None if least == np.inf else _pick_of(block, cost, ties[block.score[ties].argmax()])


def most_accurate_of(block: Block, costs: Costs, limit: float) -> Pick | None:
    """Return the most accurate variant of a block that takes at most so long, of equally accurate ones the fastest."""
    cost = costs.of(block)
    score = np.where(cost <= limit, block.score, -np.inf)
    most = score.max()
    ties = np.flatnonzero(score == most)
    return None if most == -np.inf else _pick_of(block, cost, ties[cost[ties].argmin()])


def _pick_of(block: Block, cost: Floats, at: np.int64) -> Pick:
    return Pick(float(cost[at]), float(block.score[at]), ((block.tasks, int(block.places[at])),))


def _find_candidates(table: Table, tasks: int) -> Candidates:
    by_id = np.array(sorted(range(len(table)), key=lambda place: table.variants[place].id), dtype=np.int64)
    order = np.empty_like(by_id)
    order[by_id] = np.arange(len(by_id))
    masks = table.masks[by_id]
    present = {int(mask) for mask in np.unique(masks & tasks)} - {0}
    blocks = {}
    every = _every_block(tasks)
    for block in sorted(every or _own_blocks(tasks, present)):
        # where not every block is looked at, one variant for two of them would not be seen to be better once for both
        places = by_id[masks & (block if every else tasks) == block]
        if len(places):
            columns = np.array([column for column in range(table.scores.shape[1]) if block >> column & 1])
            scores = np.ascontiguousarray(table.scores[np.ix_(places, columns)].T)
            blocks[block] = Block(block, columns, places, scores, scores.sum(0))
    return Candidates(tasks, blocks, _steps(tasks, blocks), order)


def _every_block(tasks: int) -> list[int]:
    """Return all parts of the tasks; none if these would be too many to combine."""
    if (3 ** tasks.bit_count() - 1) // 2 > MAX_STEPS:
        return []
    parts, part = [], tasks
    while part:
        parts.append(part)
        part = (part - 1) & tasks
    return parts


def _own_blocks(tasks: int, present: set[int]) -> set[int]:
    """Return the parts of the tasks that variants answer and no more; if these are too many, each task and all."""
    alone = {1 << place for place in range(tasks.bit_length()) if tasks >> place & 1} | {tasks}
    ways = "whose variants share no task"
    if not _steps(tasks, present | alone, MAX_STEPS):
        present, ways = set(), "of a variant for each task alone"
    _log.warning("%d tasks: of combinations, only those %s are looked at", tasks.bit_count(), ways)
    return present | alone


def _steps(tasks: int, blocks: Iterable[int], most: float = math.inf) -> dict[int, tuple[int, ...]]:
    """Return what is left to answer and the blocks that can go first, few tasks first; nothing if there are more than most."""
    found: dict[int, tuple[int, ...]] = {}
    waiting, blocks, count = [tasks], sorted(blocks), 0
    while waiting and count <= most:
        left = waiting.pop()
        if left and left not in found:
            first = left & -left
            found[left] = tuple(block for block in blocks if block & first and not block & ~left)
            count += len(found[left])
            waiting += [left & ~block for block in found[left]]
    return {} if count > most else {left: found[left] for left in sorted(found, key=int.bit_count)}
