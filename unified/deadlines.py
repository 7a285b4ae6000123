"""Deadlines: which jobs a scheduler refuses for their sake, and which accepted ones come to be late. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schedulers import base
from unified.deciding import Decider
from unified.errors import Problem
from unified.events import DeadlineAtRisk, Event
from unified.job_state import ENDED, JobState
from unified.ledger import JobRecord, Ledger
from unified.quantities import seconds_text


def deadline_problems(
    decider: Decider, new: Sequence[JobRecord], accepted: Sequence[JobRecord], num_slots: int
) -> list[Problem]:
    """Return a problem for each new job that the scheduler refuses beside those accepted before it."""
    slots = [base.SlotView(id=index) for index in range(num_slots)]
    views = [record.view() for record in accepted if record.state not in ENDED]
    problems: list[Problem] = []
    for record in new:
        view = record.view()
        refusal = decider.refusal(view, views, slots)
        if refusal is None:
            views.append(view)
        else:
            age = seconds_text(view.age_seconds(decider.clock()))
            problems.append(
                Problem(
                    code="E-DEADLINE",
                    job=record.name,
                    field="deadline_seconds",
                    expected=f"what scheduler {decider.name} can keep",
                    given=refusal,
                    remedy=f'give it more time, counted from its submission ({age} ago), or say "deadline_kind": "soft"',
                )
            )
    return problems


def ineffective_deadline(decider: Decider, record: JobRecord) -> str | None:
    """Return a warning if a job has a deadline that the scheduler does not look at."""
    if record.submission.spec.deadline_seconds is None or "deadline" in decider.scheduler.needs:
        return None
    return f"job {record.name!r}: deadline_seconds has no effect: scheduler {decider.name} does not look at it; edf does"


@dataclass(slots=True, kw_only=True)
class DeadlineWatch:
    """Tells once of each job that will miss its deadline, by what is left of it if it trained from now on.

    Attributes:
        ledger: The jobs.
        clock: Seconds since the run began.
        emit: Told of those.
    """

    ledger: Ledger
    clock: Callable[[], float]
    emit: Callable[[Event], None]
    _told: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Look at all jobs that are to be done by some time."""
        now, present = self.clock(), set[str]()
        for record in self.ledger.all():
            present.add(record.name)
            if record.submission.spec.deadline_seconds is None or record.name in self._told or record.state in ENDED:
                continue
            view = record.view()
            assert view.deadline is not None, "it has one"
            predicted = now + (0.0 if record.is_returning else view.remaining_seconds or 0.0)
            if predicted > view.deadline and record.state is not JobState.CANCELLING:
                self._told.add(record.name)
                self.emit(DeadlineAtRisk(at=now, job=record.name, predicted=predicted, deadline=view.deadline))
        self._told &= present
