"""Shortest job first: the smallest unit first, each to its end."""

from __future__ import annotations

from math import inf

from schedulers.base import JobView, Quantum, SchedulerConfigError, Steps, UntilDone
from schedulers.keyed import KeyPolicy
from schedulers.measured import PROFILE_STEPS
from schedulers.quanta import time_text

_NEEDS = {"parameters": "num_parameters", "epochs": "num_epochs", "seconds": "step_seconds"}


class ShortestJobFirst(KeyPolicy):
    """The paper's "Shortest Job First". A unit whose turn was cut goes on before anybody else begins.

    Args:
        length: What makes a job long: ``"parameters"`` of its model, or the ``"epochs"`` it is to be trained; or, where
            we go beyond the paper, the ``"seconds"`` it takes by measured steps. A unit that is yet to be measured
            then comes first, for a few steps.

    Raises:
        SchedulerConfigError: If ``length`` is none of these.

    References:
        UnifiedNN, section "Trainer".
    """

    def __init__(self, length: str = "parameters") -> None:
        if length not in _NEEDS:
            raise SchedulerConfigError(f"option 'length': expected {', '.join(_NEEDS)}, got {length!r}")
        self.length = length
        self.needs: frozenset[str] = frozenset({_NEEDS[length]})

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's length; one that has begun comes first."""
        length = self._length(unit)
        # the turn that measured a unit is no beginning
        begun = unit.has_begun and (self.length != "seconds" or unit.steps_done > PROFILE_STEPS)
        return (0.0 if begun or length is None else 1.0, -inf if length is None else length)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return no end, or a few steps if the unit is yet to be measured."""
        return UntilDone() if self._length(unit) is not None else Steps(PROFILE_STEPS)

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's length."""
        length = self._length(unit)
        if length is None:
            return "its step time is yet to be measured"
        shown = time_text(length) if self.length == "seconds" else f"{length:.0f} {self.length}"
        return f"its length is {shown}; the smallest goes first"

    def _length(self, unit: JobView) -> float | None:
        if self.length == "seconds":
            return unit.whole_seconds
        return float(unit.num_parameters if self.length == "parameters" else unit.num_epochs)
