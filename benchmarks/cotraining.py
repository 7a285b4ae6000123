"""Co-training against plain PyTorch, on the same work in one run; writes FILE.json and FILE.png and prints tables.

``python -m benchmarks.cotraining [--quick] [--data DIR] --out FILE.json``. Every mix is trained one after another in one
process, in N concurrent processes, and by unified under each scheduler; the modes are interleaved and their order
rotates from repeat to repeat. Final weights are compared with those of the plain loop, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cotraining_plot import draw
from benchmarks.equality import are_equal
from benchmarks.machine import describe_machine, git_commit, versions
from benchmarks.measure import ROOT
from benchmarks.modes import (
    MODES,
    PROCESSES_1,
    PROCESSES_DEFAULT,
    SEQUENTIAL_1,
    FinishedRun,
    Kind,
    Mode,
    perform,
    plain_command,
)
from benchmarks.records import RunRecord, record
from benchmarks.resident import ResidentMemory, measure_resident
from benchmarks.tables import print_tables
from benchmarks.verdicts import ratios, targets

MIXES = ("vision", "language", "small", "resident")
REPEATS = {"full": 3, "quick": 1, "tiny": 1}
PATIENCE = 1.5  # N processes with default threads that take so much longer than with 1 are stopped
RESIDENT_COUNTS = {"full": (2, 5, 8), "quick": (2, 5, 8), "tiny": (2, 4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be run.

    Attributes:
        scale: ``full``, ``quick`` or ``tiny`` (for tests).
        repeats: How often every mode is run.
        mixes: Names out of :data:`MIXES`.
        modes: The modes to run on each.
        data: Folder of real data, or None for made-up data.
        out: The JSON file; the plot goes beside it.
    """

    scale: str
    repeats: int
    mixes: tuple[str, ...]
    modes: tuple[Mode, ...]
    data: Path | None
    out: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark described on the command line."""
    run(read_settings(argv), Console(width=None if sys.stdout.isatty() else 160))


def read_settings(argv: Sequence[str] | None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="a fifth of the epochs, once: under 4 minutes")
    parser.add_argument("--scale", choices=tuple(REPEATS), help="instead of --quick")
    parser.add_argument("--data", type=Path, help="folder of real data; default: $UNIFIED_DATA, else made-up data")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--mix", action="append", choices=MIXES, help="only this mix; may be given again")
    parser.add_argument("--mode", action="append", choices=[mode.name for mode in MODES], help="only this mode")
    options = parser.parse_args(argv)
    scale = options.scale or ("quick" if options.quick else "full")
    named_data = options.data or os.environ.get("UNIFIED_DATA")
    return Settings(
        scale=scale,
        repeats=options.repeats or REPEATS[scale],
        mixes=tuple(options.mix or MIXES),
        modes=tuple(mode for mode in MODES if not options.mode or mode.name in options.mode),
        data=Path(named_data).resolve() if named_data else None,
        out=options.out,
    )


def run(settings: Settings, console: Console) -> None:
    """Run the benchmark, print its tables, write its files."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unified-benchmark-") as folder:
        work = Path(folder)
        console.print(f"writing the job folders of scale {settings.scale!r} …")
        index = prepare(settings, work)
        records, resident = _run_all(settings, index, work, console)
    if records:
        draw(records, settings.out.with_suffix(".png"))
    found = targets(records, [each.beyond_mib for each in resident])
    print_tables(records, found, console, scale=settings.scale)
    report = {
        "command": command_line(settings),
        "git_commit": git_commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": {
            "scale": settings.scale,
            "repeats": settings.repeats,
            "has_real_data": settings.data is not None,
            "modes": [asdict(mode) for mode in settings.modes],
        },
        "mixes": index,
        "runs": [asdict(record) | {"is_equal": record.is_equal} for record in records],
        "ratios": [asdict(ratio) for ratio in ratios(records)],
        "resident": [asdict(each) | {"beyond_mib": each.beyond_mib} for each in resident],
        "targets": [asdict(target) | {"is_reached": target.is_reached} for target in found],
    }
    settings.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written: {settings.out} and the plot beside it")


