"""Draws a timeline with matplotlib: a lane for each job on its slot, memory below. Slow to import: do it late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from unified.events import Event, JobCancelled, JobFailed, JobFinished
from unified.quantities import bytes_text, plural, seconds_text
from unified.timeline import NUM_COLUMNS, Ending, Lane, Timeline

#: Told apart with any colour vision: Okabe and Ito's without the yellow, too pale for bars, and two more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A51A3", "#7A5C3E")
GREY, FAINT, RED = "#555555", "#E3E6EA", "#C62828"
MAX_NAMED = 200
WIDTH_INCHES = 11.0
MARKS: dict[type[Event], tuple[str, str]] = {
    JobFinished: ("o", ""),
    JobFailed: ("X", RED),
    JobCancelled: ("s", GREY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the chart: a job on a slot, from ``begin`` to ``stop`` seconds.

    Attributes:
        lane: Its turns; None if it never had one.
        ending: How it ended, where this is the job's last slot.
    """

    job: str
    lane: Lane | None
    begin: float
    stop: float
    ending: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The rows of one slot, from ``top`` down."""

    label: str
    top: int
    rows: Sequence[Row]


def plot(timeline: Timeline, path: Path) -> None:
    """Draw ``timeline`` into the PNG ``path``."""
    bands = _bands(timeline)
    num_rows = sum(len(band.rows) for band in bands)
    row_inches = max(0.05, 0.26 - 0.0018 * max(0, num_rows - 12)) if num_rows <= MAX_NAMED else 6.0 / num_rows
    gantt_inches = min(40.0, max(0.45, num_rows * row_inches))
    memory_inches = 1.3 if timeline.memory else 0.0
    height = gantt_inches + memory_inches + 0.9
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if timeline.memory:
        gantt, memory = figure.subplots(2, 1, sharex=True, height_ratios=(gantt_inches, memory_inches))
        _draw_memory(memory, timeline)
    else:
        gantt = figure.subplots()
    _draw_gantt(gantt, timeline, bands, row_inches)
    bottom = memory if timeline.memory else gantt
    _label_time(bottom, timeline.end)
    figure.savefig(path)


def _bands(timeline: Timeline) -> list[Band]:
    """Lay the jobs out: a band per slot, a row per job in order of first turns; last, who had no turn."""
    last_lane: dict[str, Lane] = {}
    for lane in sorted(timeline.lanes.values(), key=lambda lane: lane.last_at):
        last_lane[lane.job] = lane
    bands: list[Band] = []
    top = 0
    for slot in sorted({slot for slot, _ in timeline.lanes}):
        lanes = sorted((lane for lane in timeline.lanes.values() if lane.slot == slot), key=lambda lane: lane.first_at)
        rows = [_row(timeline, lane.job, lane, is_last=last_lane[lane.job] is lane) for lane in lanes]
        label = timeline.slots[slot] if slot < len(timeline.slots) else f"slot {slot}"
        bands.append(Band(label=label.replace(": ", "\n"), top=top, rows=rows))
        top += len(rows)
    rows = [_row(timeline, job, None, is_last=True) for job in timeline.submitted if job not in last_lane]
    if rows:
        bands.append(Band(label="no turn", top=top, rows=rows))
    return bands


def _row(timeline: Timeline, job: str, lane: Lane | None, *, is_last: bool) -> Row:
    ending = timeline.endings.get(job) if is_last else None
    stop = ending.at if ending else timeline.end
    if lane is not None and not is_last:
        stop = lane.last_at
    begin = timeline.submitted.get(job, lane.first_at if lane else 0.0)
    return Row(job=job, lane=lane, begin=begin, stop=stop, ending=ending)


def _draw_gantt(axes: Axes, timeline: Timeline, bands: Sequence[Band], row_inches: float) -> None:
    font_size = min(9.0, row_inches * 72 * 0.62)
    names = [row.job for band in bands for row in band.rows]
    order = {job: index for index, job in enumerate(dict.fromkeys(names))}
    for index, band in enumerate(bands):
        bottom = band.top + len(band.rows)
        if index % 2:
            axes.axhspan(band.top - 0.5, bottom - 0.5, color="#F5F6F8", lw=0, zorder=0)
        # two lines of text need 0.25 inches; a narrower band gets the slot's number only
        label = band.label if len(band.rows) * row_inches >= 0.25 else band.label.partition("\n")[0]
        where = (1.008, (band.top + bottom - 1) / 2)
        style = {"va": "center", "fontsize": min(7.5, font_size), "color": GREY}
        axes.annotate(label, where, xycoords=("axes fraction", "data"), **style)
        for y, row in enumerate(band.rows, start=band.top):
            _draw_row(axes, timeline, row, y, COLOURS[order[row.job] % len(COLOURS)])
    axes.set_xlim(0, timeline.end or 1.0)
    axes.set_ylim(max(1, len(names)) - 0.5, -0.5)
    _name_rows(axes, names, font_size)
    _frame(axes)
    axes.set_title(_title(timeline, len(order)), loc="left", fontsize=10)


def _draw_row(axes: Axes, timeline: Timeline, row: Row, y: int, colour: str) -> None:
    """Draw a job's line of life, its turns (paler where they fill only part of a column) and its end."""
    axes.plot([row.begin, row.stop], [y, y], color="#C9CED6", lw=0.8, zorder=1, solid_capstyle="butt")
    if row.lane is not None:
        num_columns = min(NUM_COLUMNS, math.ceil(timeline.end / timeline.width) or 1)
        share = np.clip(np.asarray(row.lane.busy[:num_columns]) / timeline.width, 0.0, 1.0)
        image = np.empty((1, num_columns, 4))
        image[..., :3] = to_rgb(colour)
        image[..., 3] = np.where(share > 0, 0.25 + 0.75 * share, 0.0)
        extent = (0.0, num_columns * timeline.width, y + 0.36, y - 0.36)
        axes.imshow(image, extent=extent, aspect="auto", zorder=2)
    if row.ending is not None:
        marker, own = MARKS[row.ending.kind]
        style = {"color": own or colour, "mec": "white", "mew": 0.7, "zorder": 4, "clip_on": False}
        axes.plot([row.ending.at], [y], marker, ms=6.5 if own else 5, **style)


