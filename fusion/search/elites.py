"""The elites: candidates within their threshold that later ones may start from.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 4.3.1; crowding as in NSGA-II (Deb et al., 2002).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusion.search.policy import MAX_ELITES, Known


def keep_best(elites: Sequence[Known], candidate: Known, *, limit: int = MAX_ELITES) -> tuple[Known, ...]:
    """Add a candidate; of more than ``limit`` the worst in (cost, drop, parameters) leaves.

    The worst is of the last layer of non-domination, and there the one whose neighbours are nearest, so that the pool keeps
    both the fast and the accurate. Of two candidates with one graph the one with the smaller drop stays.
    """
    pool = _with(elites, candidate)
    while len(pool) > limit:
        layer = _last_layer(pool)
        spread = _spread(layer)
        worst = min(layer, key=lambda elite: (spread[elite.key], -elite.cost, elite.key))
        pool = tuple(elite for elite in pool if elite.key != worst.key)
    return pool


def keep_newest(elites: Sequence[Known], candidate: Known, *, limit: int = MAX_ELITES) -> tuple[Known, ...]:
    """Add a candidate; of more than ``limit`` the oldest leaves, as in the paper."""
    return _with(elites, candidate)[-limit:]


def _with(elites: Sequence[Known], candidate: Known) -> tuple[Known, ...]:
    twins = [elite for elite in elites if elite.key == candidate.key]
    if twins and twins[0].drop <= candidate.drop:
        return tuple(elites)
    return (*(elite for elite in elites if elite.key != candidate.key), candidate)


def _values(elite: Known) -> tuple[float, float, float]:
    return (elite.cost, elite.drop, elite.parameters)


def _is_beaten(elite: Known, others: Sequence[Known]) -> bool:
    mine = _values(elite)
    return any(its != mine and all(i <= m for i, m in zip(its, mine, strict=True)) for its in map(_values, others))


def _last_layer(pool: Sequence[Known]) -> list[Known]:
    """Return what is left when again and again all that nothing beats is taken away."""
    rest = list(pool)
    while True:
        beaten = [elite for elite in rest if _is_beaten(elite, rest)]
        if not beaten:
            return rest
        rest = beaten


def _spread(layer: Sequence[Known]) -> dict[str, float]:
    """Return for each the distance between its neighbours, added over the three values; infinite at the ends."""
    spread = {elite.key: 0.0 for elite in layer}
    for axis in range(3):
        line = sorted(layer, key=lambda elite: (_values(elite)[axis], elite.key))
        low, high = _values(line[0])[axis], _values(line[-1])[axis]
        if high == low:
            continue
        spread[line[0].key] = spread[line[-1].key] = math.inf
        for before, elite, after in zip(line, line[1:], line[2:], strict=False):
            spread[elite.key] += (_values(after)[axis] - _values(before)[axis]) / (high - low)
    return spread
