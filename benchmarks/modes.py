"""The ways in which a mix is trained: plain PyTorch in sequence, plain PyTorch side by side, and unified.

A run's figures come from outside: launch to the time stamps of its result files. What a mode says of itself is used only for
the number of threads of each job and for the moment at which its first job began to train.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.measure import Command, Measured, RunFailedError, run_measured


class Kind(StrEnum):
    """Who trains, and how many processes."""

    SEQUENTIAL = "sequential"  #: plain PyTorch, one process, one job after another
    PROCESSES = "processes"  #: plain PyTorch, a process per job, all at once
    UNIFIED = "unified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to train a mix.

    Attributes:
        name: Its name in tables and files.
        kind: Who trains.
        threads: Intra-op threads; None: torch's default, or unified's plan.
        scheduler: For unified.
        slots: For unified: ``"auto"`` or a number.
    """

    name: str
    kind: Kind
    threads: int | None = None
    scheduler: str = "fcfs"
    slots: str = "auto"

    def commands(self, folders: Sequence[Path], out: Path) -> list[Command]:
        """Return what to start, all at once."""
        if self.kind is Kind.UNIFIED:
            return [unified_command(folders, out, self)]
        if self.kind is Kind.SEQUENTIAL:
            return [plain_command(folders, out, self.threads)]
        return [plain_command([folder], out, self.threads) for folder in folders]


SCHEDULERS = ("fcfs", "priority", "sjf", "round-robin")
SEQUENTIAL_1 = Mode(name="sequential, 1 thread", kind=Kind.SEQUENTIAL, threads=1)
SEQUENTIAL_ALL = Mode(name="sequential, all threads", kind=Kind.SEQUENTIAL)
PROCESSES_1 = Mode(name="N processes, 1 thread", kind=Kind.PROCESSES, threads=1)
PROCESSES_DEFAULT = Mode(name="N processes, default", kind=Kind.PROCESSES)
ONE_SLOT = Mode(name="unified, 1 slot, 1 thread", kind=Kind.UNIFIED, threads=1, slots="1")
AUTO = tuple(Mode(name=f"unified, {name}", kind=Kind.UNIFIED, scheduler=name) for name in SCHEDULERS)
MODES = (SEQUENTIAL_1, SEQUENTIAL_ALL, PROCESSES_1, PROCESSES_DEFAULT, *AUTO, ONE_SLOT)


def unified_command(folders: Sequence[Path], out: Path, mode: Mode) -> Command:
    """Return the command line of unified: the one place that knows it."""
    threads = [] if mode.threads is None else ["--threads", str(mode.threads)]
    return [
        sys.executable, "-m", "unified", "run", *map(str, folders), "--out", str(out),
        "--scheduler", mode.scheduler, "--slots", mode.slots, *threads, "--device", "cpu", "--json",
        "--no-stacking",  # side by side, so that what is compared is the same work to the last bit
    ]  # fmt: skip


def plain_command(folders: Sequence[Path], out: Path, threads: int | None) -> Command:
    """Return the command line of the plain loop over ``folders``."""
    more = [] if threads is None else ["--threads", str(threads)]
    return [sys.executable, "-m", "benchmarks.plain_loop", *map(str, folders), "--out", str(out), *more]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedJob:
    """What a job's result folder says; times in seconds since launch, which is its submission.

    Attributes:
        name: The job's name.
        folder: Its results.
        completion_seconds: To the time stamp of its last file; of a job that was stopped: to then.
        began_seconds: To the moment at which it began to train.
        threads: The intra-op threads that it trained with.
        metrics: Its final metrics, by the names of whoever trained it.
        is_stopped: It did not come to its end.
    """

    name: str
    folder: Path
    completion_seconds: float
    began_seconds: float
    threads: int
    metrics: dict[str, float]
    is_stopped: bool = False

    @property
    def weights(self) -> Path:
        """Its final state dict."""
        return self.folder / "state_dict.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A mix trained in one mode; the jobs in order of submission."""

    mode: Mode
    measured: Measured
    jobs: tuple[FinishedJob, ...]


def perform(mode: Mode, folders: Sequence[Path], out: Path, *, patience_seconds: float | None = None) -> FinishedRun:
    """Train the jobs in ``folders`` (in this order of submission) in one mode, results under ``out``.

    Args:
        mode: How.
        folders: Job folders.
        out: Folder for the results.
        patience_seconds: Stop a plain run after so long, without an error; None: wait for its end.

    Raises:
        RunFailedError: If a process fails or a result is missing.
    """
    logs = out.with_name(out.name + "-logs")
    measured = run_measured(mode.commands(folders, out), logs, patience_seconds=patience_seconds)
    read = _read_unified if mode.kind is Kind.UNIFIED else _read_plain
    return FinishedRun(mode=mode, measured=measured, jobs=tuple(read(out / each.name, measured) for each in folders))


def _read_plain(folder: Path, measured: Measured) -> FinishedJob:
    weights = folder / "state_dict.pt"
    if measured.watched.is_stopped and not weights.exists():
        return _stopped(folder, measured)
    began = json.loads(_expected(folder / "began.json").read_text())
    return FinishedJob(
        name=folder.name,
        folder=folder,
        completion_seconds=_expected(weights).stat().st_mtime - measured.launched_at,
        began_seconds=began["at"] - measured.launched_at,
        threads=began["threads"],
        metrics=json.loads((folder / "metrics.json").read_text()),
    )


def _stopped(folder: Path, measured: Measured) -> FinishedJob:
    """Return what is known of a job that was stopped: lower bounds of its times."""
    path = folder / "began.json"
    began = json.loads(path.read_text()) if path.exists() else None
    return FinishedJob(
        name=folder.name,
        folder=folder,
        completion_seconds=measured.exit_seconds,
        began_seconds=began["at"] - measured.launched_at if began else measured.exit_seconds,
        threads=began["threads"] if began else 0,
        metrics={},
        is_stopped=True,
    )


def _read_unified(folder: Path, measured: Measured) -> FinishedJob:
    """Read ``result.json``, which is written last: its time stamp ends the job, and ties the run's clock to ours."""
    path = _expected(folder / "result.json")
    result = json.loads(path.read_text())
    completion_seconds = path.stat().st_mtime - measured.launched_at
    return FinishedJob(
        name=folder.name,
        folder=folder,
        completion_seconds=completion_seconds,
        began_seconds=completion_seconds - result["completion_seconds"] + result["waiting_seconds"],
        threads=result["threads"],
        metrics=result["metrics"],
    )


def _expected(path: Path) -> Path:
    if not path.exists():
        raise RunFailedError(f"the run left no {path.name} for job {path.parent.name!r}")
    return path
