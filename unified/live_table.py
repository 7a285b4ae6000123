"""The live view on a terminal: a line with a progress bar per job, redrawn by a thread that keeps under 1 % of a core.

The workers train on the same cores, so events only update the run's summary; this thread reads it four times a second, or
less often where drawing is slow: it rests a hundred times as long as it drew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.segment import Segment
from rich.style import Style

from unified.job_state import JobState
from unified.progress import JobProgress
from unified.quantities import MISSING, bytes_text, clock_text, plural, stack_text, value_text
from unified.summary import Summary

REFRESH_SECONDS = 0.25
MAX_SHARE = 0.01  #: of one core
BAR_WIDTH = 20
LOSSES = frozenset({"train_loss", "test_loss"})

PLAIN, FAINT, BOLD = Style(), Style(dim=True), Style(bold=True)
STATE_STYLES = {
    JobState.QUEUED: FAINT,
    JobState.RUNNING: Style(color="cyan"),
    JobState.PAUSED: Style(color="yellow"),
    JobState.FINISHED: Style(color="green"),
    JobState.FAILED: Style(color="red", bold=True),
    JobState.CANCELLED: Style(color="yellow", dim=True),
}
#: Who is shown when the terminal has too few lines for all.
URGENCY = {
    JobState.RUNNING: 0,
    JobState.FAILED: 1,
    JobState.PAUSED: 2,
    JobState.QUEUED: 3,
    JobState.FINISHED: 4,
    JobState.CANCELLED: 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table. The ones with the lowest ``rank`` go first where the terminal is narrow."""

    title: str
    rank: int
    max_width: int = 24
    is_number: bool = False


COLUMNS = (
    Column(title="job", rank=9, max_width=32),
    Column(title="user", rank=0, max_width=14),
    Column(title="state", rank=5),
    Column(title="slot", rank=2, is_number=True),
    Column(title="epoch", rank=4, is_number=True),
    Column(title="", rank=8, max_width=BAR_WIDTH),
    Column(title="step", rank=1, is_number=True),
    Column(title="loss", rank=6, is_number=True),
    Column(title="metric", rank=3, max_width=28),
    Column(title="ETA", rank=7, is_number=True),
)
BAR = 5  #: the index of the progress bar in ``COLUMNS``


class LiveTable:
    """A context manager that shows ``summary`` on ``console`` while it is open, and leaves nothing behind.

    Args:
        console: A terminal.
        summary: What to show; something else keeps it up to date.
    """

    def __init__(self, console: Console, summary: Summary) -> None:
        self._summary = summary
        self._live = Live(self, console=console, auto_refresh=False, transient=True)
        self._clock = RunClock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="live-table", daemon=True)

    def __enter__(self) -> LiveTable:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Draw the present state."""
        bar = "#-" if options.ascii_only else "━─"
        height = (options.height or console.height) - 1
        return draw(self._summary, self._clock.read(self._summary), options.max_width, height, bar)

    def _refresh(self) -> None:
        rest = 0.0
        while not self._done.wait(rest):
            begin = time.thread_time()
            self._live.refresh()
            rest = max(REFRESH_SECONDS, (time.thread_time() - begin) / MAX_SHARE)


class RunClock:
    """Goes on from the time of the latest event: the engine's clock as seen from here."""

    def __init__(self) -> None:
        self._num_events = -1
        self._offset = 0.0

    def read(self, summary: Summary) -> float:
        """Return the seconds since the run began."""
        here = time.monotonic()
        if summary.num_events != self._num_events:
            # the event may be a moment old, so this lags by at most one refresh; it never runs backwards
            self._offset = max(self._offset, summary.now - here) if self._num_events >= 0 else summary.now - here
            self._num_events = summary.num_events
        return here + self._offset


