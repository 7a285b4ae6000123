"""Which variants are on the device, and which leave it to make room: bookkeeping without a thread."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np
from torch import nn

from serving.runtime.snapshot import Servable
from serving.selection import State
from serving.table import Table


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resident:
    """A variant on the device: ``module`` is in evaluation mode."""

    servable: Servable
    module: nn.Module

    @property
    def num_bytes(self) -> int:
        """Of its weights and buffers."""
        return self.servable.num_bytes


class Residency:
    """Variants on one device within a budget of bytes; the least recently used leaves first.

    Pinned variants stay, and so do those in use: each request uses one variant at a time, from before it is loaded until its
    call is done, so that whatever a request waits for comes to be unused at some time.
    """

    def __init__(self, *, memory_bytes: int | None) -> None:
        self._memory_bytes = memory_bytes
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._uses: Counter[str] = Counter()
        self._loading: dict[str, tuple[int, float]] = {}  # bytes, and when it is expected to be there
        self._states: dict[int, tuple[Table, State]] = {}  # by id of the table; until the next change
        self.pinned: frozenset[str] = frozenset()

    def __contains__(self, variant: str) -> bool:
        return variant in self._residents

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the variants on the device, least recently used first."""
        return tuple(self._residents)

    @property
    def num_bytes(self) -> int:
        """Bytes of the variants on the device or on their way to it."""
        return sum(resident.num_bytes for resident in self._residents.values()) + sum(
            size for size, _ in self._loading.values()
        )

    def find(self, variant: str) -> Resident | None:
        """Return a variant if it is on the device, from then on the most recently used."""
        resident = self._residents.get(variant)
        if resident is not None:
            self._residents.move_to_end(variant)
        return resident

    def use(self, variant: str) -> None:
        """Keep a variant, there or not yet there, until it is released as often as used."""
        self._uses[variant] += 1

    def release(self, variant: str) -> bool:
        """Use a variant no longer; return whether nobody does."""
        self._uses[variant] -= 1
        if self._uses[variant]:
            return False
        del self._uses[variant]
        return True

    def is_used(self, variant: str) -> bool:
        """Return whether a request needs it now."""
        return variant in self._uses

    def room_for(self, num_bytes: int) -> list[str] | None:
        """Return which variants must leave for so many bytes, None if those that may leave are not enough."""
        if self._memory_bytes is None:
            return []
        missing = self.num_bytes + num_bytes - self._memory_bytes
        leaving = []
        for variant in self.evictable():
            if missing <= 0:
                break
            leaving.append(variant)
            missing -= self._residents[variant].num_bytes
        return leaving if missing <= 0 else None

    def evictable(self) -> list[str]:
        """Return what may leave, the least recently used first."""
        return [variant for variant in self._residents if variant not in self._uses and variant not in self.pinned]

    def expect(self, variant: str, num_bytes: int, ready_at: float) -> None:
        """Take note that a variant is being loaded."""
        self._loading[variant] = (num_bytes, ready_at)

    def arrived(self, variant: str, resident: Resident | None) -> None:
        """Take note that loading has ended, with the variant or without."""
        self._loading.pop(variant, None)
        if resident is not None:
            self._residents[variant] = resident
            self._states.clear()

    def evict(self, variant: str) -> Resident | None:
        """Let a variant go; return what was there."""
        self._states.clear()
        return self._residents.pop(variant, None)

    def state(self, table: Table, warm: frozenset[str], now: float) -> State:
        """Return what selection must know of the device: milliseconds until each variant of a table could be there.

        0 if it is; else what loading takes, from memory for those in ``warm`` and from the file for others, after what is
        being loaded now; of that itself, what remains. While nothing changes it is the same state, whose memo makes
        selection several times faster.
        """
        at_rest = self._at_rest(table, warm)
        if not self._loading:
            return at_rest
        remaining = {variant: max(0.0, at - now) * 1e3 for variant, (_, at) in self._loading.items()}
        load_ms = np.where(at_rest.load_ms > 0, at_rest.load_ms + max(remaining.values()), at_rest.load_ms)
        for variant, milliseconds in remaining.items():
            if variant in table.index:
                load_ms[table.index[variant]] = milliseconds
        return State(load_ms=load_ms)

    def _at_rest(self, table: Table, warm: frozenset[str]) -> State:
        kept = self._states.get(id(table))
        if kept is not None and kept[0] is table:
            return kept[1]
        load_ms = table.load_cold_ms.copy()
        for variant, place in table.index.items():
            if variant in self._residents:
                load_ms[place] = 0.0
            elif variant in warm:
                load_ms[place] = table.load_warm_ms[place]
        state = State(load_ms=load_ms)
        self._states[id(table)] = (table, state)
        return state
