"""What ``unified fuse`` does: wires a search to what people see."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusion.graph.errors import FusionError
from fusion.search.config import Config, preset
from fusion.search.tasks import Task
from unified.cores import use_threads
from unified.errors import UnifiedError
from unified.fusing.data_files import read_data
from unified.fusing.fuse_tables import end_lines, end_table
from unified.fusing.parting import Parts
from unified.fusing.session import Fusion, first_rows, fuse_jobs
from unified.fusing.sources import FinishedJob, read_results
from unified.fusing.threads import choose_threads, recorded_threads, threads_kept
from unified.fusing.views import FuseLive, Listener, fuse_lines
from unified.fusing.writing import SEARCH, forget
from unified.listeners import json_line
from unified.run_command import EXIT_DONE, EXIT_INTERRUPTED, terminated_like_interrupted
from unified.summary import finite
from unified.terminal import can_redraw, line_writer, make_console, show


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseOptions:
    """The options of ``unified fuse``; see its help.

    Attributes:
        results: Results of jobs, or folders of them.
        out: Where the model and the report go.
        thresholds: Score drops that are allowed.
        command: The command line, to say how to go on.
    """

    results: tuple[Path, ...]
    out: Path
    thresholds: tuple[float, ...] = (0.01,)
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    label_free: bool = False
    metric: str = "latency"
    policy: str | None = None
    preset: str = "full"
    baseline: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    budget_seconds: float | None = None
    candidates: int | None = None
    resume: bool = False
    fresh: bool = False
    onnx: bool = False
    trust: bool = False
    as_json: bool = False
    command: tuple[str, ...] = ()

    def config(self) -> Config:
        """Return the settings of the search.

        Raises:
            UnifiedError: If they do not fit together.
        """
        settings: dict[str, Any] = {
            "thresholds": self.thresholds,
            "metric": self.metric,
            "label_free": self.label_free,
            "seed": self.seed,
            "budget_seconds": self.budget_seconds,
            "max_candidates": self.candidates,
            "out": self.out,
            "resume": self.resume,
        }
        named = {"policy": self.baseline or self.policy, "epochs": self.epochs, "batch_size": self.batch_size}
        try:
            return preset(self.preset, **settings, **{key: value for key, value in named.items() if value is not None})
        except FusionError as error:
            raise UnifiedError(str(error)) from error


def fuse_results(options: FuseOptions) -> int:
    """Fuse finished jobs and return the exit code.

    Raises:
        InvalidSubmission: With everything that is wrong with a result or the data.
        UnifiedError: If the models cannot be fused as asked.
    """
    return fuse_and_show(read_results(options.results, options.tasks), options)


def fuse_and_show(jobs: list[FinishedJob], options: FuseOptions) -> int:
    """Fuse jobs that were read already, show how it goes, and return the exit code."""
    config = options.config()
    console = make_console()
    try:
        with terminated_like_interrupted():
            make_room(options)
            with threads_kept(), _view(console, config, as_json=options.as_json) as tell:
                prepare = _set_threads(options, config)
                given = None if options.data is None else read_data(options.data, tuple(job.name for job in jobs))
                fusion = fuse_jobs(
                    jobs,
                    given,
                    config,
                    device=options.device,
                    trust=options.trust,
                    onnx=options.onnx,
                    progress=tell,
                    prepare=prepare,
                )
                num_threads = torch.get_num_threads()
    except KeyboardInterrupt:
        _say_how_to_resume(options)
        return EXIT_INTERRUPTED
    _report_end(fusion, options, console, num_threads)
    return EXIT_DONE


def _set_threads(options: FuseOptions, config: Config) -> Callable[[Sequence[Task], Parts, torch.device], None] | None:
    """Use the threads that were asked for, or those of the search that is gone on with; else return what chooses them."""
    asked = options.threads
    if asked is None and options.resume:
        asked = recorded_threads(options.out / SEARCH)  # others round otherwise, and decisions would not replay
    if asked is not None:
        use_threads(asked, None if options.threads else 0)
        return None
    most = torch.get_num_threads()
    use_threads(1)  # helper threads are made only when they get cores of their own

    def choose(tasks: Sequence[Task], parts: Parts, device: torch.device) -> None:
        if device.type != "cpu" or not len(parts.train):
            use_threads(most)
        else:
            choose_threads([task.model for task in tasks], first_rows(parts, config.batch_size), config.batch_size, most=most)

    return choose


def make_room(options: FuseOptions) -> None:
    """Forget an earlier search in the output folder if that is asked for, and refuse to write over it if nothing is.

    Raises:
        UnifiedError: If there is one, and neither ``resume`` nor ``fresh``.
    """
    if options.fresh:
        forget(options.out)
    candidates = options.out / SEARCH / "candidates.jsonl"
    if (options.out / "result.json").exists() or (options.out / "job.json").exists():
        raise UnifiedError(f"--out {options.out} is the folder of a job; the fused model goes to a folder of its own")
    if not options.resume and candidates.is_file() and candidates.stat().st_size:
        raise UnifiedError(
            f"{options.out}: it holds an earlier search; choose another --out folder, --resume to go on with it, "
            "or --fresh to forget it"
        )


def _view(console: Console, config: Config, *, as_json: bool) -> AbstractContextManager[Listener]:
    if as_json or not can_redraw(console):
        return fuse_lines(sys.stdout, str(config.metric), as_json=as_json)
    limit = None if config.candidates == float("inf") else int(config.candidates)
    return FuseLive(console, str(config.metric), num_candidates=limit, budget_seconds=config.budget_seconds)


def _report_end(fusion: Fusion, options: FuseOptions, console: Console, num_threads: int) -> None:
    write = line_writer(sys.stdout)
    if options.as_json:
        notes = {"notes": [*fusion.report.notes, *fusion.notes]}
        write(json_line(finite({"event": "Report", **fusion.report.to_json(), "threads": num_threads, **notes})))
        return
    show(console, end_table(fusion.report))
    for line in end_lines(fusion, options.out, num_threads):
        write(line)


def _say_how_to_resume(options: FuseOptions) -> None:
    words = [word for word in options.command if word != "--fresh"]
    flag = () if options.resume else ("--resume",)
    line_writer(sys.stderr)(f"unified: interrupted; what was tried is kept, go on with: {shlex.join((*words, *flag))}")
