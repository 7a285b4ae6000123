"""Asks a scheduler as the engine does: its answers are checked, and its time is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from schedulers.base import Admits, Event, Grant, JobView, Observes, Preempts, Scheduler, SlotView
from schedulers.checks import wrong_grant, wrong_victims
from schedulers.fcfs import FirstComeFirstServed

Answer = TypeVar("Answer")


@dataclass(slots=True)
class Asker:
    """Holds the scheduler, and counts what it does wrong.

    Attributes:
        scheduler: Who decides.
        decision_seconds: Real time of each question.
        num_wrong: How many answers could not be carried out.
        wrong: What was wrong with the first of them.
    """

    scheduler: Scheduler
    decision_seconds: list[float] = field(default_factory=list)
    num_wrong: int = 0
    wrong: str = ""
    _observer: Observes | None = None
    _preempts: Preempts | None = None
    _admits: Admits | None = None

    def __post_init__(self) -> None:
        # asked once: checking for a protocol takes longer than many a decision
        self._observer = self.scheduler if isinstance(self.scheduler, Observes) else None
        self._preempts = self.scheduler if isinstance(self.scheduler, Preempts) else None
        self._admits = self.scheduler if isinstance(self.scheduler, Admits) else None

    @property
    def preempts(self) -> bool:
        """The scheduler may end turns early."""
        return self._preempts is not None

    @property
    def admits(self) -> bool:
        """The scheduler may refuse units."""
        return self._admits is not None

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        """Ask who runs next; a wrong answer is counted, and decided by first come, first served."""
        grants = self._ask(
            lambda: self.scheduler.select(now, ready, slots),
            lambda answer: wrong_grant(answer, ready, slots),
        )
        return FirstComeFirstServed().select(now, ready, slots) if grants is None else grants

    def victims(
        self, now: float, running: Sequence[JobView], wanted: Sequence[JobView], slots: Sequence[SlotView]
    ) -> list[str]:
        """Ask whose turn is to end for the sake of others; a wrong answer is counted, and nobody's ends."""
        preempts = self._preempts
        if preempts is None or not running:
            return []
        victims = self._ask(
            lambda: preempts.victims(now, running, wanted, slots), lambda answer: wrong_victims(answer, running, wanted)
        )
        return victims or []

    def refusal(self, now: float, unit: JobView, accepted: Sequence[JobView], slots: Sequence[SlotView]) -> str | None:
        """Ask whether a unit is accepted: None, or why not."""
        admits = self._admits
        return None if admits is None else self._ask(lambda: admits.refusal(now, unit, accepted, slots), lambda answer: None)

    def tell(self, event: Event) -> None:
        """Tell the scheduler what happened."""
        if self._observer is None:
            return
        try:
            self._observer.on_event(event)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            self._note_wrong(f"{type(error).__name__}: {error}")

    def _ask(self, question: Callable[[], Answer], problem: Callable[[Answer], str | None]) -> Answer | None:
        began = perf_counter()
        answer = None
        try:
            answer = question()
            self.decision_seconds.append(perf_counter() - began)
            wrong = problem(answer)
        except Exception as error:  # noqa: BLE001 - it may be a plug-in
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            return answer
        self._note_wrong(wrong)
        return None

    def _note_wrong(self, wrong: str) -> None:
        self.num_wrong += 1
        self.wrong = self.wrong or wrong
