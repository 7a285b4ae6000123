"""Which alpha: prune for each of several, and take the one whose task combinations cost least (PAM, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusion.merging.errors import MergeError
from fusion.merging.merged import MergedNetwork
from fusion.merging.pruning import Pruned, flops_by_combination

ALPHAS = (0.05, 0.1, 0.2, 0.4)
"""Tried by default, as shares of what a layer tells: from much that is shared to little."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlphaTrial:
    """What an alpha came to.

    Attributes:
        alpha: The threshold.
        pruned: The network.
        cost: Weighted operations of its task combinations.
    """

    alpha: float
    pruned: Pruned
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlphaChoice:
    """All that were tried, and the best: of those that are good enough the one of least cost."""

    best: AlphaTrial
    trials: tuple[AlphaTrial, ...]


def choose_alpha(
    make: Callable[[float], MergedNetwork],
    prune: Callable[[MergedNetwork], Pruned],
    alphas: Sequence[float] = ALPHAS,
    *,
    weights: Mapping[tuple[str, ...], float] | None = None,
    progress: Callable[[AlphaTrial], None] | None = None,
) -> AlphaChoice:
    """Prune the network of each alpha, and choose.

    Args:
        make: Makes the merged network of an alpha; see :meth:`fusion.merging.regroup.Traces.regroup`.
        prune: Prunes it; see :func:`fusion.merging.pruning.prune_alternating`.
        alphas: To be tried. One that groups neurons as an earlier one did is left out.
        weights: How often each combination of tasks will be run; all alike if None.
        progress: Told of every trial.

    Raises:
        MergeError: If there is no alpha, or a combination has no weight.
    """
    if not alphas:
        raise MergeError("expected one or more alphas, got none")
    trials: list[AlphaTrial] = []
    seen: set[object] = set()
    for alpha in alphas:
        merged = make(alpha)
        groups = _groups(merged)
        if groups in seen:
            continue
        seen.add(groups)
        pruned = prune(merged)
        trials.append(AlphaTrial(alpha=alpha, pruned=pruned, cost=weighted_flops(pruned.network, weights)))
        if progress is not None:
            progress(trials[-1])
    best = min(trials, key=lambda trial: (not trial.pruned.is_feasible, trial.cost))
    return AlphaChoice(best=best, trials=tuple(trials))


def weighted_flops(merged: MergedNetwork, weights: Mapping[tuple[str, ...], float] | None = None) -> float:
    """Return the mean of the operations of all task combinations, by weight.

    Raises:
        MergeError: If a combination has no weight, or weights are negative or all zero.
    """
    costs = flops_by_combination(merged)
    used = dict.fromkeys(costs, 1.0) if weights is None else dict(weights)
    missing = [" and ".join(names) for names in costs if names not in used]
    if missing or min(used.values()) < 0 or not sum(used.values()):
        raise MergeError(
            f"weights: expected one of at least 0 for each combination of tasks, not all 0; missing: {', '.join(missing) or 'none'}"
        )
    return sum(used[names] * cost for names, cost in costs.items()) / sum(used[names] for names in costs)


def _groups(merged: MergedNetwork) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(merged.neurons[space].group.tolist()) for space in sorted(merged.neurons))
