"""Which jobs are stacked: a pure function from what waits, and where, to groups of equal jobs. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import ceil

MAX_SIZE = 32  #: jobs of one stack, unless somebody says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A job that could begin a turn.

    Attributes:
        name: The job.
        key: Equal for jobs that may be stacked together; None for one that steps by itself.
        slot: Where it is resident, or None.
    """

    name: str
    key: str | None
    slot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What groups must keep to.

    Attributes:
        num_slots: Slots over which equal jobs are spread, so that none stands idle.
        max_size: Most jobs of a stack.
        num_running: By key, how many more jobs have a turn just now.
        least_sizes: By key, the size from which a stack may pay; absent: from 2 on.
        bans: Pairs that must not meet.
    """

    num_slots: int
    max_size: int = MAX_SIZE
    num_running: Mapping[str, int]
    least_sizes: Mapping[str, float]
    bans: AbstractSet[frozenset[str]]

    def share(self, key: str, num_waiting: int) -> int:
        """Return how many of a key's jobs each slot should have."""
        return min(self.max_size, ceil((num_waiting + self.num_running.get(key, 0)) / max(1, self.num_slots)))

    def pays(self, key: str, size: int) -> bool:
        """Whether a stack of that size is to be tried."""
        return size >= max(2, self.least_sizes.get(key, 2))

    def may_meet(self, name: str, others: Sequence[str]) -> bool:
        """Whether a job may be beside others."""
        return not any(frozenset({name, other}) in self.bans for other in others)


def group(candidates: Sequence[Candidate], rules: Rules) -> list[tuple[str, ...]]:
    """Return the units of scheduling, each job in exactly one: stacks, and jobs by themselves.

    Who is resident stays where it is; the others, in their order, fill up the stacks of residents and then form new ones.

    Args:
        candidates: The jobs, in the order of their submission; so are the names in a unit, and the units by their first.
        rules: What groups must keep to.

    Example:
        >>> rules = Rules(num_slots=2, num_running={}, least_sizes={}, bans=frozenset())
        >>> group([Candidate(name=name, key="k" if name != "x" else None) for name in "abxcd"], rules)
        [('a', 'b'), ('x',), ('c', 'd')]
    """
    groups: list[tuple[str, ...]] = [(each.name,) for each in candidates if each.key is None]
    for key in dict.fromkeys(each.key for each in candidates if each.key is not None):
        equal = [each for each in candidates if each.key == key]
        for names in _groups_of(equal, rules.share(key, len(equal)), rules):
            groups += [tuple(names)] if rules.pays(key, len(names)) else [(name,) for name in names]
    rank = {each.name: position for position, each in enumerate(candidates)}
    groups = [tuple(sorted(names, key=rank.__getitem__)) for names in groups]
    return sorted(groups, key=lambda names: rank[names[0]])


def _groups_of(candidates: Sequence[Candidate], share: int, rules: Rules) -> list[list[str]]:
    """Spread the jobs of one key over groups of ``share`` at most, residents of a slot first."""
    groups: list[list[str]] = []
    places: list[int | None] = []
    for each in sorted(candidates, key=lambda each: each.slot is None):
        for names, place in zip(groups, places, strict=True):
            is_at_home = each.slot in {None, place}
            if is_at_home and len(names) < share and rules.may_meet(each.name, names):
                names.append(each.name)
                break
        else:
            groups.append([each.name])
            places.append(each.slot)
    return groups
