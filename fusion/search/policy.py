"""Policies: who says which graphs are tried next, from what is known so far.

A policy gets a snapshot and a generator and returns proposals; it neither changes nor measures anything, so that a search with
one seed can be replayed.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 4.3.1 and Algorithm 1.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fusion.search.absgraph import BlockId, Graph
from fusion.search.mutation import Pair, Sharing, mutation_pass, pairs

MAX_ELITES = 16
MAX_DRAWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A candidate that has been looked at.

    Attributes:
        key: Of its graph.
        graph: What it shares.
        drop: Its largest drop of a task.
        cost: Predicted, in the search's metric.
        parameters: Number of them.
        expected_drop: The drop at which its full training would have ended, as far as can be said; NaN if nobody asked.
        status: ``accepted``, ``failed``, or ``unknown`` if its training was ended early.
        bases: Keys of the elites whose weights it was tried from, None among them for the originals. A candidate that was not
            accepted may be tried again from others; without this it is not.
    """

    key: str
    graph: Graph
    drop: float
    cost: float
    parameters: int
    status: str
    bases: frozenset[str | None] | None = None
    expected_drop: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a policy may know.

    Attributes:
        iteration: Number of candidates so far.
        original: The graph of the models as they were handed in.
        original_cost: Its cost.
        elites: Candidates to start from.
        known: By key, every candidate so far.
        last_drop: Drop of the last candidate; 0 before the first.
        thresholds: The allowed drops.
        best_cost: By threshold, the cost of the best candidate within it.
        predict: Cost of a graph, from the table.
        similarity: Of the inputs of two blocks, from 0 to 1.
        sharing: Which inputs may be shared.
        barred: Kinds of block that are not.
    """

    iteration: int
    original: Graph
    original_cost: float
    elites: tuple[Known, ...]
    known: Mapping[str, Known]
    last_drop: float
    thresholds: tuple[float, ...]
    best_cost: Mapping[float, float]
    predict: Callable[[Graph], float]
    similarity: Callable[[BlockId, BlockId], float]
    sharing: Sharing
    barred: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A graph to try.

    Attributes:
        graph: What it shares.
        base: Key of the elite whose weights it inherits; None for those of the originals.
        pairs: What was asked for on top of the base, in order; pairs that were not legal any more had no effect.
    """

    graph: Graph
    base: str | None
    pairs: tuple[Pair, ...]


class Policy(Protocol):
    """Whoever says what is tried next."""

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return up to ``count`` proposals of different graphs; none if the space is exhausted."""
        ...


def elite_probability(
    drop: float, iteration: int, num_elites: int, *, alpha: float = 0.99, max_elites: int = MAX_ELITES, printed: bool = False
) -> float:
    """Return the probability of starting from an elite rather than from the original.

    p = (1 - exp(-(1 - drop) T_i / T_c)) sqrt(N_c / N_i) with T_c = T_i alpha^iteration: the initial temperature T_i cancels.
    The paper prints T_c T_i, with T_i = 90, below the fraction bar, with which an elite is practically never chosen.

    Args:
        drop: Of the last candidate; taken as 0 below 0 and as 1 above 1.
        iteration: From 0.
        num_elites: N_c; more than ``max_elites`` count as that many.
        alpha: Factor by which the temperature falls, 0 < alpha <= 1.
        max_elites: N_i.
        printed: Take the formula as it is printed.

    Example:
        >>> round(elite_probability(0.01, 1, 16), 3), round(elite_probability(0.01, 200, 16), 3)
        (0.632, 0.999)
    """
    fraction = (1.0 - min(1.0, max(0.0, drop))) / alpha**iteration
    if printed:
        fraction /= 90.0**2
    return -math.expm1(-fraction) * math.sqrt(min(num_elites, max_elites) / max_elites)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealingPolicy:
    """Draws pairs on the original or on an elite, on elites more and more often; "annealing" is that coin and no more.

    Attributes:
        num_pairs: Pairs of a mutation pass; None draws from 1 to the number of tasks each time.
        alpha: As in :func:`elite_probability`.
        max_elites: N_i of the formula.
        printed: Take the formula as the paper prints it.
        max_draws: Draws for one proposal after which the space counts as exhausted.
    """

    num_pairs: int | None = None
    alpha: float = 0.99
    max_elites: int = MAX_ELITES
    printed: bool = False
    max_draws: int = MAX_DRAWS

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return up to ``count`` proposals; see :class:`Policy`."""
        chance = elite_probability(
            snapshot.last_drop,
            snapshot.iteration,
            len(snapshot.elites),
            alpha=self.alpha,
            max_elites=self.max_elites,
            printed=self.printed,
        )

        def draw_base() -> Known | None:
            return rng.choice(snapshot.elites) if rng.random() < chance else None

        return _draw(snapshot, rng, count, draw_base, self.num_pairs, self.max_draws)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPolicy:
    """Draws pairs on the original only: the baseline of sections 2.1 and 6.4 of the paper.

    Attributes:
        num_pairs: As of :class:`AnnealingPolicy`.
        max_draws: As of :class:`AnnealingPolicy`.
    """

    num_pairs: int | None = None
    max_draws: int = MAX_DRAWS

    def propose(self, snapshot: Snapshot, rng: random.Random, count: int) -> list[Proposal]:
        """Return up to ``count`` proposals; see :class:`Policy`."""
        return _draw(snapshot, rng, count, lambda: None, self.num_pairs, self.max_draws)


def _draw(
    snapshot: Snapshot,
    rng: random.Random,
    count: int,
    draw_base: Callable[[], Known | None],
    num_pairs: int | None,
    max_draws: int,
) -> list[Proposal]:
    """Draw graphs until there are enough or a limit of draws is met.

    What was tried and not accepted comes again only where nothing new was drawn, and only from other weights.
    """
    legal: dict[str | None, Sequence[Pair]] = {}
    chosen: dict[str, Proposal] = {}
    again: dict[str, Proposal] = {}
    draws_left = max_draws
    while len(chosen) < count and draws_left:
        draws_left -= 1
        base = draw_base()
        proposal = _draw_once(snapshot, rng, base, legal, num_pairs)
        if proposal is None or proposal.graph.key() in chosen:
            continue
        key = proposal.graph.key()
        if key not in snapshot.known:
            chosen[key] = proposal
            draws_left = max_draws
        elif _may_try_again(snapshot.known[key], proposal.base):
            again.setdefault(key, proposal)
    return [*chosen.values(), *again.values()][:count]


def _draw_once(
    snapshot: Snapshot,
    rng: random.Random,
    base: Known | None,
    legal: dict[str | None, Sequence[Pair]],
    num_pairs: int | None,
) -> Proposal | None:
    """Draw one mutation pass, uniformly over the sets of legal pairs; None if it has no effect."""
    graph, key = (snapshot.original, None) if base is None else (base.graph, base.key)
    if key not in legal:
        legal[key] = pairs(graph, sharing=snapshot.sharing, barred=snapshot.barred)
    wanted = rng.randint(1, len(graph.space.tasks)) if num_pairs is None else num_pairs
    drawn = tuple(rng.sample(legal[key], min(wanted, len(legal[key]))))
    new = mutation_pass(graph, drawn, sharing=snapshot.sharing, barred=snapshot.barred)
    if new is None or new.key() == snapshot.original.key():
        return None
    return Proposal(graph=new, base=key, pairs=drawn)


def _may_try_again(known: Known, base: str | None) -> bool:
    return known.status != "accepted" and known.bases is not None and base not in known.bases
