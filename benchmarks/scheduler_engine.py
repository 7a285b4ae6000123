"""Two promises of policies, kept or not in the real engine: how soon a unit makes room for another, and who gets how much."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.quantiles import Quantiles
from schedulers.base import Event as Told
from schedulers.base import Grant, JobView, Resumed, Seconds, SlotView, TurnCut
from schedulers.registry import create
from schedulers.simulation.workload import SimJob
from unified.engine import Engine
from unified.engine_replay import make_job
from unified.events import Event, JobResumed, TurnEnded, TurnStarted

PATIENCE_SECONDS = 120.0
_ENDLESS = 10_000_000  #: steps: the measurement ends first
TRIGGER = "trigger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """How long one resident unit took to make room for another, in milliseconds.

    Attributes:
        seconds: From the event that made it necessary to the first step of the other unit; its report of the end, too.
        beyond_step: The same without one step.
        step: A step of theirs.
    """

    seconds: Quantiles
    beyond_step: Quantiles
    step: Quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Slot time of users over so many turns.

    Attributes:
        policy: Who decided.
        weights: By user, the weight of their jobs.
        seconds: By user, the slot time that they had.
        num_turns: How many turns that were.
    """

    policy: str
    weights: dict[str, float]
    seconds: dict[str, float]
    num_turns: int

    @property
    def deviation(self) -> float:
        """The largest distance of a user's slot time by weight from the mean, in percent of it."""
        normalised = [self.seconds[user] / weight for user, weight in self.weights.items()]
        mean = sum(normalised) / len(normalised)
        return 100 * max(abs(value - mean) for value in normalised) / mean


class Swap:
    """A policy for this measurement: two units, and each time a third one comes back, who has the turn makes room."""

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._is_wanted = False

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Give the slot to the one that has waited longest."""
        others = [unit for unit in ready if unit.id != TRIGGER]
        if not others or not slots[0].room:
            return []
        longest = max(others, key=lambda unit: (unit.wait_seconds(now), unit.id))
        return [Grant(unit_id=longest.id, slot_id=0, quantum=Seconds(3600.0))]

    def victims(
        self, now: float, running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView]
    ) -> list[str]:
        """Name who has the turn, once for each return of the third."""
        return [running[0].id] if self._is_wanted else []

    def on_event(self, event: Told) -> None:
        """Remember that the third has come back until a turn was cut for it."""
        if isinstance(event, Resumed):
            self._is_wanted = True
        elif isinstance(event, TurnCut):
            self._is_wanted = False


def measure_switches(count: int) -> Switches:
    """Let two resident units make room for each other so many times.

    Raises:
        TimeoutError: If one does not within two minutes.
    """
    heard: list[Event] = []
    is_cut = threading.Event()

    def listen(event: Event) -> None:
        heard.append(event)
        if isinstance(event, TurnEnded) and event.is_preempted:
            is_cut.set()

    with Engine(scheduler=Swap(), slots=1, threads=1, device="cpu", stacking=False, listeners=[listen]) as engine:
        names = engine.submit_all([_endless(name) for name in ("one", "two", TRIGGER)])
        engine.pause(TRIGGER)

        def swap() -> None:
            for _ in range(count + 3):
                is_cut.clear()
                threading.Event().wait(0.1)  # so that a turn has steps to be timed by
                engine.resume(TRIGGER)
                if not is_cut.wait(PATIENCE_SECONDS):
                    break
                engine.pause(TRIGGER)

        _run_until(engine, names, swap)
    found = _switches(heard)[2:]  # the first brings the second unit to the slot
    if len(found) < count:
        raise TimeoutError(f"of {count} turns only {len(found)} were ended for another unit")
    seconds, steps = [each[0] for each in found], [each[1] for each in found]
    return Switches(
        seconds=_milliseconds(seconds),
        beyond_step=_milliseconds([whole - step for whole, step in found]),
        step=_milliseconds(steps),
    )


def measure_shares(policy: str, weights: dict[str, float], num_turns: int) -> Shares:
    """Let users with two long jobs each share one slot for so many turns of a tenth of a second."""
    turns: list[TurnEnded] = []
    is_enough = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, TurnEnded) and len(turns) < num_turns:
            turns.append(event)
        if len(turns) == num_turns:
            is_enough.set()

    scheduler = create(policy, {"quantum": "100ms"})
    with Engine(scheduler=scheduler, slots=1, threads=1, device="cpu", stacking=False, listeners=[listen]) as engine:
        owners = {f"{user}-{number}": user for user in weights for number in range(2)}
        names = engine.submit_all([_endless(name, user, weights[user]) for name, user in owners.items()])
        _run_until(engine, names, lambda: is_enough.wait(PATIENCE_SECONDS))
    seconds = {user: sum(turn.seconds for turn in turns if owners[turn.job] == user) for user in weights}
    return Shares(policy=policy, weights=weights, seconds=seconds, num_turns=len(turns))


def _endless(name: str, user: str = "", weight: float = 1.0):  # noqa: ANN202 - a JobSpec, which imports torch
    return make_job(name, _ENDLESS, SimJob(id=name, submit_time=0.0, seconds=1.0, user=user, weight=weight))


def _run_until(engine: Engine, names: Sequence[str], act: Callable[[], object]) -> None:
    """Run the engine while ``act`` goes on in another thread, and cancel all jobs after it."""

    def control() -> None:
        try:
            act()
        finally:
            for name in names:
                engine.cancel(name)

    thread = threading.Thread(target=control, daemon=True)
    thread.start()
    for _ in engine.run():
        pass
    thread.join()


def _switches(heard: Sequence[Event]) -> list[tuple[float, float]]:
    """Return for each preemption the seconds to the other's first step, and those of a step of its."""
    found = []
    asked_at: float | None = None
    under_way: tuple[float, float, str] | None = None  # seconds until the other's turn began, when that was, and whose it is
    for event in heard:
        if isinstance(event, JobResumed):
            asked_at = event.at
        elif isinstance(event, TurnStarted) and asked_at is not None:
            under_way, asked_at = (event.at - asked_at, event.at, event.job), None
        elif isinstance(event, TurnEnded) and under_way is not None and under_way[2] == event.job and event.is_preempted:
            until_begun, began, _ = under_way
            overhead = event.at - began - event.seconds
            found.append((until_begun + overhead, event.seconds / max(1, event.steps)))
            under_way = None
    return found


def _milliseconds(seconds: Sequence[float]) -> Quantiles:
    found = Quantiles.of(seconds)
    assert found is not None, "something was measured"
    return found.times(1000)
