"""What a panel of the figures over the store compares."""

from __future__ import annotations

from dataclasses import dataclass

from serving.figures.drawing import Cell
from serving.mishits import Residency, Setting
from serving.queries import Budget
from serving.systems import System

Line = tuple[System, Budget]

#: Queries for all tasks: the single-task system as published, and with a limit split as is best for it.
TOGETHER: tuple[Line, ...] = (
    (System.A, Budget.OPTIMAL),
    (System.C, Budget.EQUAL),
    (System.C, Budget.OPTIMAL),
)
#: Queries for one task: there is nothing to split.
ALONE: tuple[Line, ...] = tuple((system, Budget.OPTIMAL) for system in System)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Queries for some tasks under one setting."""

    tasks: frozenset[str]
    setting: Setting

    @property
    def title(self) -> str:
        """Tasks, if it is one, and what is resident."""
        what = f"{next(iter(self.tasks))}, " if len(self.tasks) == 1 else ""
        return f"{what}{'all variants' if self.setting.residency is Residency.ALL else 'no variant'} resident"

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The first cells of each row: tasks and residency."""
        return "+".join(sorted(self.tasks)), str(self.setting.residency)
