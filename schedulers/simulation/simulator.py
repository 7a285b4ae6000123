"""A workload under a policy, on a virtual clock: the scheduler is the object that the engine would ask, in the same words.

Work flows: a unit may stop at any time, and two on one slot share its speed evenly. Between two instants nothing changes;
the next is the least of the next submission, the next completion at the present speeds, and, where somebody waits, the
next end of a quantum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from schedulers.base import Finished, JobView, Scheduler, SchedulerConfigError, SlotView, Submitted, TurnCut, TurnDone
from schedulers.simulation.asking import Asker
from schedulers.simulation.outcome import JobOutcome, Outcome, Turn
from schedulers.simulation.units import SimUnit
from schedulers.simulation.workload import SimJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine.

    Attributes:
        slots: How many slots it has.
        corun: The speed of two units on one slot together, against one alone; at 1 units do not share slots.
        pairs: The same for pairs of jobs of these kinds, where it is known.
        placement: ``"resident"`` binds a unit to the slot of its first turn; with ``"global"`` it may go on anywhere.
        switch_seconds: What it costs a unit to begin a turn, unless it has just ended one there.
        checkpoint_seconds: What it costs, besides, to begin where another has stopped before its end.
    """

    slots: int = 1
    corun: float = 1.0
    pairs: Mapping[frozenset[str], float] = field(default_factory=dict)
    placement: Literal["global", "resident"] = "global"
    switch_seconds: float = 0.0
    checkpoint_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise SchedulerConfigError(f"a host has at least one slot, got {self.slots}")
        if not 1.0 <= self.corun <= 2.0:
            raise SchedulerConfigError(f"two units on a slot reach 1 to 2 times the speed of one, got {self.corun}")
        if self.placement not in ("global", "resident"):
            raise SchedulerConfigError(f"expected placement 'global' or 'resident', got {self.placement!r}")
        if min(self.switch_seconds, self.checkpoint_seconds) < 0:
            raise SchedulerConfigError("a switch and a checkpoint take at least 0 s")

    @property
    def corun_limit(self) -> int:
        """How many units may share a slot."""
        return 2 if self.corun > 1 or self.pairs else 1

    @property
    def alone(self) -> Host:
        """The same host, where units do not share slots."""
        return replace(self, corun=1.0, pairs={})

    def rate(self, kinds: Sequence[str]) -> float:
        """Return the speed of each of the units of these kinds on one slot."""
        return self.pairs.get(frozenset(kinds), self.corun) / 2 if len(kinds) == 2 else 1.0


def simulate(
    jobs: Sequence[SimJob], scheduler: Scheduler, host: Host, *, progress: Callable[[int], object] | None = None
) -> Outcome:
    """Run a workload to its end.

    Args:
        jobs: The workload, in any order.
        scheduler: Who decides; a new one, as it keeps what it learns.
        host: The machine.
        progress: Called with the number of jobs that are done, whenever it changes.

    Raises:
        ValueError: If two jobs have one name.

    >>> from schedulers.fcfs import FirstComeFirstServed
    >>> jobs = [SimJob(id="a", submit_time=0, seconds=5), SimJob(id="b", submit_time=1, seconds=2)]
    >>> [job.completion for job in simulate(jobs, FirstComeFirstServed(), Host()).jobs]
    [5.0, 7.0]
    """
    if len({job.id for job in jobs}) < len(jobs):
        raise ValueError("every job of a workload has a name of its own")
    return _Simulation(jobs, scheduler, host, progress or (lambda num_done: None)).run()


