"""Plots of a comparison: completion times, slowdown, who was where, and what users had. The one file with matplotlib."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from schedulers.simulation.experiment import Comparison, Row
from schedulers.simulation.outcome import Outcome

_TIMELINE_JOBS = 50
_MOST_USERS = 10
_SIZE = (8.0, 4.8)


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all plots of a comparison as PNGs and return their paths; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    where = f"{comparison.setup.trace.name}, load {comparison.setup.selection.load:g}"
    written = [
        _distribution(
            comparison,
            folder / "jct.png",
            f"Completion since submission, {where}",
            "seconds from submission to completion",
            lambda outcome: [job.completion_seconds for job in outcome.jobs],
        ),
        _distribution(
            comparison,
            folder / "slowdown.png",
            f"Slowdown, {where}",
            "time from submission to completion / duration alone on a slot",
            lambda outcome: [job.completion_seconds / job.seconds for job in outcome.jobs if job.seconds > 0],
        ),
    ]
    for index, row in enumerate(comparison.rows):
        written.append(_timeline(row, folder / f"slots-{index}.png", where))
        if row.fairness is not None:
            written.append(_users(row, folder / f"users-{index}.png", where))
    return written


def _distribution(
    comparison: Comparison, path: Path, title: str, unit: str, values_of: Callable[[Outcome], list[float]]
) -> Path:
    figure, axes = _figure(title)
    for row in comparison.rows:
        values = sorted(values_of(row.outcome))
        parts = [(index + 1) / len(values) for index in range(len(values))]
        axes.step(values, parts, where="post", label=row.policy)
    axes.set(xscale="log", xlabel=unit, ylabel="part of the jobs", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    return _save(figure, path)


def _timeline(row: Row, path: Path, where: str) -> Path:
    """Draw the turns of the first jobs: a bar for each, in a lane of its slot; co-running units have half a lane each."""
    jobs = sorted(row.outcome.jobs, key=lambda job: (job.submit_time, job.id))[:_TIMELINE_JOBS]
    colours = {job.id: index % 20 for index, job in enumerate(jobs)}
    figure, axes = _figure(f"The first {len(jobs)} jobs on the slots, {row.policy}, {where}")
    free_at: dict[tuple[int, int], float] = defaultdict(float)
    for turn in sorted(row.outcome.turns, key=lambda turn: (turn.began, turn.ended)):
        if turn.ended <= turn.began:
            continue
        lane = 0 if free_at[turn.slot_id, 0] <= turn.began else 1
        free_at[turn.slot_id, lane] = turn.ended
        if turn.unit_id in colours:
            height = 0.4
            axes.broken_barh(
                [(turn.began / 3600, (turn.ended - turn.began) / 3600)],
                (turn.slot_id - height + lane * height, height),
                facecolors=f"C{colours[turn.unit_id] % 10}",
                edgecolor="black",
                linewidth=0.2,
            )
    slots = sorted({turn.slot_id for turn in row.outcome.turns})
    axes.set(xlabel="hours", ylabel="slot", yticks=slots)
    return _save(figure, path)


def _users(row: Row, path: Path, where: str) -> Path:
    """Draw what users had of the slots, added up over time."""
    owner = {job.id: job.user for job in row.outcome.jobs}
    steps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for turn in sorted(row.outcome.turns, key=lambda turn: turn.ended):
        steps[owner[turn.unit_id]].append((turn.ended / 3600, turn.seconds / 3600))
    most = sorted(steps, key=lambda user: -sum(hours for _, hours in steps[user]))[:_MOST_USERS]
    figure, axes = _figure(f"What users had of the slots, {row.policy}, {where}")
    for user in most:
        hours, total = [0.0], [0.0]
        for ended, had in steps[user]:
            hours.append(ended)
            total.append(total[-1] + had)
        axes.plot(hours, total, label=user or "(nobody)")
    axes.set(xlabel="hours", ylabel="slot-hours so far")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize="small")
    return _save(figure, path)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium", wrap=True)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
