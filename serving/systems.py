"""The three systems that MTLsys compares (figure 1), as parts of one table: so they share profile, machine and policy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from enum import StrEnum

import numpy as np

from serving.records import Source, Variant
from serving.table import Table


class System(StrEnum):
    """What variants a system has."""

    A = "A"  #: MTLsys: multi-task variants, and those specialised to some tasks, the other heads removed
    B = "B"  #: multi-task variants only: heads are never removed
    C = "C"  #: variants of one task each, trained alone

    @property
    def words(self) -> str:
        """For legends and tables."""
        return _TITLES[self]


_TITLES = {System.A: "multi-task, unused heads removed", System.B: "multi-task, all heads", System.C: "single-task"}
_SOURCES = {
    System.A: {Source.PRUNED, Source.HEAD_REMOVED},
    System.B: {Source.PRUNED},
    System.C: {Source.SINGLE},
}


def view(table: Table, system: System | str, *, also: Collection[Source] = ()) -> Table:
    """Return the part of a table that a system has.

    Args:
        table: Of all variants.
        system: Which.
        also: Further sources whose variants it shall have, such as fused networks; the paper has none.
    """
    sources = _SOURCES[System(system)] | set(also)
    return part_of(table, lambda variant: variant.source in sources)


def part_of(table: Table, belongs: Callable[[Variant], bool]) -> Table:
    """Return some variants of a table as a table."""
    places = [place for place, variant in enumerate(table.variants) if belongs(variant)]
    chosen = np.array(places, dtype=np.int64)
    return replace(
        table,
        variants=tuple(table.variants[place] for place in places),
        infer_ms={quantile: latency[chosen] for quantile, latency in table.infer_ms.items()},
        load_cold_ms=table.load_cold_ms[chosen],
        load_warm_ms=table.load_warm_ms[chosen],
        num_bytes=table.num_bytes[chosen],
        scores=table.scores[chosen],
        suspect=frozenset(after for after, before in enumerate(places) if before in table.suspect),
        memo={},
    )
