"""What becomes of a search's events: plain lines, JSON lines, or a live view on a terminal. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fusion.search.progress import CandidateDone, Event, Finished, Improved, Started
from unified.listeners import json_line
from unified.live_view import LiveView
from unified.quantities import MISSING, bytes_text, count_text, plural, seconds_text, value_text
from unified.summary import finite
from unified.terminal import LineView

Listener = Callable[[Event], None]
_NUM_LAST = 6
_STATUS_STYLES = {"accepted": "green", "failed": "red", "unknown": "yellow"}


def fuse_lines(stream: TextIO, metric: str, *, as_json: bool) -> LineView[Event]:
    """Return what writes events as lines.

    Args:
        stream: Where to.
        metric: What the search makes small.
        as_json: Every event as one line of strict JSON: ``{"event": "CandidateDone", "number": 3, …}``.
    """
    if as_json:
        return LineView(stream, lambda event: [json_line(fuse_event_to_json(event))])
    return LineView(stream, lambda event: event_lines(event, metric))


class FuseLive(LiveView):
    """Shows how far a search is, the best so far for each threshold, and the last candidates.

    Args:
        console: A terminal.
        metric: What the search makes small.
        num_candidates: After how many it ends, or None.
        budget_seconds: After how long it ends, or None.
    """

    def __init__(self, console: Console, metric: str, *, num_candidates: int | None, budget_seconds: float | None) -> None:
        self._metric, self._num_candidates, self._budget_seconds = metric, num_candidates, budget_seconds
        self._started: Started | None = None
        self._last: list[CandidateDone] = []
        self._num_done = 0
        self._improved: dict[float, Improved] = {}
        super().__init__(console)

    def __call__(self, event: Event) -> None:
        """Take note of ``event``."""
        match event:
            case Started():
                self._started = event
            case CandidateDone():
                self._num_done += 1
                self._last = [*self._last, event][-_NUM_LAST:]
            case Improved():
                self._improved[event.threshold] = event
            case Finished():
                pass

    def drawn(self) -> RenderableType:
        """Return what is shown now."""
        seconds = self.seconds
        parts: list[RenderableType] = [self._head(seconds)]
        if self._started is not None:
            parts.append(ProgressBar(total=1.0, completed=self._share(seconds), width=40))
            parts.append(self._best_table())
        if self._last:
            parts.append(_candidates_table(self._last))
        return Group(*parts)

    def _head(self, seconds: float) -> Text:
        if self._started is None:
            return Text(f"reading and measuring the models … {seconds_text(seconds)}")
        limit = f" of {self._num_candidates}" if self._num_candidates else ""
        time_limit = f" of {seconds_text(self._budget_seconds)}" if self._budget_seconds else ""
        return Text(f"{plural(self._num_done, 'candidate')}{limit} in {seconds_text(seconds)}{time_limit}")

    def _share(self, seconds: float) -> float:
        shares = [0.0]
        if self._num_candidates:
            shares.append(self._num_done / self._num_candidates)
        if self._budget_seconds:
            shares.append(seconds / self._budget_seconds)
        return min(1.0, max(shares))

    def _best_table(self) -> Table:
        table = plain_table("drop allowed", "best speedup", "its drop", "found after")
        for threshold, best in sorted(self._improved.items()):
            table.add_row(value_text(threshold), times_text(best.speedup), drop_text(best.drop), seconds_text(best.seconds))
        if not self._improved:
            table.add_row(MISSING, "1.00x", MISSING, MISSING)
        return table


def fuse_event_to_json(event: Event) -> dict[str, Any]:
    """Return ``event`` as plain JSON data: its kind under ``event``, then its fields; NaN is null.

    >>> fuse_event_to_json(Finished(why="done", num_candidates=3, seconds=1.5))
    {'event': 'Finished', 'why': 'done', 'num_candidates': 3, 'seconds': 1.5}
    """
    content = {field.name: getattr(event, field.name) for field in fields(event)}
    for name, value in content.items():
        if isinstance(value, dict):
            content[name] = {str(key): item for key, item in value.items()}
    return {"event": type(event).__name__} | finite(content)


def event_lines(event: Event, metric: str) -> list[str]:
    """Return what people are told of an event, a line or some."""
    match event:
        case Started():
            return _started_lines(event, metric)
        case CandidateDone():
            return [f"{event.seconds:8.1f} s  {_candidate_text(event)}"]
        case Improved():
            best = f"best within {value_text(event.threshold)}: {times_text(event.speedup)}, drop {drop_text(event.drop)}"
            return [f"{event.seconds:8.1f} s  {best}"]
        case Finished():
            return [f"{event.seconds:8.1f} s  {event.why}: {plural(event.num_candidates, 'candidate')}"]
    return []


def plain_table(*titles: str) -> Table:
    """Return a table as all of ours look, numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table


def times_text(speedup: float) -> str:
    """Show a speedup.

    >>> times_text(1.534), times_text(float("nan"))
    ('1.53x', '–')
    """
    return f"{speedup:.2f}x" if math.isfinite(speedup) else MISSING


def drop_text(drop: float) -> str:
    """Show a drop of a score with four decimals.

    >>> drop_text(0.0123), drop_text(-0.002), drop_text(float("nan"))
    ('0.0123', '-0.0020', '–')
    """
    return f"{drop:.4f}" if math.isfinite(drop) else MISSING


def cost_text(cost: float, metric: str) -> str:
    """Show a cost in the unit of its metric.

    >>> cost_text(0.00153, "latency"), cost_text(2.5e6, "flops"), cost_text(61706, "parameters")
    ('1.53 ms', '2.5 MFLOP', '61.7 k')
    """
    if metric == "latency":
        return f"{cost * 1e3:.3g} ms"
    if metric == "memory":
        return bytes_text(cost)
    return count_text(cost, "FLOP" if metric == "flops" else "")


def _started_lines(event: Started, metric: str) -> list[str]:
    blocks = ", ".join(
        f"{task} ({plural(count, 'block')}, score {value_text(event.scores.get(task, math.nan))})"
        for task, count in zip(event.tasks, event.num_blocks, strict=True)
    )
    first = f"{plural(len(event.tasks), 'model')}: {blocks}; {plural(event.num_pairs, 'pair')} of blocks may share an input"
    return [first, f"together {cost_text(event.original_cost, metric)}", *(f"note: {note}" for note in event.notes)]


def _candidate_text(event: CandidateDone) -> str:
    best = ", ".join(f"{times_text(value)} within {value_text(key)}" for key, value in sorted(event.best.items()))
    judged = f"{event.status}: {times_text(event.speedup)}, drop {drop_text(event.drop)}"
    return f"candidate {event.number} {judged} after {event.epochs:g} epochs" + (f"; best {best}" if best else "")


def _candidates_table(candidates: list[CandidateDone]) -> Table:
    table = plain_table("candidate", "speedup", "drop", "epochs", "")
    for event in candidates:
        status = Text(event.status, style=_STATUS_STYLES.get(event.status, ""))
        table.add_row(str(event.number), times_text(event.speedup), drop_text(event.drop), f"{event.epochs:g}", status)
    return table
