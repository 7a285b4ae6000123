"""What becomes of the events of building: plain lines, JSON lines, or progress bars on a terminal; and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from serving.progress import Event, LeftOut, NetworkDone, Stage, StageBegan, Stored
from serving.records import Source, Variant
from unified.fusing.views import plain_table
from unified.listeners import json_line
from unified.live_view import LiveView
from unified.quantities import MISSING, bytes_text, count_text, plural, seconds_text, value_text
from unified.summary import finite
from unified.terminal import LineView

_DOING = {Stage.TRAIN: "training", Stage.PRUNE: "pruning", Stage.FINE_TUNE: "fine-tuning"}
_NUM_LAST = 6


def build_lines(stream: TextIO, *, as_json: bool) -> LineView[Event]:
    """Return what writes events as lines.

    Args:
        stream: Where to.
        as_json: Every event as one line of strict JSON: ``{"event": "NetworkDone", "stage": "train", …}``.
    """
    if as_json:
        return LineView(stream, lambda event: [json_line(build_event_to_json(event))])
    return LineView(stream, event_lines)


class BuildLive(LiveView):
    """Shows how far the stage is that a build is in, and what was done last.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._stage: StageBegan | None = None
        self._num_done = 0
        self._last: list[str] = []
        super().__init__(console)

    def __call__(self, event: Event) -> None:
        """Take note of ``event``."""
        match event:
            case StageBegan():
                self._stage, self._num_done = event, 0
            case NetworkDone() | LeftOut():
                self._num_done += 1
                self._last = [*self._last, *event_lines(event)][-_NUM_LAST:]
            case Stored():
                pass

    def drawn(self) -> RenderableType:
        """Return what is shown now."""
        seconds = seconds_text(self.seconds)
        if self._stage is None:
            return Text(f"reading the network and the data … {seconds}")
        total = len(self._stage.names)
        return Group(
            Text(f"{_DOING[self._stage.stage]}: {self._num_done} of {plural(total, 'network')} … {seconds}"),
            ProgressBar(total=total, completed=self._num_done, width=40),
            *map(Text, self._last),
        )


def build_event_to_json(event: Event) -> dict[str, Any]:
    """Return ``event`` as plain JSON data: its kind under ``event``, then its fields.

    >>> build_event_to_json(LeftOut(name="all-p90", reason="its loss is nan"))
    {'event': 'LeftOut', 'name': 'all-p90', 'reason': 'its loss is nan'}
    """
    kind = type(event).__name__
    match event:
        case StageBegan():
            return {"event": kind, "stage": str(event.stage), "names": list(event.names)}
        case NetworkDone():
            shown = {"stage": str(event.stage), "name": event.name, "seconds": event.seconds, "loss": event.loss}
            return {"event": kind, **finite(shown)}
        case LeftOut():
            return {"event": kind, "name": event.name, "reason": event.reason}
        case Stored():
            return {"event": kind, "variant": finite(event.variant.to_json())}


def event_lines(event: Event) -> list[str]:
    """Return what people are told of an event, a line or none.

    >>> event_lines(NetworkDone(stage=Stage.TRAIN, name="parent", seconds=2.5, loss=0.25))
    ['train parent: loss 0.25, 2.5 s']
    """
    match event:
        case StageBegan():
            return [f"{_DOING[event.stage]} {plural(len(event.names), 'network')}"]
        case NetworkDone():
            loss = f"loss {value_text(event.loss)}, " if event.loss == event.loss else ""
            return [f"{event.stage} {event.name}: {loss}{seconds_text(event.seconds)}"]
        case LeftOut():
            return [f"left out {event.name}: {' '.join(event.reason.split())}"]
        case Stored():
            return []


def variants_table(variants: Sequence[Variant]) -> RenderableType:
    """Return a line for each variant, by system, tasks and ratio."""
    table = plain_table("variant", "tasks", "source", "ratio", "channels gone", "FLOPs gone", "parameters", "FLOPs", "size")
    for column in table.columns[1:3]:
        column.justify = "left"
    for variant in sorted(variants, key=_place):
        gone = (f"{variant.achieved[what]:.0%}" if what in variant.achieved else MISSING for what in ("channels", "flops"))
        table.add_row(
            Text(variant.name),
            Text(", ".join(variant.tasks)),
            str(variant.source),
            f"{variant.ratio:.0%}",
            *gone,
            count_text(variant.num_parameters),
            count_text(variant.flops),
            bytes_text(variant.num_bytes),
        )
    return table


def _place(variant: Variant) -> tuple[bool, int, tuple[str, ...], float]:
    return variant.source is Source.SINGLE, -len(variant.tasks), variant.tasks, variant.ratio
