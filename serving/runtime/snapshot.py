"""What is served: the store's content at one moment, as far as this machine can serve it. Immutable."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from serving.errors import ServingError
from serving.hardware import Hardware
from serving.records import Family, Variant
from serving.runtime.options import ServiceOptions
from serving.systems import part_of
from serving.table import Table

_log = logging.getLogger(__name__)


class Models(Protocol):
    """The store, as far as serving reads it; any thread may call it."""

    @property
    def version(self) -> int:
        """Grows with each change of what there is or was measured."""
        ...

    def families(self) -> dict[str, Family]:
        """Return all families by name."""
        ...

    def examples(self, family: str) -> tuple[Tensor, ...]:
        """Return some samples of a family's inputs."""
        ...

    def table(self, family: str, hardware: str | None = None) -> Table:
        """Return the variants of a family that were profiled on a machine."""
        ...

    def load(self, key: str) -> nn.Module:
        """Return the network of a variant; raises ServingError if its files are missing or altered."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Servable:
    """A variant with what this machine was measured to take for it.

    Attributes:
        variant: What it is.
        table: Of its family, in which its profile stands.
        place: Its line there.
        quantile: Of inference latency, by which it is predicted.
        example: One sample of the inputs.
    """

    variant: Variant
    table: Table
    place: int
    quantile: str
    example: tuple[Tensor, ...]

    @property
    def id(self) -> str:
        """Of the variant."""
        return self.variant.id

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.variant.name

    @property
    def num_bytes(self) -> int:
        """Of its weights and buffers."""
        return self.variant.num_bytes

    def seconds(self, rows: int) -> float:
        """Predict how long inference of so many samples takes."""
        return float(self.table.latency(rows, self.quantile)[self.place]) / 1e3

    def load_seconds(self, *, warm: bool) -> float:
        """Predict how long loading takes."""
        return float((self.table.load_warm_ms if warm else self.table.load_cold_ms)[self.place]) / 1e3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """All that can be served.

    Attributes:
        version: Of the store.
        tables: By family; without what is quarantined or cannot fit into memory.
        servables: By the variant's id.
    """

    version: int
    tables: Mapping[str, Table]
    servables: Mapping[str, Servable]

    def find(self, key: str) -> Servable | None:
        """Return the variant of an id or, if it is the only one of it, a name."""
        if key in self.servables:
            return self.servables[key]
        named = [servable for servable in self.servables.values() if servable.name == key]
        return named[0] if len(named) == 1 else None

    def unanswerable(self) -> dict[str, list[str]]:
        """Return by family the tasks that no variant answers; families that have all are left out."""
        found = {
            name: [task for task in table.family.task_names if not any(task in variant.tasks for variant in table.variants)]
            for name, table in self.tables.items()
        }
        return {name: tasks for name, tasks in found.items() if tasks}

    def answers_less_than(self, other: Snapshot) -> bool:
        """Return whether there is a task of some family that the other answers and this does not."""
        lacking = self.unanswerable()
        return any(
            any(task in variant.tasks for variant in table.variants for task in lacking.get(name, table.family.task_names))
            for name, table in other.tables.items()
            if name not in self.tables or name in lacking
        )

    def without_families(self, names: Collection[str]) -> Snapshot:
        """Return it without some families."""
        tables = {name: table for name, table in self.tables.items() if name not in names}
        kept = {key: value for key, value in self.servables.items() if value.variant.family not in names}
        return replace(self, tables=tables, servables=kept)

    def without(self, variant: str) -> Snapshot:
        """Return it without one variant."""
        tables = {name: part_of(table, lambda kept: kept.id != variant) for name, table in self.tables.items()}
        return replace(self, tables=tables, servables={key: value for key, value in self.servables.items() if key != variant})


def read_snapshot(models: Models, options: ServiceOptions) -> Snapshot:
    """Read what can be served here: what was profiled on this machine, and fits beside what is pinned.

    Raises:
        ServingError: If the store cannot be read, a pinned variant is not in it, or the pinned ones do not fit together.
    """
    version = models.version
    hardware = Hardware.here(options.device, options.threads).fingerprint
    tables = {name: models.table(name, hardware) for name in models.families()}
    everything = _snapshot(models, version, tables, options.quantile)
    pinned = find_pinned(everything, options.pinned)
    if options.memory_bytes is None:
        return everything
    free = options.memory_bytes - sum(everything.servables[key].num_bytes for key in pinned)
    if free < 0:
        raise ServingError(
            f"the pinned variants need {options.memory_bytes - free} bytes and {options.memory_bytes} are allowed; pin fewer or"
            " allow more"
        )
    fits = {name: part_of(table, lambda kept: kept.id in pinned or kept.num_bytes <= free) for name, table in tables.items()}
    for name, table in fits.items():
        if len(table) < len(tables[name]):
            _log.warning("%d variants of %s are larger than the memory left for them", len(tables[name]) - len(table), name)
    return _snapshot(models, version, fits, options.quantile)


def find_pinned(snapshot: Snapshot, keys: tuple[str, ...]) -> frozenset[str]:
    """Return the ids of pinned variants; raises ServingError with all that are not there."""
    found = {key: snapshot.find(key) for key in keys}
    missing = [key for key, servable in found.items() if servable is None]
    if missing:
        raise ServingError(
            f"pinned variants {', '.join(missing)}: expected ids or names of variants profiled on this machine;"
            " 'unified variants list' prints them"
        )
    return frozenset(servable.id for servable in found.values() if servable is not None)


def _snapshot(models: Models, version: int, tables: Mapping[str, Table], quantile: str) -> Snapshot:
    servables = {}
    for name, table in tables.items():
        example = tuple(tensor[:1] for tensor in models.examples(name)) if len(table) else ()
        for place, variant in enumerate(table.variants):
            servables[variant.id] = Servable(variant=variant, table=table, place=place, quantile=quantile, example=example)
    return Snapshot(version=version, tables=tables, servables=servables)