def draw(summary: Summary, now: float, width: int, height: int, bar: str = "━─") -> Iterator[Segment]:
    """Yield the table at ``now``, no wider and no higher than the terminal.

    Args:
        summary: What to show.
        now: Seconds since the run began.
        width: Columns of the terminal.
        height: Lines of the terminal.
        bar: The characters of a full and of an empty piece of a progress bar.
    """
    jobs = list(summary.jobs.values())
    yield Segment(_headline(summary, jobs, now)[:width], BOLD)
    yield Segment.line()
    stacks = summary.stacks()[: max(0, (height - 4) // 4)]
    for names in stacks:
        yield Segment(stack_text(names, summary.jobs[names[0]].stack_speedup)[:width], STATE_STYLES[JobState.RUNNING])
        yield Segment.line()
    shown = _most_urgent(jobs, max(1, height - 3 - len(stacks)))
    rows = [_cells(job, now) for job in shown]
    titles = [column.title for column in COLUMNS]
    widths = _fit([titles, *rows], width)
    if rows:
        yield from _line(titles, widths, [FAINT] * len(COLUMNS))
    for job, row in zip(shown, rows, strict=True):
        yield from _line(row, widths, _styles(job), job=job, bar=bar)
    if len(shown) < len(jobs):
        yield Segment(_rest(jobs, shown)[:width], FAINT)
        yield Segment.line()


def _headline(summary: Summary, jobs: Sequence[JobProgress], now: float) -> str:
    if not jobs:
        return f"unified  {clock_text(now)}  reading the jobs …"
    ended = sum(job.ended_at is not None for job in jobs)
    parts = ["unified", clock_text(now), f"{ended} of {plural(len(jobs), 'job')} done"]
    failed = summary.count(JobState.FAILED)
    if failed:
        parts.append(f"{failed} failed")
    if summary.started:
        parts += [summary.started.scheduler, plural(len(summary.started.slots), "slot")]
    if summary.bytes_in_use is not None:
        parts.append(bytes_text(summary.bytes_in_use))
    return "  ".join(parts)


def _most_urgent(jobs: Sequence[JobProgress], limit: int) -> list[JobProgress]:
    """Return at most ``limit`` jobs, in order of submission: those first left out are done or still wait."""
    if len(jobs) <= limit:
        return list(jobs)
    order = sorted(range(len(jobs)), key=lambda index: (URGENCY[jobs[index].state], index))
    return [jobs[index] for index in sorted(order[: max(1, limit - 1)])]


def _rest(jobs: Sequence[JobProgress], shown: Sequence[JobProgress]) -> str:
    names = {job.name for job in shown}
    states = [job.state for job in jobs if job.name not in names]
    parts = [f"{states.count(state)} {state}" for state in JobState if state in states]
    return "… and " + ", ".join(parts)


def _cells(job: JobProgress, now: float) -> list[str]:
    """Return the texts of a job's row; the bar's is blank."""
    eta = job.remaining_seconds(now) if job.ended_at is None else None
    metric = next(((name, value) for name, value in job.metrics.items() if name not in LOSSES), None)
    return [
        job.name,
        job.user or MISSING,
        f"{job.state}",
        str(job.slots[-1]) if job.slots else MISSING,
        f"{job.epoch}/{job.num_epochs}",
        " " * BAR_WIDTH,
        f"{job.step}/{job.num_steps}",
        value_text(job.loss),
        f"{metric[0]} {value_text(metric[1])}" if metric else MISSING,
        clock_text(eta),
    ]


def _styles(job: JobProgress) -> list[Style]:
    styles = [PLAIN] * len(COLUMNS)
    styles[0] = BOLD if job.in_turn_since is not None else PLAIN
    styles[2] = STATE_STYLES[job.state]
    return styles


def _fit(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the columns' widths, 0 for those left out because the terminal is too narrow."""
    widths = [min(column.max_width, max(len(row[index]) for row in rows)) for index, column in enumerate(COLUMNS)]
    for _, index in sorted((column.rank, index) for index, column in enumerate(COLUMNS)):
        if sum(widths) + 2 * sum(map(bool, widths)) <= width:
            break
        widths[index] = 0 if index else min(widths[0], max(1, width - 2))
    return widths


def _line(
    texts: Sequence[str],
    widths: Sequence[int],
    styles: Sequence[Style],
    *,
    job: JobProgress | None = None,
    bar: str = "",
) -> Iterator[Segment]:
    """Yield one line: texts cut or padded to the widths, neighbours of one style in one segment; the bar for ``job``."""
    pending, style = "", PLAIN
    for index, width in enumerate(widths):
        if not width:
            continue
        if index == BAR and job is not None:
            yield Segment(pending, style)
            full = _num_full(job)
            yield Segment(bar[0] * full, STATE_STYLES[job.state])
            yield Segment(bar[1] * (BAR_WIDTH - full) + "  ", FAINT)
            pending = ""
            continue
        if styles[index] is not style:
            yield Segment(pending, style)
            pending, style = "", styles[index]
        pending += _fill(texts[index], width, is_number=COLUMNS[index].is_number) + "  "
    yield Segment(pending.rstrip(), style)
    yield Segment.line()


def _num_full(job: JobProgress) -> int:
    if job.state is JobState.FINISHED:
        return BAR_WIDTH
    return min(BAR_WIDTH, BAR_WIDTH * job.step // max(1, job.num_steps))


def _fill(text: str, width: int, *, is_number: bool) -> str:
    if len(text) > width:
        return text[: width - 1] + "…"
    return text.rjust(width) if is_number else text.ljust(width)
