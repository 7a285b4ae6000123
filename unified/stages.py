"""The slots of a plan's stages: one stage after another, whose slots take over the workers of the one before. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from unified import messages
from unified.ledger import JobRecord
from unified.nursery import Nursery
from unified.packing import Plan, Stage
from unified.planning import Planner
from unified.quantities import plural
from unified.sandbox.records import Confinement
from unified.slots import Slot

_NO_STAGE = Stage(threads=None, slots=0, jobs=())


@dataclass(slots=True, kw_only=True)
class Stages:
    """The slots of the moment, and what the plan says comes next.

    Attributes:
        planner: Knows the devices and their memory.
        nursery: Where workers come from, and go.
        deterministic: Workers use deterministic kernels only.
        confinement: All that workers may touch; None: what their user may.
        slots: The slots of the stage under way.
    """

    planner: Planner
    nursery: Nursery
    deterministic: bool
    confinement: Confinement | None = None
    slots: list[Slot] = field(default_factory=list)
    _plan: Plan | None = None
    _stage: Stage = _NO_STAGE

    @property
    def is_planned(self) -> bool:
        """Whether there is a plan."""
        return self._plan is not None

    @property
    def threads(self) -> int | None:
        """Intra-op threads of each slot; None on a GPU."""
        return self._stage.threads

    @property
    def capacity_bytes(self) -> int:
        """What jobs may take: together on a CPU host, on each slot with GPUs."""
        return self.planner.capacity_of(self._stage)

    def adopt(self, plan: Plan) -> None:
        """Take over a plan and make its first stage's slots."""
        self._plan = plan
        if plan.stages:
            self._enter(plan.stages[0])

    def enter_with(self, threads: int | None) -> None:
        """Change to the stage whose slots have so many threads."""
        assert self._plan is not None, "who asks has looked"
        self._enter(next(stage for stage in self._plan.stages if stage.threads == threads))

    def describe(self) -> tuple[str, ...]:
        """Return each slot in words, over all stages: ``"slot 0: cpu, 1 thread, then 2 threads"``."""
        texts: list[str] = []
        for stage in self._plan.stages if self._plan is not None else ():
            for slot in self._make_slots(stage):
                if slot.index < len(texts):
                    texts[slot.index] += f", then {plural(slot.num_threads, 'thread')}"
                else:
                    texts.append(slot.describe())
        return tuple(texts)

    def provide_worker(self, slot: Slot, record: JobRecord) -> bool:
        """Make sure that the slot has a worker which may host a job; one that may not, and then is empty, is replaced.

        Returns:
            Whether the worker is new.

        Raises:
            NurseryDiedError: If there is nobody to start one.
            SpawnError: If the system lets nobody start one now.
        """
        if slot.child is not None and not slot.suits([record]):
            self._end_worker(slot)
        is_new = slot.child is None
        slot.start(self.nursery, deterministic=self.deterministic, confinement=self.confinement)
        slot.note_guest(record)
        return is_new

    def end_workers(self) -> None:
        """End all workers."""
        for slot in self.slots:
            slot.send(messages.Shutdown())  # all at once: each may take a while
        for slot in self.slots:
            self._end_worker(slot)

    def clear(self) -> None:
        """Forget the slots, whose workers have ended."""
        self.slots, self._stage = [], _NO_STAGE

    def _enter(self, stage: Stage) -> None:
        """Change to a stage's slots: workers that are there already take over its number of threads."""
        wanted = self._make_slots(stage)
        for slot in self.slots[len(wanted) :]:
            self._end_worker(slot)
        for slot, old in zip(wanted, self.slots, strict=False):
            slot.child, slot.users, slot.is_one_users = old.child, old.users, old.is_one_users
            slot.send(messages.SetThreads(num_threads=slot.num_threads, first_core=slot.first_core))
        self.slots, self._stage = wanted, stage

    def _make_slots(self, stage: Stage) -> list[Slot]:
        devices = enumerate(self.planner.devices_of(stage))
        return [Slot(index=index, device=device, num_threads=stage.threads or 1) for index, device in devices]

    def _end_worker(self, slot: Slot) -> None:
        slot.send(messages.Shutdown())
        if slot.child is not None:
            self.nursery.reap(slot.child)
            slot.child, slot.turn = None, ()
