"""Deficit round robin: rounds in which everybody gets the same time, even if their steps differ in length."""

from __future__ import annotations

from math import ceil, floor, isfinite

from schedulers.base import (
    MOST_OF_A_QUANTUM,
    Epochs,
    JobView,
    Quantum,
    SchedulerConfigError,
    Seconds,
    Steps,
    TurnCut,
    TurnDone,
    UntilDone,
)
from schedulers.charged import ChargedPolicy
from schedulers.quanta import DEFAULT_QUANTUM, parse_quantum, time_text

_ROUNDING = 1e-9  #: rounds; a sum of steps that makes a quantum up to rounding does make it


class DeficitRoundRobin(ChargedPolicy):
    """In each round a unit's deficit grows by a quantum by its weight, and it steps while that covers the next step.

    What is left it keeps for the next round, and loses when it leaves. A unit whose step is longer than a quantum saves up
    for several rounds. So of two units of the same weight that are ready throughout, neither gets ahead by more than
    the quantum and two of the longest steps, where under ``round-robin`` the one with the longer epoch gets more.

    Told as in stride scheduling: a unit's pass is what it has had, in quanta by its weight, and it has its next turn
    in the first round whose number is its pass and a step or more.

    Args:
        quantum: What a unit of weight 1 gets in a round: a time such as ``"500ms"``, or ``"200steps"``.

    Raises:
        SchedulerConfigError: If it is neither.

    References:
        Shreedhar and Varghese, "Efficient fair queueing using deficit round robin" (1995).
    """

    def __init__(self, quantum: str | Quantum = DEFAULT_QUANTUM) -> None:
        super().__init__()
        parsed = parse_quantum(quantum)
        if isinstance(parsed, Epochs | UntilDone):
            raise SchedulerConfigError(f"option 'quantum': expected a time or a number of steps, got {quantum!r}")
        self._share = parsed
        self.needs: frozenset[str] = frozenset({"weight"} if isinstance(parsed, Steps) else {"weight", "step_seconds"})

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the round in which the unit has its next turn."""
        return (float(self._round(unit)),)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return as many steps as the deficit covers; its time, if the unit's step is not measured."""
        deficit = self._deficit(unit)
        step = self._step(unit)
        if step is None:
            return Seconds(min(deficit, MOST_OF_A_QUANTUM))
        return Steps(max(1, floor(min(deficit / step + _ROUNDING, MOST_OF_A_QUANTUM))))

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's round and its deficit."""
        deficit = self._deficit(unit)
        length = f"{deficit:.3g} steps" if isinstance(self._share, Steps) else time_text(deficit)
        return f"its next turn is in round {self._round(unit)}, of {length}; the least round goes first"

    def price_of(self, turn: TurnDone | TurnCut) -> float:
        """Return the turn in quanta of the unit's weight."""
        used = turn.steps if isinstance(self._share, Steps) else turn.seconds
        return used / (self._share.count * turn.weight)

    def _step(self, unit: JobView) -> float | None:
        """Return what a step costs; None if that is not known."""
        if isinstance(self._share, Steps):
            return 1.0
        step = unit.step_seconds
        return step if step is not None and step > 0 and isfinite(step) else None

    def _round(self, unit: JobView) -> int:
        passed = self._passes.of(unit.id)
        step = self._step(unit)
        if step is None:
            return floor(passed + _ROUNDING) + 1
        return ceil(passed + step / (self._share.count * unit.weight) - _ROUNDING)

    def _deficit(self, unit: JobView) -> float:
        return (self._round(unit) - self._passes.of(unit.id)) * self._share.count * unit.weight
