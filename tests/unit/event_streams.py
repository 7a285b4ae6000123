"""Streams of events such as a run emits, from a seed: slots, turns, epochs, failures, memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from unified.events import (
    EpochDone,
    Event,
    JobFailed,
    JobFinished,
    JobSubmitted,
    MemorySampled,
    RunEnded,
    RunStarted,
    StepsDone,
    TurnEnded,
    TurnStarted,
)


@dataclass(slots=True, kw_only=True)
class Plan:
    """A job of the stream: it takes ``num_steps`` steps of ``step_seconds``, in turns of ``turn_steps``."""

    name: str
    slot: int
    num_steps: int
    steps_per_epoch: int
    step_seconds: float
    fails_at: int | None = None
    step: int = 0
    training_seconds: float = 0.0
    first_start: float | None = None


@dataclass(slots=True, kw_only=True)
class Stream:
    """Plays round robin with turns of ``turn_steps`` steps on every slot."""

    plans: list[Plan]
    turn_steps: int
    startup: float = 0.4
    events: list[Event] = field(default_factory=list)

    def play(self) -> list[Event]:
        slots = sorted({plan.slot for plan in self.plans})
        names = tuple(f"slot {slot}: cpu, 1 thread" for slot in slots)
        for plan in self.plans:
            self._submit(plan)
        self.events.append(RunStarted(at=0.1, slots=names, scheduler="round-robin", plan="balanced jobs, one thread each"))
        for slot in slots:
            self._play_slot([plan for plan in self.plans if plan.slot == slot])
        end = max(event.at for event in self.events)
        self.events += [
            MemorySampled(at=end * i / 50, bytes_in_use=300_000_000 + 400_000 * i * (50 - i), utilisation=None)
            for i in range(51)
        ]
        failed = sum(plan.fails_at is not None for plan in self.plans)
        events = sorted(self.events, key=lambda event: event.at)
        return [*events, RunEnded(at=end, num_finished=len(self.plans) - failed, num_failed=failed)]

    def _submit(self, plan: Plan) -> None:
        self.events.append(
            JobSubmitted(
                at=0.0,
                job=plan.name,
                user=("alice", "bob", None)[len(self.events) % 3],
                num_epochs=plan.num_steps // plan.steps_per_epoch,
                num_steps=plan.num_steps,
                steps_per_epoch=plan.steps_per_epoch,
                num_parameters=61706,
                peak_bytes=12 * 2**20,
            )
        )

    def _play_slot(self, plans: list[Plan]) -> None:
        now, queue = self.startup, list(plans)
        while queue:
            plan = queue.pop(0)
            now, goes_on = self._turn(plan, now)
            if goes_on:
                queue.append(plan)

    def _turn(self, plan: Plan, now: float) -> tuple[float, bool]:
        begin, first = now, plan.step
        if plan.first_start is None:
            plan.first_start = now
        self.events.append(TurnStarted(at=now, job=plan.name, slot=plan.slot, threads=1))
        is_broken = False
        for _ in range(min(self.turn_steps, plan.num_steps - plan.step)):
            now += plan.step_seconds
            plan.step += 1
            is_broken = plan.step == plan.fails_at
            if is_broken:
                break
            if plan.step % plan.steps_per_epoch == 0:
                self._epoch(plan, now)
        plan.training_seconds += now - begin
        self._end_turn(plan, now, plan.step - first, now - begin)
        if is_broken:
            self.events.append(JobFailed(at=now, job=plan.name, reason="loss is nan", log="out/x/job.log"))
        elif plan.step >= plan.num_steps:
            self._finish(plan, now)
        return now, not is_broken and plan.step < plan.num_steps

    def _end_turn(self, plan: Plan, now: float, steps: int, seconds: float) -> None:
        whose = {"at": now, "job": plan.name, "slot": plan.slot}
        epoch = (plan.step - 1) // plan.steps_per_epoch + 1
        self.events.append(StepsDone(**whose, epoch=epoch, step=plan.step, loss=2.0 / plan.step))
        self.events.append(TurnEnded(**whose, steps=steps, seconds=seconds, step=plan.step))

    def _epoch(self, plan: Plan, now: float) -> None:
        epoch = plan.step // plan.steps_per_epoch
        row = _row(epoch, plan.step)
        self.events.append(EpochDone(at=now, job=plan.name, slot=plan.slot, epoch=epoch, step=plan.step, metrics=row))

    def _finish(self, plan: Plan, now: float) -> None:
        assert plan.first_start is not None
        self.events.append(
            JobFinished(
                at=now,
                job=plan.name,
                folder=f"out/{plan.name}",
                metrics=_row(plan.num_steps // plan.steps_per_epoch, plan.step),
                waiting_seconds=plan.first_start,
                training_seconds=plan.training_seconds,
                completion_seconds=now,
                peak_bytes=11 * 2**20,
            )
        )


def _row(epoch: int, step: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": step,
        "lr": 0.01,
        "train_loss": 2.0 / step,
        "test_loss": 2.5 / step,
        "accuracy": 1 - 1 / (1 + epoch),
        "seconds": 1.0,
        "samples_per_second": 640.0,
    }


def make_run(seed: int, *, num_jobs: int = 5, num_slots: int = 2, turn_steps: int = 40, failures: int = 1) -> list[Event]:
    """Return the events of one run in order of time; the last ``failures`` jobs fail half way."""
    dice = random.Random(seed)
    plans = []
    for index in range(num_jobs):
        steps_per_epoch = dice.randint(10, 40)
        num_steps = steps_per_epoch * dice.randint(2, 12)
        plans.append(
            Plan(
                name=f"{dice.choice(['lenet', 'resnet', 'bert', 'lstm', 'vgg-cbam'])}-{index}",
                slot=index % num_slots,
                num_steps=num_steps,
                steps_per_epoch=steps_per_epoch,
                step_seconds=dice.uniform(0.002, 0.02),
                fails_at=num_steps // 2 if index >= num_jobs - failures else None,
            )
        )
    return Stream(plans=plans, turn_steps=turn_steps).play()