def command_line(settings: Settings) -> str:
    """Return the command that repeats the run, without the places of this machine's files."""
    parts = ["python -m benchmarks.cotraining", f"--scale {settings.scale}", f"--repeats {settings.repeats}"]
    if settings.data is not None:
        parts.append("--data $UNIFIED_DATA")
    parts += [f"--mix {mix}" for mix in settings.mixes if settings.mixes != MIXES]
    parts += [f"--mode '{mode.name}'" for mode in settings.modes if settings.modes != MODES]
    return " ".join([*parts, f"--out {settings.out.name}"])


def prepare(settings: Settings, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Write the job folders in another process and return their index: this one must not map torch.

    Were torch mapped here, too, each page of it would count for less in the PSS of the processes that are measured.
    """
    command = [sys.executable, "-m", "benchmarks.workloads", "--out", str(work), "--scale", settings.scale]
    for mix in settings.mixes:
        command += ["--mix", mix]
    if settings.data is not None:
        command += ["--data", str(settings.data)]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((work / "index.json").read_text())


def _run_all(
    settings: Settings, index: Mapping[str, Sequence[Mapping[str, Any]]], work: Path, console: Console
) -> tuple[list[RunRecord], list[ResidentMemory]]:
    """Run every mode on every mix, repeat by repeat."""
    records: list[RunRecord] = []
    resident: list[ResidentMemory] = []
    makespans: dict[str, dict[str, float]] = {mix: {} for mix in settings.mixes}
    for repeat in range(settings.repeats):
        shift = repeat % len(settings.modes)
        modes = settings.modes[shift:] + settings.modes[:shift]  # no mode is always the first or the last
        for mix in settings.mixes:
            folders = [work / mix / "jobs" / job["name"] for job in index[mix]]
            if mix == "resident":
                counts = RESIDENT_COUNTS[settings.scale]
                resident.append(measure_resident(folders, index[mix][0]["own_bytes"], counts, work / "runs"))
                console.print(f"repeat {repeat}, resident jobs: {resident[-1].beyond_mib:.1f} MiB each")
                continue
            num_steps = sum(job["steps"] for job in index[mix])
            runs = run_mix(modes, folders, work / "runs", console, makespans[mix])
            equal = compare(runs, folders, work / "runs")
            shutil.rmtree(work / "runs")
            records += [record(mix, repeat, each, num_steps=num_steps, equal=equal) for each in runs]
    return records, resident


def run_mix(
    modes: Sequence[Mode], folders: Sequence[Path], work: Path, console: Console, makespans: dict[str, float]
) -> list[FinishedRun]:
    """Train one mix in every mode, results under ``work``; ``makespans`` of the mix by mode are kept up to date."""
    runs = []
    for number, mode in enumerate(modes):
        runs.append(perform(mode, folders, work / f"run-{number}", patience_seconds=_patience(mode, makespans)))
        makespans[mode.name] = max(job.completion_seconds for job in runs[-1].jobs)
        console.print(f"{folders[0].parent.parent.name}, {mode.name}: {makespans[mode.name]:.1f} s")
    return runs


def _patience(mode: Mode, makespans: Mapping[str, float]) -> float | None:
    """Return after how long a run is stopped: N processes with N times as many threads as cores may take minutes."""
    others = [makespans[name] for name in (SEQUENTIAL_1.name, PROCESSES_1.name) if name in makespans]
    return PATIENCE * max(others) if mode == PROCESSES_DEFAULT and others else None


def compare(runs: Sequence[FinishedRun], folders: Sequence[Path], work: Path) -> dict[Path, bool]:
    """Return, by folder of the result, whether weights equal those of plain PyTorch with as many threads."""
    jobs = [job for each in runs for job in each.jobs if not job.is_stopped]
    references = {each.jobs[0].threads: each.jobs[0].folder.parent for each in runs if each.mode.kind is Kind.SEQUENTIAL}
    for threads in {job.threads for job in jobs} - set(references):
        references[threads] = work / f"reference-{threads}"
        subprocess.run(plain_command(folders, references[threads], threads), check=True, cwd=ROOT)
    pairs = [(job.weights, references[job.threads] / job.name / "state_dict.pt") for job in jobs]
    return dict(zip([job.folder for job in jobs], are_equal(pairs), strict=True))


if __name__ == "__main__":
    main()
