"""The guided policy: look where a gain in cost and a fair chance of staying within the drop meet (ours; R1, R2 of the design).

A beam of mutations grows from the original and from the best elites. Every graph on the way has a cost, known from the table,
and a believed drop (:mod:`fusion.search.surrogate`); its worth is the gain over the best model so far of each threshold times
the chance to be within it. Weights of the belief are drawn anew for each proposal (Thompson sampling), so that bold and
cautious candidates come side by side, and a small share is drawn uniformly, so that nothing is ruled out. The very first are
those in which one model's blocks serve all tasks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion.search.absgraph import BlockId, Graph
from fusion.search.mutation import Pair, mutation_pass, single_mutations
from fusion.search.policy import Proposal, Snapshot
from fusion.search.surrogate import NUM_FEATURES, Belief, believe, features_of

UNIFORM_SHARE = 0.1
BEAM_WIDTH = 4
NUM_BASES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Option:
    """A graph that might be proposed."""

    graph: Graph
    key: str
    base: str | None
    pairs: tuple[Pair, ...]
    cost: float
    features: np.ndarray


class GuidedPolicy:
    """Proposes by believed gain.

    Args:
        dissimilarity: Of (host, guest) blocks: 1 minus the similarity of their inputs.
    """

    def __init__(self, dissimilarity: Mapping[tuple[BlockId, BlockId], float]) -> None:
        self._dissimilarity = dissimilarity
        self._singles: dict[str, list[tuple[Pair, Graph, str, float, np.ndarray]]] = {}

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return up to ``count`` graphs that are not known yet; none if there is no other."""
        belief = self._belief(snapshot)
        options: dict[str, _Option] = {}
        chosen = {} if snapshot.known else self._first(snapshot, count)
        for _ in range(count - len(chosen)):
            weights = belief.draw([rng.gauss(0.0, 1.0) for _ in belief.mean])
            self._grow(snapshot, belief, weights, options)
            left = [option for key, option in options.items() if key not in chosen and key not in snapshot.known]
            if not left:
                break
            if rng.random() < UNIFORM_SHARE:
                best = rng.choice(left)
            else:
                values = _worth(left, snapshot, belief, weights)
                best = left[int(np.argmax(values))]
            chosen[best.key] = best
        return [Proposal(graph=option.graph, base=option.base, pairs=option.pairs) for option in chosen.values()]

    def _first(self, snapshot: Snapshot, count: int) -> dict[str, _Option]:
        """Return what a person would try first: one model's blocks for all tasks but for each task's last block.

        Which model serves the others best is what likeness tells least, so each has its turn.
        """
        space = snapshot.original.space
        found: dict[str, _Option] = {}
        for host in range(len(space.tasks)):
            guests = [task for task in range(len(space.tasks)) if task != host]
            drawn = tuple(Pair(space.last(host), space.last(guest)) for guest in guests)
            graph = mutation_pass(snapshot.original, drawn, sharing=snapshot.sharing, barred=snapshot.barred)
            if graph is not None and len(found) < count:
                cost = snapshot.predict(graph)
                features = self._features(graph, cost, snapshot)
                option = _Option(graph=graph, key=graph.key(), base=None, pairs=drawn, cost=cost, features=features)
                found[option.key] = option
        return found

    def _belief(self, snapshot: Snapshot) -> Belief:
        known = [entry for entry in snapshot.known.values() if not math.isnan(entry.expected_drop)]
        rows = [self._features(entry.graph, entry.cost, snapshot) for entry in known]
        return believe(np.array(rows).reshape(len(rows), NUM_FEATURES), [entry.expected_drop for entry in known])

    def _features(self, graph: Graph, cost: float, snapshot: Snapshot) -> np.ndarray:
        return features_of(graph, cost / snapshot.original_cost, self._dissimilarity)

    def _grow(self, snapshot: Snapshot, belief: Belief, weights: np.ndarray, options: dict[str, _Option]) -> None:
        """Add what the beam meets: all single mutations of the bases, then of the best of those, and so on."""
        level = [*self._of_bases(snapshot)]
        for _ in range(len(snapshot.original.space.tasks) + 1):
            for option in level:
                options.setdefault(option.key, option)
            values = _worth(level, snapshot, belief, weights)
            best = [level[index] for index in np.argsort(-values, kind="stable")[:BEAM_WIDTH]]
            level = [more for option in best for more in self._mutations(option, snapshot)]
            if not level:
                return
        for option in level:
            options.setdefault(option.key, option)

    def _of_bases(self, snapshot: Snapshot) -> list[_Option]:
        elites = sorted(snapshot.elites, key=lambda elite: (elite.cost, elite.key))[:NUM_BASES]
        found: list[_Option] = []
        for graph, base in [(snapshot.original, None), *((elite.graph, elite.key) for elite in elites)]:
            found += self._extended(graph, base, (), snapshot)
        return found

    def _mutations(self, option: _Option, snapshot: Snapshot) -> list[_Option]:
        return self._extended(option.graph, option.base, option.pairs, snapshot)

    def _extended(self, graph: Graph, base: str | None, pairs: tuple[Pair, ...], snapshot: Snapshot) -> list[_Option]:
        key = graph.key()
        if key not in self._singles:
            self._singles[key] = [
                (pair, new, new.key(), cost, self._features(new, cost, snapshot))
                for pair, new in single_mutations(graph, sharing=snapshot.sharing, barred=snapshot.barred)
                for cost in [snapshot.predict(new)]
            ]
        return [
            _Option(graph=new, key=new_key, base=base, pairs=(*pairs, pair), cost=cost, features=features)
            for pair, new, new_key, cost, features in self._singles[key]
        ]


def _worth(options: list[_Option], snapshot: Snapshot, belief: Belief, weights: np.ndarray) -> np.ndarray:
    """Return, per option, the sum over thresholds of the gain in log cost times the chance to be within it."""
    if not options:
        return np.zeros(0)
    features = np.stack([option.features for option in options])
    costs = np.array([option.cost for option in options])
    total = np.zeros(len(options))
    for threshold in snapshot.thresholds:
        best = snapshot.best_cost.get(threshold, snapshot.original_cost)
        gain = np.maximum(0.0, np.log(best / costs))
        total += gain * belief.chance(features, threshold, weights)
    return total
