"""Gains: how much less one scheme costs than another, over the combinations of tasks (PAM, section 6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusion.merging.errors import MergeError

Combination = tuple[str, ...]  #: names of tasks that are run together, in the order of the tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """The cost of a baseline over ours, 1 where they are equal.

    Attributes:
        average: Mean over all combinations.
        peak: The largest.
        ratios: By combination.
    """

    average: float
    peak: float
    ratios: Mapping[Combination, float]


def gains(ours: Mapping[Combination, float], baseline: Mapping[Combination, float]) -> Gains:
    """Compare costs by combination, such as FLOPs.

    Args:
        ours: Cost of every non-empty subset of the tasks, above 0.
        baseline: The same of what it is compared with.

    Raises:
        MergeError: If they are not of the same combinations, or a cost of ours is not above 0.

    Example:
        >>> found = gains({("A",): 2.0, ("B",): 2.0, ("A", "B"): 2.5}, {("A",): 2.0, ("B",): 2.0, ("A", "B"): 4.0})
        >>> round(found.average, 3), found.peak
        (1.2, 1.6)
    """
    if not ours or ours.keys() != baseline.keys():
        raise MergeError(f"expected costs of the same combinations, got {sorted(ours)} and {sorted(baseline)}")
    if worthless := [names for names, cost in ours.items() if not cost > 0]:
        raise MergeError(f"expected costs above 0, got {ours[worthless[0]]} for {'+'.join(worthless[0])}")
    ratios = {names: baseline[names] / cost for names, cost in ours.items()}
    return Gains(average=sum(ratios.values()) / len(ratios), peak=max(ratios.values()), ratios=ratios)
