"""Priority: the lowest value first, equal values share by round robin."""

from __future__ import annotations

from schedulers.base import Epochs, JobView, Quantum, SchedulerConfigError
from schedulers.rotating import RotatingPolicy

_PREEMPT = ("epoch", "step")


class Priority(RotatingPolicy):
    """The paper's "Priority Scheduling" by epochs.

    Args:
        preempt: What a more urgent arrival waits for: the end of an ``"epoch"``, as in the paper; or of a ``"step"``:
            then it takes the place of the newest unit of the lowest class that runs.

    Raises:
        SchedulerConfigError: If ``preempt`` is neither.

    References:
        UnifiedNN, section "Trainer".
    """

    needs: frozenset[str] = frozenset({"priority"})
    quantum: Quantum = Epochs(1)

    def __init__(self, preempt: str = "epoch") -> None:
        if preempt not in _PREEMPT:
            raise SchedulerConfigError(f"option 'preempt': expected {' or '.join(_PREEMPT)}, got {preempt!r}")
        self.preempts: bool = preempt == "step"
        super().__init__()

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's priority value, and among equals its place in the rotation."""
        return (float(unit.priority), self._rotation.place(unit.id))

    def urgency(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return the unit's priority value: equals do not stop each other."""
        return (float(unit.priority),)

    def explain(self, unit: JobView, now: float) -> str:
        """Return the unit's priority."""
        return f"its priority is {unit.priority}; lower values go first, equal ones by turns of one epoch"
