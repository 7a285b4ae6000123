"""Asks the packer for the units of the moment, and remembers what it must not forget between two decisions. Free of torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schedulers import base
from schedulers.ordering import in_order
from unified import packer
from unified.bookkeeper import Bookkeeper
from unified.interference import Interference, Runner
from unified.ledger import JobRecord
from unified.packer import Eviction, Outlook, Placements, Rules
from unified.placement import Placement, tenant_of
from unified.slots import Slot
from unified.stages import Stages
from unified.units import Unit, Units

MOST_TRIED = 8  #: parked jobs that are looked at for an idle slot

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Placer:
    """Decides with the packer who may go where.

    Attributes:
        books: The jobs, and the scheduler whose order of the units counts.
        stages: The slots.
        interference: Who disturbs whom.
    """

    books: Bookkeeper
    stages: Stages
    interference: Interference = field(default_factory=Interference)
    _sent_away_for: dict[str, set[str]] = field(default_factory=dict)

    @property
    def scheduler(self) -> base.Scheduler:
        """Whose order of the units counts."""
        return self.books.telling.scheduler

    def placement(self) -> Placement:
        """Return who is where now."""
        return Placement(
            ledger=self.books.ledger,
            slots=self.stages.slots,
            capacity_bytes=self.stages.capacity_bytes,
            bans=self.books.bans,
            now=self.books.clock(),
        )

    def units(self, placement: Placement) -> Units:
        """Return what forms units."""
        books = self.books
        everybody = books.ledger.all()
        return Units(everybody=everybody, stacks=books.stacks, placement=placement, slots=self.stages.slots, bans=books.bans)

    def belongs(self, record: JobRecord) -> bool:
        """Whether a job's turn is in the present stage."""
        if record.num_threads is None:
            record.num_threads = self.stages.threads  # it came while the run was under way
        return record.num_threads == self.stages.threads

    def ready(self) -> list[JobRecord]:
        """Return the jobs that could begin a turn."""
        return [record for record in self.books.ledger.ready() if self.belongs(record)]

    def plan(self, units: Sequence[Unit], placement: Placement) -> Placements:
        """Say where the units that could begin a turn, and are on no slot, may go; and who leaves for them."""
        queued = [tenant_of(unit.records) for unit in units if unit.slot is None]
        rules = self._rules(placement)
        return packer.plan(queued, placement.residents, placement.berths, rules, lambda: self.outlook(units))

    def outlook(self, units: Sequence[Unit]) -> Outlook:
        """Return what the scheduler thinks of units."""
        now = self.books.clock()
        views = {unit.leader.name: unit.view() for unit in units}
        order = {view.id: rank for rank, view in enumerate(policy_order(self.scheduler, list(views.values()), now))}
        return Outlook(
            ranks={record.name: order[unit.leader.name] for unit in units for record in unit.records},
            seconds_left={name: left for name, view in views.items() if (left := view.remaining_seconds) is not None},
            submit_times={name: view.submit_time for name, view in views.items()},
            promoted=promoted(self.scheduler, views.values(), now),
            spares={name: self._spared_by(name) for name in views if name in self._sent_away_for},
        )

    def remember(self, evictions: Sequence[Eviction]) -> None:
        """Take note of who is sent away for whom, so that those do not come back at their expense."""
        ledger = self.books.ledger
        for each in evictions:
            self._sent_away_for.setdefault(each.unit, set()).add(each.wanted_by)
        if evictions:
            known = {name: {other for other in others if other in ledger} for name, others in self._sent_away_for.items()}
            self._sent_away_for = {name: others for name, others in known.items() if others and name in ledger}

    def watch(self) -> None:
        """Measure who runs beside whom; to be called after every report."""
        runners = []
        for slot in self.stages.slots:
            records = [record for name in slot.turn if (record := self.books.ledger.get(name)) is not None]
            if records:
                kind = tenant_of(records).kind
                runners.append(Runner(id=records[0].name, kind=kind, device=slot.device, step=records[0].step))
        self.interference.watch(self.books.clock(), runners)

    def gain_of(self, slot: Slot) -> float | None:
        """Return how many times as fast what runs on a slot and the one unit beside it are as one after the other, if known."""
        kinds = [
            tenant_of(records).kind
            for other in self.stages.slots
            if other.device == slot.device
            and (records := [record for name in other.turn if (record := self.books.ledger.get(name)) is not None])
        ]
        return self.interference.gain(*kinds) if slot.turn and len(kinds) == 2 else None

    def to_fetch(self, slot: Slot) -> JobRecord | None:
        """Return the longest of the jobs parked beside running ones that may come to this idle slot, if any may."""
        if any(record.leaving == "move" for record in self.books.ledger.all()):
            return None
        busy = {other.index for other in self.stages.slots if other.running is not None}
        ready = self.ready()
        parked = [record for record in ready if record.slot in busy and not record.checkpoint_failed]
        if not parked:
            return None
        placement = self.placement()
        parked = [record for record in parked if placement.fits(record, slot)]
        parked.sort(key=lambda record: -record.seconds_left)
        units = self.units(placement).of(ready)
        return next((record for record in parked[:MOST_TRIED] if self._may_come(record, slot, units, placement)), None)

    def _may_come(self, record: JobRecord, slot: Slot, units: Sequence[Unit], placement: Placement) -> bool:
        """Whether a parked job may go to a slot as far as those that wait are concerned, and those that run beside it."""
        waiting = [tenant_of(unit.records) for unit in units if unit.slot is None]
        rest = [each for each in placement.residents if each.tenant.id != record.name]
        rules = self._rules(placement)
        placements = packer.plan([*waiting, record.tenant], rest, placement.berths, rules, lambda: self.outlook(units))
        return slot.index in placements.places[record.name].slots

    def _spared_by(self, name: str) -> frozenset[str]:
        """Return all whom a unit must not send away: for whom it, or one of those, was sent away."""
        found: set[str] = set()
        rest = [name]
        while rest:
            others = self._sent_away_for.get(rest.pop(), set()) - found
            found |= others
            rest += others
        return frozenset(found)

    def _rules(self, placement: Placement) -> Rules:
        return Rules(
            capacity_bytes=placement.capacity_bytes,
            bans=placement.bans,
            parted=self.interference.parted(self.books.clock()),
            gains=self.interference.gains(),
        )


def policy_order(scheduler: base.Scheduler, units: Sequence[base.JobView], now: float) -> list[base.JobView]:
    """Return units in the order in which a policy would have them run; by submit time if it has no order of its own."""
    if isinstance(scheduler, base.Orders):
        try:
            return in_order(units, lambda unit: scheduler.key(unit, now))
        except Exception:  # it may be a plug-in
            logger.exception("a scheduler's key failed; its units are ordered by submit time")
    return sorted(units, key=lambda unit: (unit.submit_time, unit.id))


def promoted(scheduler: base.Scheduler, units: Iterable[base.JobView], now: float) -> frozenset[str]:
    """Return the units that have waited over the longest wait which their policy allows."""
    if not isinstance(scheduler, base.Promotes):
        return frozenset()
    try:
        return frozenset(unit.id for unit in units if scheduler.is_promoted(unit, now))
    except Exception:  # it may be a plug-in
        logger.exception("a scheduler could not say whom it promotes; it promotes nobody")
        return frozenset()
