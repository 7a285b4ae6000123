"""What is scheduled: units, each a job or a stack of jobs that step as one. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from schedulers.base import JobView
from unified.grouping import Candidate, Rules, group
from unified.ledger import JobRecord
from unified.packing import stack_demand
from unified.placement import Placement
from unified.slots import Slot
from unified.stacks import Stacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A job, or a stack: its leader, the first that was submitted, and the leader's companions."""

    leader: JobRecord
    companions: tuple[JobRecord, ...] = ()

    @property
    def records(self) -> tuple[JobRecord, ...]:
        """All jobs, the leader first."""
        return (self.leader, *self.companions)

    @property
    def slot(self) -> int | None:
        """Where some of it is resident, and all of it has to go; None for anywhere."""
        return next((record.slot for record in self.records if record.slot is not None), None)

    def view(self) -> JobView:
        """Return what a scheduler may know of it: a stack is as large as all its jobs and as long as its longest."""
        views = [record.view() for record in self.records]
        if len(views) == 1:
            return views[0]
        longest = max(views, key=lambda view: view.steps_total - view.steps_done)
        deadlines = [(view.deadline, view.is_deadline_soft) for view in views if view.deadline is not None]
        deadline, is_soft = min(deadlines, default=(None, False))
        return replace(
            views[0],
            waiting_since=min(view.waiting_since or view.submit_time for view in views),
            num_members=len(views),
            user_shares=_shares(views),
            priority=min(view.priority for view in views),
            weight=sum(view.weight for view in views),
            deadline=deadline,
            is_deadline_soft=is_soft,
            num_parameters=sum(view.num_parameters for view in views),
            num_epochs=longest.num_epochs,
            steps_per_epoch=longest.steps_per_epoch,
            steps_total=longest.steps_total,
            steps_done=longest.steps_done,
            step_seconds=longest.step_seconds,
            attained_seconds=sum(view.attained_seconds for view in views),
            num_preemptions=max(view.num_preemptions for view in views),
            memory_resident_bytes=sum(view.memory_resident_bytes for view in views),
            memory_peak_bytes=stack_demand([record.demand for record in self.records]).peak_bytes,
            slot_id=self.slot,
        )


def _shares(views: Sequence[JobView]) -> tuple[tuple[str, float], ...]:
    """Return the users of a stack, each with the part of its members that is theirs."""
    parts: dict[str, float] = {}
    for view in views:
        for user, part in view.user_shares:
            parts[user] = parts.get(user, 0.0) + part / len(views)
    return tuple(parts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Forms units out of the jobs of the moment.

    Attributes:
        everybody: All jobs of the run, in the order of submission.
        stacks: What is known of stacks.
        placement: Who may be where.
        slots: The slots.
        bans: Pairs that must not meet.
    """

    everybody: Sequence[JobRecord]
    stacks: Stacks
    placement: Placement
    slots: Sequence[Slot]
    bans: AbstractSet[frozenset[str]]

    def of(self, ready: Sequence[JobRecord]) -> list[Unit]:
        """Return the units of the jobs that could begin a turn; as small as the memory of the moment asks for."""
        by_name = {record.name: record for record in ready}
        candidates = [Candidate(name=record.name, key=self._key(record), slot=record.slot) for record in ready]
        units: list[Unit] = []
        for names in group(candidates, self._rules(ready)):
            units += self._fitting([by_name[name] for name in names])
        return units

    def in_turn(self) -> list[Unit]:
        """Return the units that have a turn, each of the jobs that are still in it."""
        by_name = {record.name: record for record in self.everybody}
        turns = [[by_name[name] for name in slot.turn if name in by_name] for slot in self.slots]
        return [Unit(leader=members[0], companions=tuple(members[1:])) for members in turns if members]

    def may_join(self, record: JobRecord, slot: Slot) -> bool:
        """Whether a job that is ready may join the turn under way on ``slot``."""
        members = [other for other in self.everybody if other.name in slot.turn]
        key = self._key(record)
        if not members or key is None or record.slot not in {None, slot.index}:
            return False
        if any(self._key(member) != key or member.leaving for member in members):
            return False
        rules, size = self._rules([record]), len(members) + 1
        waiting = sum(other.is_ready and self._key(other) == key for other in self.everybody)
        is_wanted = size <= rules.share(key, waiting) and rules.pays(key, size)
        return is_wanted and self.placement.fits(record, slot, members)

    def _key(self, record: JobRecord) -> str | None:
        return self.stacks.group_key(record, record.num_threads)

    def _rules(self, ready: Sequence[JobRecord]) -> Rules:
        running = Counter(key for record in self.everybody if record.is_running and (key := self._key(record)) is not None)
        kinds = {key: kind for record in ready if (key := self._key(record)) and (kind := self.stacks.kind_of(record))}
        return Rules(
            num_slots=len(self.slots),
            max_size=self.stacks.max_size,
            num_running=running,
            least_sizes={key: self.stacks.least_size(kind) for key, kind in kinds.items()},
            bans=self.bans,
        )

    def _fitting(self, records: Sequence[JobRecord]) -> list[Unit]:
        """Return the jobs as one unit, or halved until each unit fits where it could go: many jobs as one need more memory."""
        unit = Unit(leader=records[0], companions=tuple(records[1:]))
        home = unit.slot
        slots = [slot for slot in self.slots if slot.running is None and home in {None, slot.index}]
        if len(records) == 1 or not slots or any(self.placement.fits(records[0], slot, records[1:]) for slot in slots):
            return [unit]
        half = -(-len(records) // 2)
        return [*self._fitting(records[:half]), *self._fitting(records[half:])]
