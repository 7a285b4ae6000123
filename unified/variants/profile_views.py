"""What is shown of profiling: lines, JSON lines, or a progress bar on a terminal; and the table of what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from serving.profiles import Known, Profile
from serving.profiling import ProfileProgress, Stage
from serving.records import Family
from unified.columns import fitting, natural
from unified.fusing.views import plain_table
from unified.listeners import json_line
from unified.live_view import LiveView
from unified.quantities import MISSING, bytes_text, count_text, plural, seconds_text
from unified.terminal import LineView

Tell = Callable[[ProfileProgress], None]
_DOING = {Stage.SCORES: "scoring", Stage.LOADING: "timing loads", Stage.INFERENCE: "timing inference"}
_LEFT = ("variant", "id", "tasks", "source", "")
_LEFT_OUT_FIRST = (
    "size",
    "source",
    "parameters",
    "cold load",
    "FLOPs gone",
    "id",
    "p95",
    "warm load",
    "FLOPs",
    "ratio",
    "tasks",
)


def profile_lines(stream: TextIO, *, as_json: bool) -> LineView[ProfileProgress]:
    """Return what writes a line when a stage begins, or every event as a line of JSON."""
    if as_json:
        return LineView(stream, lambda event: [json_line(progress_to_json(event))])
    return LineView(stream, progress_lines)


def progress_to_json(event: ProfileProgress) -> dict[str, Any]:
    """Return an event as plain JSON.

    >>> progress_to_json(ProfileProgress(stage=Stage.SCORES, done=3, total=40))
    {'event': 'ProfileProgress', 'stage': 'scores', 'done': 3, 'total': 40}
    """
    return {"event": "ProfileProgress", "stage": str(event.stage), "done": event.done, "total": event.total}


def progress_lines(event: ProfileProgress) -> list[str]:
    """Return what people are told when a stage begins.

    >>> progress_lines(ProfileProgress(stage=Stage.SCORES, done=0, total=40))
    ['scoring 40 variants']
    >>> progress_lines(ProfileProgress(stage=Stage.SCORES, done=1, total=40))
    []
    """
    return [] if event.done else [f"{_DOING[event.stage]} {_amount(event)}"]


class ProfileLive(LiveView):
    """Shows how far a profiling run is.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._last: ProfileProgress | None = None
        super().__init__(console, by_itself=False)  # a thread that draws would disturb what is measured

    def __call__(self, event: ProfileProgress) -> None:
        """Draw how far it is."""
        self._last = event
        self.redraw()

    def drawn(self) -> RenderableType:
        """Return what is shown now."""
        seconds = seconds_text(self.seconds)
        if self._last is None:
            return Text(f"reading … {seconds}")
        return Group(
            Text(f"{_DOING[self._last.stage]} {_amount(self._last)} … {seconds}"),
            ProgressBar(total=self._last.total, completed=self._last.done, width=40),
        )


def known_table(family: Family, known: Sequence[Known], width: int) -> RenderableType:
    """Return a line for each variant, the fastest first, those without a profile last.

    Args:
        family: Theirs.
        known: The variants.
        width: Columns of the screen; what it has no room for is left out.
    """
    lines = [_cells(family, each) for each in sorted(known, key=_place)]
    titles = list(lines[0]) if lines else ["variant"]
    shown = fitting(natural(titles, lines), width, _LEFT_OUT_FIRST)
    table = plain_table(*shown)
    for title, column in zip(shown, table.columns, strict=True):
        column.justify = "left" if title in _LEFT else "right"
    for line in lines:
        table.add_row(*(line[title] for title in shown))
    return table


def known_to_json(family: Family, hardware: str, known: Sequence[Known]) -> dict[str, Any]:
    """Return what is known of variants as plain JSON."""
    return {
        "family": family.to_json(),
        "hardware": hardware,
        "variants": [
            {
                **each.variant.to_json(),
                "scores": each.scores,
                "problem": each.problem,
                "profile": None if each.profile is None else each.profile.to_json(),
            }
            for each in sorted(known, key=_place)
        ],
    }


def _place(known: Known) -> tuple[bool, float]:
    return known.profile is None, known.profile.infer[0].p50_ms if known.profile else 0.0


def _cells(family: Family, known: Known) -> dict[str, Text]:
    variant, profile, scores = known.variant, known.profile, known.scores or {}
    gone = variant.achieved.get("flops")
    texts = {
        "variant": variant.name,
        "id": variant.id,
        "tasks": ", ".join(variant.tasks),
        "source": str(variant.source),
        "ratio": f"{variant.ratio:.0%}",
        "FLOPs gone": MISSING if gone is None else f"{gone:.0%}",
        "parameters": count_text(variant.num_parameters),
        "FLOPs": count_text(variant.flops),
        "size": bytes_text(variant.num_bytes),
    }
    latencies = _latencies(profile)
    for task in family.task_names:
        title = f"{task} score" if task in (*texts, *latencies) else task
        texts[title] = f"{scores[task]:.2%}" if task in scores else MISSING
    texts |= latencies | {
        "": f"rejected: {known.problem}" if known.problem else "disturbed" if profile and profile.is_suspect else "",
    }
    return {title: Text(text) for title, text in texts.items()}


def _latencies(profile: Profile | None) -> dict[str, str]:
    if profile is None:
        return dict.fromkeys(("p50", "p95", "warm load", "cold load"), MISSING)
    return {
        "p50": _milliseconds(profile.infer[0].p50_ms),
        "p95": _milliseconds(profile.infer[0].p95_ms),
        "warm load": _milliseconds(profile.load_warm_ms),
        "cold load": _milliseconds(profile.load_cold_ms),
    }


def _milliseconds(value: float) -> str:
    """Show a latency; three digits.

    >>> _milliseconds(0.1234), _milliseconds(12.345), _milliseconds(1234.5)
    ('0.123 ms', '12.3 ms', '1234 ms')
    """
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def _amount(event: ProfileProgress) -> str:
    if event.stage is Stage.INFERENCE:
        return f"for at most {seconds_text(event.total)}"
    return plural(int(event.total), "variant")
