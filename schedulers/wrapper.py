"""What wrappers share: policies that hold a policy and change its order."""

from __future__ import annotations

from schedulers.base import JSON, Admits, Event, JobView, Observes, Quantum, Scheduler, SchedulerConfigError, Stateful
from schedulers.keyed import KeyPolicy


class Wrapper(KeyPolicy):
    """Base of the wrappers: all but the order is the inner policy's, which only orders.

    Args:
        inner: A policy with ``key``, such as every built-in one.

    Raises:
        SchedulerConfigError: If it has none, or makes promises about its own order, as ``edf`` does.
    """

    def __init__(self, inner: Scheduler) -> None:
        if not isinstance(inner, KeyPolicy):
            raise SchedulerConfigError(
                f"{type(self).__name__} holds policies that order units by a key; {type(inner).__name__} is not a KeyPolicy"
            )
        if isinstance(inner, Admits):
            raise SchedulerConfigError(
                f"{type(inner).__name__} promises what only its own order keeps, so {type(self).__name__} cannot change that"
            )
        self.inner = inner
        self.needs: frozenset[str] = inner.needs
        self.preempts: bool = inner.preempts

    def wrapped(self, key: tuple[float, ...], unit: JobView, now: float) -> tuple[float, ...]:
        """Return what becomes of the inner policy's key of the unit."""
        raise NotImplementedError

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return what becomes of the inner policy's key."""
        return self.wrapped(self.inner.key(unit, now), unit, now)

    def urgency(self, unit: JobView, now: float) -> tuple[float, ...]:
        """Return what becomes of the inner policy's urgency."""
        return self.wrapped(self.inner.urgency(unit, now), unit, now)

    def quantum_of(self, unit: JobView) -> Quantum:
        """Return the inner policy's quantum."""
        return self.inner.quantum_of(unit)

    def on_event(self, event: Event) -> None:
        """Tell the inner policy."""
        if isinstance(self.inner, Observes):
            self.inner.on_event(event)

    def state_dict(self) -> dict[str, JSON]:
        """Return the inner policy's memory as JSON."""
        return {"inner": self.inner.state_dict()} if isinstance(self.inner, Stateful) else {}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Take over a memory that ``state_dict`` returned."""
        if isinstance(self.inner, Stateful):
            self.inner.load_state_dict(state["inner"])
