"""Shortest job first: the smallest unit first, each to its end."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.base import Grant, JobView, SchedulerConfigError, SlotView, UntilDone
from schedulers.ordering import by_key

_FIELDS = {"parameters": "num_parameters", "epochs": "num_epochs"}


class ShortestJobFirst:
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

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Grant each idle slot to the shortest unit."""
        return by_key(
            ready,
            slots,
            key=lambda unit: (not unit.has_begun, getattr(unit, self._field)),
            quantum=UntilDone(),
        )
