"""What becomes of a merge's events: plain lines, JSON lines, or a live view on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fusion.merging.progress import AlphaTried, Event, Finished, RoundEnded, StageBegan, Started
from fusion.merging.records import joined, plain
from unified.fusing.views import plain_table
from unified.listeners import json_line
from unified.live_view import LiveView
from unified.quantities import count_text, plural, seconds_text
from unified.terminal import LineView

Listener = Callable[[Event], None]
_NUM_LAST = 6


def merge_lines(stream: TextIO, *, as_json: bool) -> LineView[Event]:
    """Return what writes events as lines.

    Args:
        stream: Where to.
        as_json: Every event as one line of strict JSON: ``{"event": "RoundEnded", "scheme": "PAM", …}``.
    """
    if as_json:
        return LineView(stream, lambda event: [json_line(merge_event_to_json(event))])
    return LineView(stream, event_lines)


class MergeLive(LiveView):
    """Shows the stage that a merge is in, the alphas tried and the last rounds of pruning.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._stage: StageBegan | None = None
        self._alphas: list[AlphaTried] = []
        self._last: list[RoundEnded] = []
        super().__init__(console)

    def __call__(self, event: Event) -> None:
        """Take note of ``event``."""
        match event:
            case StageBegan():
                self._stage, self._last = event, []
            case AlphaTried():
                self._alphas.append(event)
            case RoundEnded():
                self._last = [*self._last, event][-_NUM_LAST:]
            case Started() | Finished():
                pass

    def drawn(self) -> RenderableType:
        """Return what is shown now."""
        seconds = seconds_text(self.seconds)
        if self._stage is None:
            return Text(f"reading the models and measuring what neurons tell … {seconds}")
        parts: list[RenderableType] = [
            Text(f"{self._stage.what} … {seconds}"),
            ProgressBar(total=self._stage.num_stages, completed=self._stage.number - 1, width=40),
        ]
        if self._alphas:
            parts.append(_alphas_table(self._alphas))
        if self._last:
            parts.append(_rounds_table(self._last))
        return Group(*parts)


def merge_event_to_json(event: Event) -> dict[str, Any]:
    """Return ``event`` as plain JSON data: its kind under ``event``, then its fields; combinations are ``"A+B"``.

    >>> merge_event_to_json(Finished(alpha=float("inf"), is_feasible=True, seconds=1.5))
    {'event': 'Finished', 'alpha': None, 'is_feasible': True, 'seconds': 1.5}
    """
    return {"event": type(event).__name__} | plain(event)


def event_lines(event: Event) -> list[str]:
    """Return what people are told of an event, a line or some."""
    match event:
        case Started():
            return _started_lines(event)
        case StageBegan():
            return [f"{event.seconds:8.1f} s  {event.what} ({event.number} of {event.num_stages})"]
        case RoundEnded():
            whose = f"{event.scheme} {joined(event.network)}"
            fate = "" if event.is_feasible else "; not good enough" if event.number else "; not good enough yet"
            costs = count_text(event.flops[event.network], "FLOP")
            return [f"{event.seconds:8.1f} s  {whose} round {event.number}: {costs}, {scores_text(event.scores)}{fate}"]
        case AlphaTried():
            costs = ", ".join(f"{joined(names)} {count_text(flops, 'FLOP')}" for names, flops in event.flops.items())
            fate = "" if event.is_feasible else "; not good enough"
            return [f"{event.seconds:8.1f} s  alpha {event.alpha:g}: {costs}, {scores_text(event.scores)}{fate}"]
        case Finished():
            fate = "every task is good enough" if event.is_feasible else "not every task is good enough"
            return [f"{event.seconds:8.1f} s  done with alpha {event.alpha:g}: {fate}"]


def scores_text(scores: dict[str, float] | Any) -> str:
    """Show scores by task.

    >>> scores_text({"digit": 0.97512, "parity": 0.985})
    'digit 97.51%, parity 98.50%'
    """
    return ", ".join(f"{task} {score:.2%}" for task, score in scores.items())


def _started_lines(event: Started) -> list[str]:
    first = f"{plural(len(event.tasks), 'model')}: {scores_text(event.scores)}; together {count_text(event.flops, 'FLOP')}"
    layers = f"{plural(len(event.layers), 'layer')} can be shared: {', '.join(event.layers)}"
    return [first, f"floors: {scores_text(event.floors)}", layers, *(f"note: {note}" for note in event.notes)]


def _alphas_table(tried: list[AlphaTried]) -> Table:
    combinations = list(tried[0].flops)
    table = plain_table("alpha", *(f"FLOPs {joined(names)}" for names in combinations[-4:]), "worst score", "")
    for event in tried:
        costs = (count_text(event.flops[names]) for names in combinations[-4:])
        fate = Text("good enough", style="green") if event.is_feasible else Text("not good enough", style="red")
        table.add_row(f"{event.alpha:g}", *costs, f"{min(event.scores.values()):.2%}", fate)
    return table


def _rounds_table(rounds: list[RoundEnded]) -> Table:
    table = plain_table("round", "network", "FLOPs", "scores", "")
    for event in rounds:
        fate = Text("kept", style="green") if event.is_feasible else Text("undone" if event.number else "goes on", style="red")
        costs = count_text(event.flops[event.network])
        table.add_row(str(event.number), f"{event.scheme} {joined(event.network)}", costs, scores_text(event.scores), fate)
    return table
