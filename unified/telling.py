"""Tells a scheduler what happens to units, and keeps its memory over a restart. Free of torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from schedulers import base
from unified.ledger import JobRecord

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Telling:
    """What a scheduler was told, in numbered events.

    Attributes:
        scheduler: Who is told, if it has ``on_event``. It may be a plug-in: what it raises is logged.
        name: What it is called.
    """

    scheduler: base.Scheduler
    name: str
    _known: set[str] = field(default_factory=set)
    #: from the time in microseconds on: fewer events than these go by, so the numbers rise over restarts
    _numbers: Iterator[int] = field(default_factory=lambda: count(time.time_ns() // 1000))

    def note(self, kind: type[base.Event], record: JobRecord, **details: float) -> None:
        """Tell of an event that happened to a job of the ledger; see :meth:`tell`."""
        self.tell(kind, record.view(), **details)

    def tell(self, kind: type[base.Event], unit: base.JobView, **details: float) -> None:
        """Tell of an event. A job that it knows is submitted only once: after a restart, or a wait outside, it is resumed."""
        if kind is base.Submitted and unit.id in self._known:
            kind = base.Resumed
        if kind in {base.Finished, base.Failed, base.Cancelled}:
            self._known.discard(unit.id)
        else:
            self._known.add(unit.id)
        if not isinstance(self.scheduler, base.Observes):
            return
        whose = {"user_shares": unit.user_shares, "weight": unit.weight}
        try:
            self.scheduler.on_event(kind(unit_id=unit.id, sequence=next(self._numbers), **whose, **details))
        except Exception:  # it may be a plug-in
            logger.exception("scheduler %s failed on %s; it goes on", self.name, kind.__name__)

    def memory(self) -> dict[str, base.JSON] | None:
        """Return what must survive a restart, as values that ``json.dumps`` takes; None if there is nothing."""
        if not isinstance(self.scheduler, base.Stateful):
            return None
        try:
            return {"known": sorted(self._known), "policy": dict(self.scheduler.state_dict())}
        except Exception:  # it may be a plug-in
            logger.exception("scheduler %s could not say what it remembers; nothing is saved of it", self.name)
            return None

    def take_over(self, memory: dict[str, Any] | None) -> None:
        """Go on with what :meth:`memory` returned before the restart; one that cannot be read is left out, with a warning."""
        if memory is None or not isinstance(self.scheduler, base.Stateful):
            return
        try:
            known, policy = {str(name) for name in memory["known"]}, memory["policy"]
            self.scheduler.load_state_dict(policy)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in's, or of another version
            logger.warning(
                "scheduler %s: its memory cannot be taken over (%s: %s); it begins anew", self.name, type(error).__name__, error
            )
            return
        self._known |= known

    def forget_all_but(self, living: Collection[str]) -> None:
        """Tell that jobs are gone which ended, or were taken away, while nobody could tell: before a restart.

        A policy that shares slots out would go on to reckon with them.
        """
        for name in sorted(self._known.difference(living)):
            self.tell(base.Cancelled, base.JobView(id=name, submit_time=0.0))
