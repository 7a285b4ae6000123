"""``unified doctor``: prints what :mod:`unified.service.doctor_checks` finds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import RenderableType
from rich.text import Text

from unified.quantities import plural
from unified.queue.faults import CRASH_POINTS
from unified.service.doctor_checks import Check, examine
from unified.service.queue_output import EXIT_DONE, EXIT_ERROR, Output
from unified.service.queue_tables import cell, facts_table, plain_table

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(options: argparse.Namespace, out: Output) -> int:
    """Print what is well and what is not, and return the exit code: 1 if something fails."""
    if options.crash_points:
        return _crash_points(out)
    checks = list(examine(options.root))
    if out.as_json:
        out.document({"root": str(options.root), "checks": [asdict(check) for check in checks], "is_well": _is_well(checks)})
    elif out.is_quiet:
        for check in checks:
            if check.level != "ok":
                out.line(check.name)
    else:
        out.table(_table(checks))
    return EXIT_DONE if _is_well(checks) else EXIT_ERROR


def _is_well(checks: Sequence[Check]) -> bool:
    return all(check.level != "fail" for check in checks)


def _crash_points(out: Output) -> int:
    if out.as_json:
        out.document({"crash_points": [{"name": name, "where": where} for name, where in CRASH_POINTS.items()]})
    elif out.is_quiet:
        for name in CRASH_POINTS:
            out.line(name)
    else:
        out.table(facts_table(CRASH_POINTS))
        out.message(plural(len(CRASH_POINTS), "crash point"))
    return EXIT_DONE


def _table(checks: Sequence[Check]) -> RenderableType:
    table = plain_table()
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        text = f"{check.text}; {check.remedy}" if check.remedy else check.text
        table.add_row(Text(check.level, style=_STYLES[check.level]), cell(check.name), cell(text))
    return table
