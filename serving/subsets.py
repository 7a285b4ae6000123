"""Which subsets of a family's tasks get variants of their own, and what they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

from serving.errors import ServingError

#: ``"singles+all"``: each task alone and all together (MTLsys, section 4.2); ``"all"``: every subset; or those given.
Subsets = str | Sequence[Sequence[str]]

MAX_SUBSETS = 255  #: of eight tasks, all
_MAX_NAME = 80  #: characters of a subset's name, which leaves room for a ratio and a prefix


def subsets_of(tasks: Sequence[str], which: Subsets) -> tuple[tuple[str, ...], ...]:
    """Return subsets, all tasks first if they are among them, each once and in the order of ``tasks``.

    Raises:
        ServingError: If there are too many, none, or some of unknown tasks.

    Example:
        >>> subsets_of(("age", "sex"), "singles+all")
        (('age', 'sex'), ('age',), ('sex',))
    """
    if which == "singles+all":
        found = [tuple(tasks), *((task,) for task in tasks)]
    elif which == "all":
        if 2 ** len(tasks) - 1 > MAX_SUBSETS:
            raise ServingError(
                f"{len(tasks)} tasks have {2 ** len(tasks) - 1} subsets, more than {MAX_SUBSETS}: name those that are wanted"
            )
        found = [chosen for size in range(len(tasks), 0, -1) for chosen in combinations(tasks, size)]
    elif isinstance(which, str):
        raise ServingError(f"expected subsets 'singles+all', 'all' or tuples of tasks; got {which!r}")
    else:
        found = [_ordered(chosen, tasks) for chosen in which]
        found.sort(key=lambda chosen: chosen != tuple(tasks))
    if not found:
        raise ServingError("expected at least one subset of tasks, got none")
    return tuple(dict.fromkeys(found))


def subset_name(chosen: Sequence[str], tasks: Sequence[str]) -> str:
    """Return what variants of some tasks are called before their ratio.

    Example:
        >>> subset_name(("age",), ("age", "sex")), subset_name(("age", "sex"), ("age", "sex", "job"))
        ('age', 'age_sex')
    """
    if len(chosen) == len(tasks):
        return "all"
    name = "_".join(chosen)
    # a long name is cut; one that another subset or 'all' would have, too, is told apart
    others = {"all"} | {"_".join(some) for size in (1, 2) for some in combinations(tasks, size) if some != tuple(chosen)}
    if len(name) <= _MAX_NAME and name not in others:
        return name
    return f"{name[: _MAX_NAME - 9]}-{hashlib.sha256(','.join(chosen).encode()).hexdigest()[:8]}"


def _ordered(chosen: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(chosen) - set(tasks))
    if unknown or not chosen:
        given = f"unknown: {', '.join(unknown)}" if unknown else "an empty one"
        raise ServingError(f"expected subsets of {', '.join(tasks)}; got {given}")
    return tuple(task for task in tasks if task in chosen)
