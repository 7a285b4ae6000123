"""What ``unified stack`` does: stacks files, shows how it goes, and ends with a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from unified.answering.api import stack
from unified.answering.session import Stacked, StackReport
from unified.fusing.views import cost_text, plain_table, times_text
from unified.listeners import json_line
from unified.quantities import count_text, plural
from unified.run_command import EXIT_DONE
from unified.summary import finite
from unified.terminal import can_redraw, line_writer, make_console, show

_BY_MEMBER = "member by member"
_MEASURED = "this is fastest for its shape, measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """The options of ``unified stack``; see its help."""

    models: tuple[Path, ...]
    out: Path
    one_input: bool = False
    batch_size: int | None = None
    device: str = "cpu"
    threads: int | None = None
    trust: bool = False
    as_json: bool = False


def stack_files(options: StackOptions) -> int:
    """Stack the models and return the exit code.

    Raises:
        InvalidSubmission: With everything that is wrong with the files.
        UnifiedError: If they cannot be stacked.
    """
    console = make_console()
    with _progress(console, is_silent=options.as_json) as tell:
        stacked = stack(
            list(options.models),
            one_input=options.one_input,
            out=options.out,
            batch_size=options.batch_size,
            device=options.device,
            threads=options.threads or "auto",
            trust=options.trust,
            progress=tell,
        )
    write = line_writer(sys.stdout)
    if options.as_json:
        write(json_line(finite({"members": list(stacked.names), **stacked.report.to_json(), "file": str(options.out)})))
        return EXIT_DONE
    show(console, stack_table(stacked.report))
    for line in end_lines(stacked, options.out):
        write(line)
    return EXIT_DONE


def stack_table(report: StackReport) -> RenderableType:
    """Return what came out, and below it what does not run once for all members."""
    table = plain_table("members", "parameters", "largest difference", "of the answers", "all at once", "one by one", "ratio")
    table.add_row(
        str(len(report.names)),
        f"{len(report.names)} x {count_text(report.parameters)}",
        f"{report.largest_difference:.2g}",
        f"{report.relative_difference:.2g}",
        cost_text(report.together.median_seconds, "latency"),
        cost_text(report.alone.median_seconds, "latency"),
        times_text(report.speedup),
    )
    rows = apart(report.ways)
    if not rows:
        return table
    ways = plain_table("operator", "times", "runs member by member, because")
    ways.columns[2].justify = "left"
    for name, count, why in rows:
        ways.add_row(name, str(count), why)
    return Group(table, Text(), ways)


def apart(ways: tuple[tuple[str, str, int], ...]) -> list[tuple[str, int, str]]:
    """Return (operator, how often, why) of what runs member by member.

    >>> apart((("conv2d", "loop", 2), ("conv2d", "grouped", 1), ("relu", "member by member: its input lies apart", 1)))
    [('conv2d', 2, 'this is fastest for its shape, measured'), ('relu', 1, 'its input lies apart')]
    """
    rows = []
    for name, way, count in ways:
        if way == "loop":
            rows.append((name, count, _MEASURED))
        elif way.startswith(_BY_MEMBER):
            rows.append((name, count, way.partition(": ")[2]))
    return rows


def end_lines(stacked: Stacked, out: Path) -> list[str]:
    """Return what is to be said below the table."""
    report = stacked.report
    form = "(batch, …), the same for all" if report.one_input else f"({len(report.names)}, batch, …), each member its own"
    size = "any batch size" if report.batch is None else f"a batch of {report.batch} only"
    return [
        *(f"note: {note}" for note in report.notes),
        f"median times with a batch of {report.rows} and {plural(report.threads, 'CPU thread')}; "
        "operators take the ways that were fastest with it",
        f"{out} takes {form}, {size}, and needs torch alone; {out.with_suffix('.json').name} names its members",
    ]


@contextmanager
def _progress(console: Console, *, is_silent: bool) -> Iterator[Callable[[str], None]]:
    """Give what tells people what is being done: in place on a terminal, line by line elsewhere."""
    if is_silent:
        yield lambda _: None
    elif can_redraw(console):
        with console.status("starting") as status:
            yield lambda text: status.update(f"{text} …")
    else:
        write, begin = line_writer(sys.stdout), time.monotonic()
        yield lambda text: write(f"{time.monotonic() - begin:8.1f} s  {text}")
