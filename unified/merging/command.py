"""What ``unified merge`` does: wires a merge to what people see."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fusion.merging.settings import MergeSettings
from unified.cores import use_threads
from unified.fusing.data_files import read_data
from unified.fusing.parting import Parts
from unified.fusing.session import first_rows
from unified.fusing.sources import read_results
from unified.fusing.threads import choose_threads, threads_kept
from unified.listeners import json_line
from unified.merging.session import Merged, Prepare, merge_jobs
from unified.merging.settings import make_settings
from unified.merging.tables import end_lines, end_table
from unified.merging.views import Listener, MergeLive, merge_lines
from unified.merging.writing import check_room
from unified.run_command import EXIT_DONE, EXIT_INTERRUPTED, terminated_like_interrupted
from unified.summary import finite
from unified.terminal import can_redraw, line_writer, make_console, show


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """The options of ``unified merge``; see its help.

    Attributes:
        results: Results of jobs, or folders of them.
        out: Where the model and the report go.
        alpha: None to try several.
        prune: ``taylor``, ``vib`` or None.
    """

    results: tuple[Path, ...]
    out: Path
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    max_drop: float = 0.01
    alpha: float | None = None
    prune: str | None = "taylor"
    private: tuple[str, ...] = ()
    baselines: bool = False
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    trust: bool = False
    as_json: bool = False

    def settings(self) -> MergeSettings:
        """Return the settings of the merge.

        Raises:
            UnifiedError: If one is out of its range.
        """
        given = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        return make_settings(
            max_drop=self.max_drop,
            alpha=self.alpha,
            prune=self.prune,
            private=self.private,
            baselines=self.baselines,
            seed=self.seed,
            **{name: value for name, value in given.items() if value is not None},
        )


def merge_results(options: MergeOptions) -> int:
    """Merge finished jobs, show how it goes, and return the exit code.

    Raises:
        InvalidSubmission: With everything that is wrong with a result or the data.
        UnifiedError: If the models cannot be merged as asked.
    """
    settings = options.settings()
    check_room(options.out)
    jobs = read_results(options.results, options.tasks)
    console = make_console()
    try:
        with terminated_like_interrupted(), threads_kept(), _view(console, as_json=options.as_json) as tell:
            prepare = _set_threads(options, settings)
            given = None if options.data is None else read_data(options.data, tuple(job.name for job in jobs))
            merged = merge_jobs(
                jobs,
                given,
                settings,
                out=options.out,
                device=options.device,
                trust=options.trust,
                progress=tell,
                prepare=prepare,
            )
            num_threads = torch.get_num_threads()
    except KeyboardInterrupt:
        line_writer(sys.stderr)("unified: interrupted; nothing was written")
        return EXIT_INTERRUPTED
    _report_end(merged, console, num_threads, as_json=options.as_json)
    return EXIT_DONE


def _set_threads(options: MergeOptions, settings: MergeSettings) -> Prepare | None:
    """Use the threads that were asked for, else return what chooses them."""
    if options.threads is not None:
        use_threads(options.threads)
        return None
    most = torch.get_num_threads()
    use_threads(1)  # helper threads are made only when they get cores of their own

    def choose(models: Sequence[nn.Module], parts: Parts, device: torch.device) -> None:
        if device.type != "cpu" or not len(parts.train):
            use_threads(most)
        else:
            choose_threads(models, first_rows(parts, settings.batch_size), settings.batch_size, most=most)

    return choose


def _view(console: Console, *, as_json: bool) -> AbstractContextManager[Listener]:
    if as_json or not can_redraw(console):
        return merge_lines(sys.stdout, as_json=as_json)
    return MergeLive(console)


def _report_end(merged: Merged, console: Console, num_threads: int, *, as_json: bool) -> None:
    write = line_writer(sys.stdout)
    if as_json:
        content = merged.report.to_json()
        notes = {"notes": [*content["notes"], *merged.notes]}
        write(json_line(finite({"event": "Report", **content, **notes, "threads": num_threads})))
        return
    show(console, end_table(merged.report))
    for line in end_lines(merged, num_threads):
        write(line)
