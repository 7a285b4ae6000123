"""``unified simulate FOLDER`` and ``--engine``: the engine and the simulator on the same jobs, side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schedulers.base import SchedulerConfigError
from schedulers.needs import check_needs
from schedulers.quanta import parse_time
from schedulers.registry import create
from schedulers.simulation.experiment import ALWAYS_SUPPLIED
from schedulers.simulation.traces import Selection, auto_quantum, read_trace
from schedulers.spelling import split
from unified.quantities import plural, seconds_text, times_text
from unified.replay import Replay, read_run, replay
from unified.replay_queue import is_queue, read_queue
from unified.terminal import line_writer, make_console, show


def replay_folder(folder: Path, *, as_json: bool) -> int:
    """Simulate what a folder of ``unified run``, or a queue's, tells of, and print it beside what the engine did.

    Raises:
        UnifiedError: If there is no run to replay.
        SchedulerConfigError: If the run's scheduler cannot be made from how it is spelled.
    """
    found = replay(read_queue(folder) if is_queue(folder) else read_run(folder))
    if as_json:
        line_writer(sys.stdout)(json.dumps(replay_json(found), allow_nan=False))
    else:
        show(make_console(), replay_table(found))
    return 0


def play_trace(
    path: Path,
    selection: Selection,
    *,
    compare: str,
    quantum: str,
    seconds: float,
    as_json: bool,
) -> int:
    """Train jobs like those of a trace in the engine under several policies, and print how far off the simulator is.

    Args:
        path: The trace.
        selection: Which of its jobs; ``slots`` are the engine's.
        compare: Spellings of policies, with commas between them.
        quantum: ``"auto"``, or a time on the trace's clock.
        seconds: Work of all jobs, scaled down.
        as_json: Print one object.

    Raises:
        SchedulerConfigError: If the trace is none, or a policy is spelled wrongly or decides by what the trace lacks.
    """
    spellings = split(compare)
    if not spellings:
        raise SchedulerConfigError(f"--compare: expected schedulers such as fcfs,srtf; got {compare!r}")
    trace = read_trace(path)
    jobs = trace.workload(selection)
    for spelling in spellings:
        supplied = ALWAYS_SUPPLIED | trace.supplied(selection)
        check_needs(spelling, create(spelling).needs, supplied, f"trace {trace.name!r}")
    from unified.engine_replay import play, scaled

    turn = auto_quantum(jobs) if quantum == "auto" else parse_time(quantum, "--quantum")
    work = scaled(jobs, seconds=seconds, slots=selection.slots, quantum=turn)
    found = [play(spelling, work) for spelling in spellings]
    if as_json:
        content = {
            "trace": trace.name,
            "step_seconds": work.step_seconds,
            "quantum_seconds": work.quantum,
            "policies": [replay_json(each) for each in found],
        }
        line_writer(sys.stdout)(json.dumps(content, allow_nan=False))
        return 0
    console = make_console()
    head = (
        f"{trace.name}: {plural(len(jobs), 'job')}, {seconds_text(seconds)} of work at {1000 * work.step_seconds:.3g} ms a "
        f"step, {plural(selection.slots, 'slot')} of 1 thread, load {selection.load:g}, quantum {seconds_text(work.quantum)}"
    )
    show(console, Group(Text(head), engine_table(found)))
    return 0


def replay_table(found: Replay) -> RenderableType:
    """Return a run beside its simulation: a line for each group of jobs, and the makespan."""
    run = found.run
    left_out = f"; {run.num_left_out} left out, which did not come to an end" if run.num_left_out else ""
    head = f"{plural(len(run.jobs), 'job')} under {run.scheduler} on {plural(run.num_slots, 'slot')}{left_out}"
    table = _table("completion since submission", "jobs", "engine", "simulated", "ratio", "p95 engine", "simulated")
    for each in found.agreements:
        times = (each.engine.mean, each.simulated.mean)
        tails = (each.engine.p95, each.simulated.p95)
        cells = [each.group, str(each.num_jobs), *map(seconds_text, times), times_text(each.ratio), *map(seconds_text, tails)]
        table.add_row(*cells)
    makespans = (found.engine_makespan, found.simulated_makespan)
    table.add_row("makespan", "", *map(seconds_text, makespans), times_text(makespans[0] / makespans[1]), "", "")
    return Group(Text(head), table, Text(_MODEL))


def engine_table(found: Sequence[Replay]) -> RenderableType:
    """Return a line for each policy: the engine and the simulation of the same jobs."""
    table = _table(
        "scheduler", "mean engine", "simulated", "ratio", "p95 engine", "simulated", "ratio", "makespan", "simulated", "ratio"
    )
    for each in found:
        whole = each.agreements[0]
        pairs = [
            (whole.engine.mean, whole.simulated.mean),
            (whole.engine.p95, whole.simulated.p95),
            (each.engine_makespan, each.simulated_makespan),
        ]
        cells = [
            text for ours, theirs in pairs for text in (seconds_text(ours), seconds_text(theirs), times_text(ours / theirs))
        ]
        table.add_row(each.run.scheduler, *cells)
    return Group(table, Text(_MODEL))


_MODEL = (
    "times are since submission. The simulator was given what was measured in the run: when each job had been read, how long "
    "slots were its (loading included), how long they stood still between turns, and how long results were written"
)


def replay_json(found: Replay) -> dict:
    """Return a run beside its simulation as what ``json.dumps`` takes."""
    return {
        "scheduler": found.run.scheduler,
        "slots": found.run.num_slots,
        "switch_seconds": found.run.switch_seconds,
        "left_out": found.run.num_left_out,
        "groups": [asdict(each) | {"ratio": each.ratio} for each in found.agreements],
        "makespan": {"engine": found.engine_makespan, "simulated": found.simulated_makespan},
        "jobs": [asdict(job) for job in found.run.jobs],
    }


def _table(first: str, *titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table
