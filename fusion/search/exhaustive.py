"""The exhaustive policy: everything that mutations can make, in the order of their number."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fusion.search.absgraph import Graph
from fusion.search.mutation import Pair, Sharing, single_mutations
from fusion.search.policy import Proposal, Snapshot


class ExhaustivePolicy:
    """Goes through everything that mutations of the original make: first one mutation, then two, and so on.

    Each graph inherits the weights of the one that it was made from if that is an elite. For small spaces: what it has been
    through stays in memory, as keys and edges.
    """

    def __init__(self) -> None:
        self._walks: dict[tuple[str, Sharing, frozenset[str]], _Walk] = {}

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return the next ``count`` graphs that are not known, in an order that does not depend on ``rng``."""
        del rng
        asked = (snapshot.original.key(), snapshot.sharing, snapshot.barred)
        if asked not in self._walks:
            self._walks[asked] = _Walk(snapshot.original, snapshot.sharing, snapshot.barred)
        elites = {elite.key for elite in snapshot.elites}
        found: list[Proposal] = []
        for step in self._walks[asked]:
            if len(found) >= count:
                break
            if step.graph.key() in snapshot.known:
                continue
            is_inherited = step.parent in elites
            pairs_of = step.pairs[-1:] if is_inherited else step.pairs
            found.append(Proposal(graph=step.graph, base=step.parent if is_inherited else None, pairs=pairs_of))
        return found


@dataclass(frozen=True, slots=True)
class _Step:
    graph: Graph
    parent: str
    pairs: tuple[Pair, ...]


class _Walk:
    """All graphs in the order of the number of mutations; may be gone through again and again, each is made once."""

    def __init__(self, graph: Graph, sharing: Sharing, barred: frozenset[str]) -> None:
        self._rules = (sharing, barred)
        self._seen = {graph.key()}
        self._steps: list[_Step] = []
        self._open = deque([_Step(graph, "", ())])

    def __iter__(self) -> Iterator[_Step]:
        place = 0
        while place < len(self._steps) or self._open:
            if place == len(self._steps):
                self._go_on()
            else:
                yield self._steps[place]
                place += 1

    def _go_on(self) -> None:
        step = self._open.popleft()
        sharing, barred = self._rules
        for pair, graph in single_mutations(step.graph, sharing=sharing, barred=barred):
            if graph.key() not in self._seen:
                self._seen.add(graph.key())
                new = _Step(graph, step.graph.key(), (*step.pairs, pair))
                self._steps.append(new)
                self._open.append(new)
