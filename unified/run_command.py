"""What ``unified run`` does: wires an engine to what people see, and writes what a run leaves beside its jobs' results."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from unified.engine import Engine
from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.events import Event, JobFailed, WorkerLost
from unified.intake import job_folders
from unified.job_state import JobState
from unified.listeners import EventLog, JsonLines, PlainLines, json_line
from unified.live_table import LiveTable
from unified.nursery import Nursery
from unified.results import write_json
from unified.summary import Summary, finite
from unified.sweep_results import sweep_results, write_sweeps
from unified.tables import final_table, plan_tables
from unified.terminal import can_redraw, line_writer, make_console, show
from unified.timeline import Timeline

EXIT_DONE, EXIT_ERROR, EXIT_JOB_FAILED, EXIT_INTERRUPTED = 0, 1, 3, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of ``unified run``, as :class:`~unified.engine.Engine` takes them.

    Attributes:
        out: Where results go; None only with ``dry_run``.
        command: The command line, for the summary and to say how to go on.
        nursery: Started beforehand, to save its start-up.
    """

    folders: tuple[Path, ...]
    out: Path | None
    scheduler: str = "default"
    slots: int | str = "auto"
    threads: int | None = None
    device: str = "auto"
    trust: bool = False
    resume: bool = False
    deterministic: bool = False
    stacking: bool = True
    dry_run: bool = False
    as_json: bool = False
    command: tuple[str, ...] = ()
    nursery: Nursery | None = None

    def engine(self, listeners: Sequence[Callable[[Event], None]] = ()) -> Engine:
        """Make the engine of this run."""
        return Engine(
            scheduler=self.scheduler,
            slots=self.slots,
            threads=self.threads,
            device=self.device,
            out=self.out,
            trust=self.trust,
            resume=self.resume,
            deterministic=self.deterministic,
            stacking=self.stacking,
            listeners=listeners,
            nursery=self.nursery,
        )


def run(options: RunOptions) -> int:
    """Train what the folders hold and return the exit code.

    Raises:
        UnifiedError: If what was handed in, or asked for, cannot be done.
    """
    check_folders(options.folders)
    if options.out is not None:
        check_out(options.out, options.folders)
    if options.dry_run:
        return _dry_run(options)
    assert options.out is not None, "the command line asks for --out"
    summary, timeline, console = Summary(), Timeline(), make_console()
    log = EventLog(options.out / ".state" / "events.jsonl")
    view, listeners = _view(console, summary, as_json=options.as_json)
    try:
        with terminated_like_interrupted(), view, options.engine([summary, timeline, log, *listeners]) as engine:
            options.out.mkdir(parents=True, exist_ok=True)  # where that cannot be, no job is to blame
            engine.submit_folders(options.folders)
            for _ in engine.run():
                pass
    except KeyboardInterrupt:
        _say_how_to_resume(options, summary)
        return EXIT_INTERRUPTED
    finally:
        log.close()
        if summary.started is not None:
            write_json(options.out / "summary.json", run_summary(summary, options.command))
            write_sweeps(options.out, sweep_results(summary))
            timeline.draw(options.out / "timeline.png")
    _report_end(options, summary, console)
    return EXIT_JOB_FAILED if summary.count(JobState.FAILED) else EXIT_DONE


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, a batch system's way to say stop, end the run as Ctrl-C does: with checkpoints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts a command in the background lets it be ignored.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_folders(folders: Sequence[Path]) -> None:
    """Refuse folders without jobs at once, all of them, before an engine starts and imports torch to read them.

    Raises:
        InvalidSubmission: If a folder is neither a job folder nor holds one.
    """
    problems: list[Problem] = []
    for folder in folders:
        try:
            job_folders(folder)
        except InvalidSubmission as error:
            problems += error.problems
    if problems:
        raise InvalidSubmission(problems)


def check_out(out: Path, folders: Sequence[Path]) -> None:
    """Refuse to write results over what was handed in: the result of job ``a`` goes to ``out/a``.

    Raises:
        UnifiedError: If job folders lie directly in ``out``, or ``out`` is one.
    """
    out = out.resolve()
    for job in (job.resolve() for folder in folders for job in job_folders(folder)):
        if out in {job, job.parent}:
            raise UnifiedError(f"--out {out} is where job folder {job.name!r} lies; results go to a folder of their own")


def _view(
    console: Console, summary: Summary, *, as_json: bool
) -> tuple[AbstractContextManager[object], list[Callable[[Event], None]]]:
    """Return what shows the run while it goes on: a context to be in, and the listeners that it needs."""
    if as_json:
        return nullcontext(), [JsonLines(sys.stdout)]
    if not can_redraw(console):
        return nullcontext(), [PlainLines(sys.stdout)]

    def announce(event: Event) -> None:
        if isinstance(event, JobFailed | WorkerLost):
            PlainLines(sys.stderr)(event)  # looked up now: the live table puts such lines above itself

    return LiveTable(console, summary), [announce]


def _report_end(options: RunOptions, summary: Summary, console: Console) -> None:
    if options.as_json:
        line_writer(sys.stdout)(json_line({"event": "Summary", **run_summary(summary, options.command)}))
        return
    show(console, final_table(summary))
    tables = "".join(f", {sweep.name}.sweep.csv" for sweep in sweep_results(summary))
    line_writer(sys.stdout)(f"results, summary.json{tables} and timeline.png are in {options.out}")


def run_summary(summary: Summary, command: Sequence[str]) -> dict[str, Any]:
    """Return what ``summary.json`` holds: the run, its sweeps and its jobs."""
    content = summary.to_json(command)
    sweeps = {sweep.name: sweep.to_json() for sweep in sweep_results(summary)}
    return {"run": content["run"], "sweeps": sweeps, "jobs": content["jobs"]}


def _dry_run(options: RunOptions) -> int:
    with options.engine() as engine:
        engine.submit_folders(options.folders)
        plan = engine.dry_run()
    if options.as_json:
        line_writer(sys.stdout)(json_line(finite(asdict(plan))))
    else:
        console = make_console()
        show(console, plan_tables(plan, console.width))
    return EXIT_DONE


def _say_how_to_resume(options: RunOptions, summary: Summary) -> None:
    if summary.started is None:
        text = "interrupted before training began; there is nothing to resume"
    else:
        flag = () if options.resume else ("--resume",)
        command = shlex.join((*options.command, *flag))
        text = f"interrupted; checkpoints are written, go on with: {command}"
    line_writer(sys.stderr)(f"unified: {text}")
