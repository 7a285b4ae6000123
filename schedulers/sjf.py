"""Shortest job first: the smallest unit first, each to its end."""

from __future__ import annotations

from schedulers.base import JobView, SchedulerConfigError
from schedulers.keyed import KeyPolicy

_FIELDS = {"parameters": "num_parameters", "epochs": "num_epochs"}


class ShortestJobFirst(KeyPolicy):
    """The paper's "Shortest Job First". A unit whose turn was cut goes on before anybody else begins.

    Args:
        length: What makes a job long: ``"parameters"`` of its model, or the ``"epochs"`` it is to be trained.

    Raises:
        SchedulerConfigError: If ``length`` is neither.

    References:
        UnifiedNN, section "Trainer".
    """

    def __init__(self, length: str = "parameters") -> None:
        if length not in _FIELDS:
            raise SchedulerConfigError(f"option 'length': expected {' or '.join(_FIELDS)}, got {length!r}")
        self._field = _FIELDS[length]
        self.needs: frozenset[str] = frozenset({self._field})

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's length; one that has begun comes first."""
        return (0.0 if unit.has_begun else 1.0, float(getattr(unit, self._field)))

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's length."""
        return f"{self._field} is {getattr(unit, self._field)}; the smallest goes first"
