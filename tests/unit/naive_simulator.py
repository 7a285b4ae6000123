"""A second simulator, as simple as can be: goes through time tick by tick and looks at everybody in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schedulers.base import (
    Epochs,
    Event,
    Finished,
    JobView,
    Observes,
    Preempts,
    Quantum,
    Scheduler,
    Seconds,
    SlotView,
    Steps,
    Submitted,
    TurnCut,
    TurnDone,
)
from schedulers.simulation.simulator import Host
from schedulers.simulation.workload import SimJob


@dataclass(eq=False)
class NaiveUnit:
    """A job whose steps take a second each; ``told`` is what has been reported of ``done``."""

    job: SimJob
    done: float = 0.0
    told: float = 0.0
    slot: int | None = None
    waiting_since: float | None = None
    cuts: int = 0
    began: float = 0.0
    granted_at: float = 0.0
    granted_done: float = 0.0
    quantum: Quantum | None = None
    events: int = 0
    completion: float | None = None

    def view(self, slot: int | None) -> JobView:
        job, seconds = self.job, int(self.job.seconds)
        return JobView(
            id=job.id,
            submit_time=job.submit_time,
            waiting_since=self.waiting_since,
            user_shares=((job.user, 1.0),),
            priority=job.priority,
            weight=job.weight,
            num_epochs=job.num_epochs,
            steps_per_epoch=seconds // job.num_epochs,
            steps_total=seconds,
            steps_done=int(self.done + 1e-9),
            step_seconds=1.0,
            attained_seconds=self.done,
            num_preemptions=self.cuts,
            has_begun=self.quantum is not None,
            slot_id=slot,
        )

    def is_quantum_over(self, now: float) -> bool:
        match self.quantum:
            case Seconds(count):
                return now - self.granted_at >= count - 1e-9
            case Steps(count):
                return self.done - self.granted_done >= count - 1e-9
            case Epochs(count):
                epoch = self.job.seconds // self.job.num_epochs
                return self.done // epoch - self.granted_done // epoch >= count
        return False


@dataclass
class NaiveSimulator:
    """Runs ``jobs`` to their end; ``tick`` is what time goes on by."""

    jobs: Sequence[SimJob]
    scheduler: Scheduler
    host: Host
    tick: float = 1.0
    now: float = 0.0
    waiting: list[NaiveUnit] = field(default_factory=list)
    running: list[NaiveUnit] = field(default_factory=list)

    def completions(self) -> dict[str, float]:
        to_come = [NaiveUnit(job) for job in sorted(self.jobs, key=lambda job: (job.submit_time, job.id))]
        everybody, ticks = list(to_come), 0
        while to_come or self.waiting or self.running:
            self.finish()
            arrived = [unit for unit in to_come if unit.job.submit_time <= self.now]
            for unit in arrived:
                to_come.remove(unit)
                self.waiting.append(unit)
                self.tell(unit, Submitted)
            self.end_quanta()
            self.fill()
            if arrived and self.waiting and isinstance(self.scheduler, Preempts):
                self.cut()
                self.fill()
            self.spread()
            ticks += 1
            for unit in self.running:
                beside = sum(other.slot == unit.slot for other in self.running)
                unit.done += self.tick * (self.host.corun / 2 if beside == 2 else 1.0)
            self.now = ticks * self.tick
        return {unit.job.id: unit.completion or 0.0 for unit in everybody}

    def finish(self) -> None:
        for unit in sorted(self.running, key=lambda unit: (unit.slot, unit.granted_at)):
            if unit.done >= unit.job.seconds - 1e-9:
                unit.done, unit.completion = unit.job.seconds, self.now
                self.running.remove(unit)
                self.tell(unit, TurnDone)
                self.tell(unit, Finished)

    def end_quanta(self) -> None:
        for unit in sorted(self.running, key=lambda unit: (unit.slot, unit.granted_at)):
            if unit.is_quantum_over(self.now):
                if self.is_wanted(unit):
                    self.stop(unit, TurnDone)
                else:
                    self.tell(unit, TurnDone)
                    unit.granted_at, unit.granted_done = self.now, unit.done

    def is_wanted(self, unit: NaiveUnit) -> bool:
        anywhere = self.host.placement == "global"
        return any(anywhere or other.slot in (None, unit.slot) for other in self.waiting)

    def fill(self) -> None:
        ready = [unit.view(unit.slot if self.host.placement == "resident" else None) for unit in self.waiting]
        for grant in self.scheduler.select(self.now, ready, self.slots()):
            [unit] = [unit for unit in self.waiting if unit.job.id == grant.unit_id]
            self.waiting.remove(unit)
            self.running.append(unit)
            unit.slot, unit.quantum = grant.slot_id, grant.quantum
            unit.waiting_since = unit.granted_at = self.now
            unit.granted_done = unit.done

    def cut(self) -> None:
        running = [unit.view(unit.slot) for unit in self.running]
        wanted = [unit.view(unit.slot if self.host.placement == "resident" else None) for unit in self.waiting]
        assert isinstance(self.scheduler, Preempts)
        victims = self.scheduler.victims(self.now, running, wanted, self.slots())
        for unit in [unit for unit in self.running if unit.job.id in victims]:
            unit.cuts += 1
            self.stop(unit, TurnCut)

    def spread(self) -> None:
        if self.host.placement == "resident":
            return
        for slot in range(self.host.slots):
            here = [unit for unit in self.running if unit.slot == slot]
            empty = [other for other in range(self.host.slots) if all(unit.slot != other for unit in self.running)]
            if len(here) == 2 and empty:
                here[-1].slot = empty[0]

    def stop(self, unit: NaiveUnit, kind: type[Event]) -> None:
        self.running.remove(unit)
        self.waiting.append(unit)
        unit.waiting_since = self.now
        self.tell(unit, kind)

    def slots(self) -> list[SlotView]:
        return [
            SlotView(
                id=slot,
                running=tuple(unit.job.id for unit in self.running if unit.slot == slot),
                corun_limit=self.host.corun_limit,
                prefers=frozenset(u.job.id for u in self.waiting if u.waiting_since == self.now and u.slot == slot),
            )
            for slot in range(self.host.slots)
        ]

    def tell(self, unit: NaiveUnit, kind: type[Event]) -> None:
        if isinstance(self.scheduler, Observes):
            unit.events += 1
            extra = {}
            if kind in (TurnDone, TurnCut):
                extra = {"steps": int(unit.done - unit.told), "seconds": unit.done - unit.told}
                unit.told = unit.done
            shares = ((unit.job.user, 1.0),)
            self.scheduler.on_event(
                kind(unit_id=unit.job.id, sequence=unit.events, user_shares=shares, weight=unit.job.weight, **extra)
            )