def _name_rows(axes: Axes, names: Sequence[str], font_size: float) -> None:
    if len(names) > MAX_NAMED:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(names)} rows, a job each", fontsize=8)
        return
    shown = [name if len(name) <= 28 else name[:27] + "…" for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=font_size)


def _draw_memory(axes: Axes, timeline: Timeline) -> None:
    times = [at for at, _ in timeline.memory]
    sizes = [num_bytes for _, num_bytes in timeline.memory]
    peak = max(sizes)
    unit, name = (2**30, "GiB") if peak >= 2**30 else (2**20, "MiB")
    values = [size / unit for size in sizes]
    axes.fill_between(times, values, color="#0072B2", alpha=0.18, lw=0)
    axes.plot(times, values, color="#0072B2", lw=1.2)
    axes.set_ylim(0, peak / unit * 1.3)
    axes.set_ylabel(f"memory ({name})", fontsize=8)
    axes.tick_params(labelsize=8)
    text = f"peak {bytes_text(peak)}"
    axes.annotate(text, (0.995, 0.93), xycoords="axes fraction", ha="right", va="top", fontsize=8, color=GREY)
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#B0B6BF")
    axes.tick_params(length=0, labelcolor="#333333")
    axes.grid(axis="x", color=FAINT, lw=0.7)
    axes.set_axisbelow(True)


def _label_time(axes: Axes, end: float) -> None:
    """Label the axis of time in seconds, minutes or hours."""
    divisor, unit = (1.0, "s") if end < 300 else (60.0, "min") if end < 3 * 3600 else (3600.0, "h")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / divisor:g}")
    if divisor > 1:
        steps = [step * divisor for step in (0.5, 1, 2, 5, 10, 20, 30, 60)]
        step = next((step for step in steps if end / step <= 10), steps[-1])
        axes.set_xticks(np.arange(0, end, step))
    axes.set_xlabel(f"time since the run began ({unit})", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)


def _title(timeline: Timeline, num_jobs: int) -> str:
    parts = [
        plural(num_jobs, "job"),
        plural(len(timeline.slots), "slot"),
        timeline.scheduler,
        seconds_text(timeline.end),
    ]
    failed = sum(ending.kind is JobFailed for ending in timeline.endings.values())
    if failed:
        parts.append(f"{failed} failed (✕)")
    return "  ·  ".join(part for part in parts if part)
