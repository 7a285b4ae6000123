"""The verdict of a validation, stage by stage, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from unified.quantities import MISSING, seconds_text
from unified.validation import StageOutcome

_VERDICTS = {True: ("passed", "green"), False: ("refused", "bold red"), None: (MISSING, "dim")}


def stage_table(stages: Sequence[StageOutcome]) -> RenderableType:
    """Return a line per stage: number, name, verdict, what was found, how long it took; a dash where it was not reached."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("#", justify="right")
    for title in ("stage", "verdict"):
        table.add_column(title, no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for outcome in stages:
        verdict, style = _VERDICTS[outcome.passed]
        table.add_row(
            str(outcome.stage.value),
            outcome.stage.name.lower(),
            Text(verdict, style=style),
            Text(outcome.found),
            seconds_text(outcome.seconds),
        )
    return table