class _Simulation:
    """The state between two instants: who is still to come, who waits, and who runs where."""

    def __init__(self, jobs: Sequence[SimJob], scheduler: Scheduler, host: Host, progress: Callable[[int], object]) -> None:
        self.host = host
        self.progress = progress
        self.ask = Asker(scheduler)
        self.now = -inf
        self.to_come = sorted(jobs, key=lambda job: (job.submit_time, job.id), reverse=True)
        self.units: list[SimUnit] = []
        self.waiting: dict[str, SimUnit] = {}
        self.running: list[list[SimUnit]] = [[] for _ in range(host.slots)]
        self.just_stopped: list[SimUnit] = []  # before their ends, at this instant
        self.slot_views = [SlotView(id=slot, corun_limit=host.corun_limit) for slot in range(host.slots)]
        self.refused: dict[str, str] = {}
        self.turns: list[Turn] = []
        self.num_done = 0

    def run(self) -> Outcome:
        while self.to_come or self.waiting or any(self.running):
            self.now = self._next_instant()
            self.just_stopped.clear()
            self._renew()
            self._finish()
            arrived = self._submit()
            self._end_quanta()
            self._fill()
            if arrived and self.waiting and self.ask.preempts and self._cut():
                self._fill()
            if self.host.placement == "global":
                self._spread()
        return Outcome(
            jobs=tuple(
                JobOutcome(
                    job=unit.job,
                    first_start=unit.first_start or 0.0,
                    completion=unit.ended,
                    preemptions=unit.preemptions,
                    longest_wait=unit.longest_wait,
                )
                for unit in self.units
            ),
            refused=self.refused,
            turns=tuple(self.turns),
            decision_seconds=tuple(self.ask.decision_seconds),
            num_wrong=self.ask.num_wrong,
            wrong=self.ask.wrong,
        )

    def _next_instant(self) -> float:
        instant = self.to_come[-1].submit_time if self.to_come else inf
        for slot, units in enumerate(self.running):
            is_wanted = bool(units) and self._is_wanted(slot)
            for unit in units:
                instant = min(instant, unit.finish_at, unit.quantum_at if is_wanted else inf)
        return max(instant, self.now)

    def _is_wanted(self, slot: int) -> bool:
        """Say whether somebody waits who could run there."""
        if self.host.placement == "global":
            return bool(self.waiting)
        return any(unit.slot_id in (slot, None) for unit in self.waiting.values())

    def _renew(self) -> None:
        """Tell, in the order of their ends, of the quanta that ended while nobody waited for the slot."""
        lapsed = []
        for units in self.running:
            for unit in units:
                lapsed_at = unit.renew(self.now)
                if lapsed_at is not None:
                    lapsed.append((lapsed_at, unit.job.id, unit))
        for lapsed_at, _, unit in sorted(lapsed, key=lambda row: row[:2]):
            steps, seconds = unit.report(lapsed_at)
            self.ask.tell(unit.event(TurnDone, steps=steps, seconds=seconds))

    def _finish(self) -> None:
        for units in self.running:
            for unit in [unit for unit in units if unit.finish_at <= self.now]:
                self._stop(unit, TurnDone)
                self.ask.tell(unit.event(Finished))
                self.num_done += 1
                self.progress(self.num_done)

    def _submit(self) -> bool:
        """Take in what has come; say whether anything did."""
        has_come = False
        while self.to_come and self.to_come[-1].submit_time <= self.now:
            unit = SimUnit(self.to_come.pop(), stays=self.host.placement == "resident")
            refusal = self._refusal(unit) if self.ask.admits else None
            if refusal is not None:
                self.refused[unit.job.id] = refusal
                continue
            has_come = True
            self.units.append(unit)
            self.waiting[unit.job.id] = unit
            self.ask.tell(unit.event(Submitted))
        return has_come

    def _end_quanta(self) -> None:
        for slot, units in enumerate(self.running):
            over = [unit for unit in units if unit.quantum_at <= self.now]
            if over and self._is_wanted(slot):
                for unit in over:
                    self._stop(unit, TurnDone)
                    self._wait(unit)

    def _cut(self) -> bool:
        """End the turns that the policy names; say whether it named any."""
        running = [unit.running_view(self.now) for units in self.running for unit in units]
        victims = set(self.ask.victims(self.now, running, self._ready(), self._slot_views()))
        for units in self.running:
            for unit in [unit for unit in units if unit.job.id in victims]:
                unit.cuts += 1
                self._stop(unit, TurnCut)
                self._wait(unit)
        return bool(victims)

    def _fill(self) -> None:
        """Give the slots that have room to those whom the policy names."""
        if not self.waiting or all(len(units) == self.host.corun_limit for units in self.running):
            return
        for grant in self.ask.select(self.now, self._ready(), self._slot_views()):
            unit = self.waiting.pop(grant.unit_id)
            unit.start(self.now, grant.slot_id, grant.quantum, self._overhead(unit, grant.slot_id))
            self.running[grant.slot_id].append(unit)
            self._share(grant.slot_id)

    def _spread(self) -> None:
        """Move units from slots with two to slots with none: where a unit may go on anywhere, no slot stays empty."""
        empty = [slot for slot, units in enumerate(self.running) if not units]
        shared = [slot for slot, units in enumerate(self.running) if len(units) > 1]
        for here, there in zip(shared, empty, strict=False):
            unit = self.running[here].pop()
            self._note_turn(unit)
            self.running[there].append(unit)
            unit.move(self.now, there)
            self._share(here)
            self._share(there)
            unit.stall(self.host.switch_seconds + self.host.checkpoint_seconds)

    def _stop(self, unit: SimUnit, kind: type[TurnDone | TurnCut]) -> None:
        assert unit.slot_id is not None
        unit.stop(self.now)
        steps, seconds = unit.report(self.now)
        self.ask.tell(unit.event(kind, steps=steps, seconds=seconds))
        self.running[unit.slot_id].remove(unit)
        self._share(unit.slot_id)
        self._note_turn(unit)

    def _wait(self, unit: SimUnit) -> None:
        assert unit.slot_id is not None
        self.waiting[unit.job.id] = unit
        self.just_stopped.append(unit)

    def _share(self, slot: int) -> None:
        rate = self.host.rate([unit.job.kind for unit in self.running[slot]])
        for unit in self.running[slot]:
            unit.set_rate(self.now, rate)

    def _overhead(self, unit: SimUnit, slot: int) -> float:
        if unit.goes_on(self.now, slot):
            return 0.0
        has_parked = any(other.slot_id == slot for other in self.just_stopped)
        return self.host.switch_seconds + (self.host.checkpoint_seconds if has_parked else 0.0)

    def _note_turn(self, unit: SimUnit) -> None:
        """Note that a stretch of a unit on its slot has ended, as one with the stretch that it continues."""
        assert unit.slot_id is not None
        done = unit.done_at(self.now)
        turn = Turn(
            unit_id=unit.job.id, slot_id=unit.slot_id, began=unit.began, ended=self.now, seconds=done - unit.done_before
        )
        last = unit.last_turn
        if last is not None and self.turns[last].began == turn.began and self.turns[last].slot_id == turn.slot_id:
            self.turns[last] = turn
        else:
            unit.last_turn = len(self.turns)
            self.turns.append(turn)

    def _ready(self) -> list[JobView]:
        return [unit.waiting_view() for unit in self.waiting.values()]

    def _refusal(self, unit: SimUnit) -> str | None:
        accepted = [unit.running_view(self.now) for units in self.running for unit in units] + self._ready()
        return self.ask.refusal(self.now, unit.waiting_view(), accepted, self._slot_views())

    def _slot_views(self) -> list[SlotView]:
        """Return what a scheduler sees of the slots; a unit that has just stopped is best placed where it was."""
        for slot, units in enumerate(self.running):
            running = tuple([unit.job.id for unit in units])
            prefers = frozenset([unit.job.id for unit in self.just_stopped if unit.slot_id == slot])
            if running != self.slot_views[slot].running or prefers != self.slot_views[slot].prefers:
                self.slot_views[slot] = SlotView(id=slot, running=running, corun_limit=self.host.corun_limit, prefers=prefers)
        return list(self.slot_views)
