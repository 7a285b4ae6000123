"""What a simulated job is: a frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True, kw_only=True)
class SimJob:
    """One job of a workload.

    Attributes:
        id: Its name, of one job only.
        submit_time: When it is handed in, in seconds.
        seconds: The slot time that it takes, alone on a slot.
        user: Whose it is.
        priority: Lower runs earlier.
        weight: Its share against others of weight 1.
        deadline: When it should be done, on the clock of ``submit_time``; None if that does not matter.
        is_deadline_soft: The deadline is a wish.
        num_epochs: The epochs, of equal length, that its time consists of.
        steps_total: The steps, of equal length, that its time consists of; None: so many that they do not matter.
        num_parameters: Size of its model.
        kind: What it is, such as the name of its model, for how fast it is beside another.
        estimate_seconds: What policies are told of ``seconds``, and nothing better; None: they know the time of its steps.
    """

    id: str
    submit_time: float
    seconds: float
    user: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline: float | None = None
    is_deadline_soft: bool = False
    num_epochs: int = 1
    steps_total: int | None = None
    num_parameters: int = 0
    kind: str = ""
    estimate_seconds: float | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.submit_time) and isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(
                f"job {self.id!r}: expected a finite submit time and a finite length of at least 0 s, "
                f"got {self.submit_time!r} and {self.seconds!r}"
            )
        if self.num_epochs < 1 or (self.steps_total is not None and self.steps_total < 1):
            raise ValueError(
                f"job {self.id!r}: expected at least one epoch and one step, got {self.num_epochs} and {self.steps_total}"
            )
