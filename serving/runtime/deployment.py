"""Which variants are served now and which of them are on the device, while the store changes underneath."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from serving.errors import ServingError
from serving.runtime.events import Event, Quarantined
from serving.runtime.loading import Loader
from serving.runtime.options import ServiceOptions
from serving.runtime.residency import Residency, Resident
from serving.runtime.snapshot import Models, Servable, Snapshot, find_pinned, read_snapshot
from serving.selection import State
from serving.table import Table

_log = logging.getLogger(__name__)


#: After which a variant is tried again: what kept it from being loaded may have passed, such as too many open files.
QUARANTINE_SECONDS = 60.0


class Unusable(Exception):  # noqa: N818 - a state of a variant, after which another is taken
    """A variant cannot be served and is in quarantine; the message says why."""


class Deployment:
    """A snapshot of the store and the device. Used in the event loop's thread only."""

    def __init__(
        self,
        models: Models,
        options: ServiceOptions,
        residency: Residency,
        loader: Loader,
        tell: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._models = models
        self._options = options
        self._tell = tell
        self._loader = loader
        self._changing = asyncio.Lock()
        self._postponed = -1  # version that was said to be in the middle of a change
        self._unfinished: set[str] = set()  # families that were said to be so
        self.residency = residency
        self.snapshot = Snapshot(version=-1, tables={}, servables={})
        self.quarantined: dict[str, str] = {}
        self._quarantined_at = 0.0

    async def start(self) -> None:
        """Read the store and load what is pinned.

        Raises:
            ServingError: If the store has nothing that was profiled on this machine, or a pinned variant cannot be served.
        """
        snapshot = await asyncio.to_thread(read_snapshot, self._models, self._options)
        if not snapshot.servables:
            raise ServingError(
                "no variant of this store was profiled on this machine with this device and these threads; 'unified variants"
                f" profile --device {self._options.device} --threads {self._options.threads}' does it"
            )
        self._switch(self._finished(snapshot))
        try:
            await self._load_pinned()
        except Unusable as error:
            raise ServingError(f"a pinned variant cannot be served: {error}") from error

    async def refresh(self) -> bool:
        """Serve what the store has now; return whether that is anything new.

        Where a variant on the device is gone, what takes its place is loaded before anything changes for clients. Requests
        that were decided before end with what was decided. A store that does not answer some task that is answered now is in
        the middle of a change, such as variants that are not profiled yet, and is not served before that is over. Nor is a
        new family before it answers all of its tasks: the others stay ready while it is built.

        Raises:
            ServingError: If the store cannot be read or lacks a pinned variant; what is served stays as it was.
        """
        async with self._changing:
            is_changed = await asyncio.to_thread(lambda: self._models.version) != self.snapshot.version
            is_over = bool(self.quarantined) and self._clock() - self._quarantined_at > QUARANTINE_SECONDS
            if not (is_changed or is_over):
                return False
            snapshot = await asyncio.to_thread(read_snapshot, self._models, self._options)
            if snapshot.answers_less_than(self.snapshot):
                if snapshot.version != self._postponed:
                    self._postponed = snapshot.version
                    _log.warning("the store has changed and does not answer all tasks now; what was served before stays")
                return False
            snapshot = self._finished(snapshot)
            for servable in successors(self.residency.ids, self.snapshot, snapshot):
                snapshot = await self._load_ahead(servable, snapshot)
            self._switch(snapshot)
            try:
                await self._load_pinned()
            except Unusable:
                _log.warning("a pinned variant is in quarantine")
            return True

    def is_pinned_resident(self) -> bool:
        """Return whether all pinned variants are on the device."""
        return all(variant in self.residency for variant in self.residency.pinned)

    def state(self, table: Table) -> State:
        """Return what selection must know of the device. See :meth:`Residency.state`."""
        return self.residency.state(table, self._loader.warm, time.monotonic())

    async def acquire(self, servable: Servable) -> Resident:
        """Return a variant on the device, where it stays until it is released; raises Unusable if it cannot be loaded."""
        if servable.id not in self.residency.pinned:
            await self._loader.let_pass()
        self.residency.use(servable.id)
        try:
            return self.residency.find(servable.id) or await self._loader.load(servable)
        except asyncio.CancelledError:
            self.release(servable.id)
            raise
        except Exception as error:  # whatever a load raises, it will raise again
            self.release(servable.id)
            self.quarantine(servable, str(error) or repr(error))
            raise Unusable(f"variant {servable.name!r} ({servable.id}): {error}") from error

    def release(self, variant: str) -> None:
        """End what :meth:`acquire` began."""
        if self.residency.release(variant):
            if variant not in self.snapshot.servables:
                self._loader.forget(variant)
            self._loader.released()

    def make_room(self, variant: str) -> None:
        """Let all leave that nobody uses, but not this one."""
        for other in self.residency.evictable():
            if other != variant:
                self._loader.evict(other)

    def quarantine(self, servable: Servable, problem: str) -> None:
        """Serve a variant no more until the store changes, or a minute has passed since the last one was put here."""
        self._quarantined_at = self._clock()
        if servable.id in self.quarantined:
            return
        _log.error("variant %s (%s) is in quarantine: %s", servable.name, servable.id, problem)
        self.quarantined[servable.id] = problem
        self.snapshot = self.snapshot.without(servable.id)
        self._tell(Quarantined(variant=servable.id, problem=problem))

    def close(self) -> None:
        """End the loader's thread."""
        self._loader.close()

    def _finished(self, snapshot: Snapshot) -> Snapshot:
        """Return it without families that are not served yet and lack variants for some task, unless there is no other."""
        lacking = {name: tasks for name, tasks in snapshot.unanswerable().items() if name not in self.snapshot.tables}
        if len(lacking) == len(snapshot.tables):
            return snapshot
        for name in lacking.keys() - self._unfinished:
            _log.warning("%s is not served before variants for %s are profiled here", name, ", ".join(lacking[name]))
        self._unfinished = set(lacking)
        return snapshot.without_families(lacking)

    def _switch(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.quarantined = {}
        self.residency.pinned = find_pinned(snapshot, self._options.pinned)
        for variant in self.residency.ids:
            if variant not in snapshot.servables and not self.residency.is_used(variant):
                self._loader.forget(variant)

    async def _load_pinned(self) -> None:
        for variant in sorted(self.residency.pinned):
            await self.acquire(self.snapshot.servables[variant])
            self.release(variant)

    async def _load_ahead(self, servable: Servable, snapshot: Snapshot) -> Snapshot:
        if self.residency.room_for(servable.num_bytes) is None:
            return snapshot  # it is loaded when it is needed, after what it replaces has left
        self.residency.use(servable.id)
        try:
            await self._loader.load(servable)
        except Exception as error:  # noqa: BLE001 - whatever a load raises, it will raise again
            _log.error("variant %s (%s) is not served: %s", servable.name, servable.id, error)
            return snapshot.without(servable.id)
        finally:
            self.residency.release(servable.id)
            self._loader.released()
        return snapshot


def successors(residents: tuple[str, ...], old: Snapshot, new: Snapshot) -> list[Servable]:
    """Return what takes the place of the variants on the device that are gone, one for each where there is one.

    That is the variant of the same name, else the one of the same tasks that is nearest in latency.
    """
    found: dict[str, Servable] = {}
    for variant in residents:
        gone = old.servables.get(variant)
        if gone is None or variant in new.servables:
            continue
        candidates = [
            servable
            for servable in new.servables.values()
            if servable.variant.family == gone.variant.family
            and set(servable.variant.tasks) >= set(gone.variant.tasks)
            and servable.id not in residents
            and servable.id not in found
        ]
        if candidates:
            best = min(candidates, key=lambda servable: _distance(servable, gone))
            found[best.id] = best
    return list(found.values())


def _distance(servable: Servable, gone: Servable) -> tuple[bool, bool, float, str]:
    return (
        servable.name != gone.name,
        servable.variant.tasks != gone.variant.tasks,
        abs(servable.seconds(1) - gone.seconds(1)),
        servable.id,
    )
