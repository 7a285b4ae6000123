"""Stacks against a plain loop, N processes and ``torch.func.vmap``: training and inference of N models of one architecture.

``python -m benchmarks.stacking [--quick] --out FILE.json`` prints tables, and writes every figure to FILE.json and a plot
beside it. All ways are measured in turns in one process, so that a machine that slows down slows all of them; ratios are
those of neighbours. Run it with nothing else running on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import describe_machine, git_commit, versions
from benchmarks.measure import ROOT
from benchmarks.stacking_models import KINDS
from benchmarks.stacking_plot import draw
from benchmarks.stacking_tables import Cell, print_tables, targets_of

COUNTS = (1, 2, 4, 8, 16, 32)
QUICK_COUNTS = (1, 8, 32)
QUICK_KINDS = ("mlp", "lenet", "conv-norm", "resnet18", "encoder")
#: As unified's workers run: blocks of memory are kept between steps. The same for all ways.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
MEMORY_COUNTS = (8, 32)
TABLE_WIDTH = 132


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured."""

    kinds: tuple[str, ...]
    counts: tuple[int, ...]
    phases: tuple[str, ...]
    threads: tuple[int, ...]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    cells = _measured(settings, console)
    targets = targets_of(cells)
    print_tables(cells, targets, console)
    report = {
        "command": f"python -m benchmarks.stacking {' '.join(arguments if arguments is not None else sys.argv[1:])}",
        "git_commit": git_commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": asdict(settings),
        "models": {name: KINDS[name].text for name in settings.kinds},
        "environment": KEEP_MEMORY,
        "cells": [asdict(cell) for cell in cells],
        "targets": [asdict(target) for target in targets],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(cells, options.out.with_suffix(".png"))
    console.print(f"written: {options.out} and {options.out.with_suffix('.png')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer numbers of models, one second a measurement")
    parser.add_argument("--out", type=Path, required=True, help="FILE.json")
    parser.add_argument("--model", action="append", choices=sorted(KINDS), help="only this model; may be given again")
    parser.add_argument("--count", action="append", type=int, help="only this number of models; may be given again")
    parser.add_argument("--phase", action="append", choices=["training", "inference"], help="only this")
    parser.add_argument("--threads", action="append", type=int, help="only this number of threads")
    parser.add_argument("--seconds", type=float, help="how long each measurement lasts at least")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    cores = len(os.sched_getaffinity(0))
    return Settings(
        kinds=tuple(options.model or (QUICK_KINDS if options.quick else KINDS)),
        counts=tuple(options.count or (QUICK_COUNTS if options.quick else COUNTS)),
        phases=tuple(options.phase or ("training", "inference")),
        threads=tuple(options.threads or ((1,) if options.quick or cores == 1 else (1, 2))),
        seconds=options.seconds or (1.0 if options.quick else 3.0),
    )


def _measured(settings: Settings, console: Console) -> list[Cell]:
    jobs = [
        (kind, count, phase, threads)
        for kind in settings.kinds
        for phase in settings.phases
        for threads in settings.threads
        for count in settings.counts
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    cells = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("measuring", total=len(jobs))
        for kind, count, phase, threads in jobs:
            progress.update(task, description=f"{kind}, {phase}, N={count}, {threads} thread{'s' * (threads > 1)}")
            cells.append(_cell(kind, count, phase, threads, settings.seconds))
            progress.advance(task)
    return cells


def _cell(kind: str, count: int, phase: str, threads: int, seconds: float) -> Cell:
    found = _child("times", kind, count, phase, threads, seconds)
    memory: dict[str, int] = {}
    if threads == 1 and count in MEMORY_COUNTS:
        memory = {way: _child("memory", kind, count, phase, way)["peak_bytes"] for way in ("loop", "stack")}
    machine: dict[str, float] = {}
    cores = len(os.sched_getaffinity(0))
    if phase == "training" and threads == 1 and count >= cores > 1:
        machine["processes"] = _child("processes", kind, count, count, seconds)["seconds"][0]
        machine["stacks"] = _child("processes", kind, count, cores, seconds)["seconds"][0]
    return Cell(
        kind=kind,
        count=count,
        phase=phase,
        threads=threads,
        seconds=found["seconds"],
        notes=found["notes"],
        tried=found["tried"],
        differences=found["differences"],
        failed=found["failed"],
        peak_bytes=memory,
        whole_machine_seconds=machine,
    )


def _child(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stacking_child", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | KEEP_MEMORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
