"""Models of many families through an archive: are they accepted, do they train as before, what does it cost?

``python -m benchmarks.formats --out FILE.json`` prints a table, and writes every figure to FILE.json and a plot beside it:
for each model the size of its archive, the time to export and to load it, whether five training steps and an evaluation equal
those of the eager model bit for bit, the time of a step against the eager one's in turns, and estimated memory against what
the allocator handed out. Run it with nothing else running on the machine. Models of libraries that are not installed
(torchvision, timm, transformers) are named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.formats_models import default_names, entries
from benchmarks.formats_plot import draw
from benchmarks.formats_tables import Row, aims_of, print_tables
from benchmarks.machine import describe_machine, git_commit, installed_versions
from benchmarks.measure import ROOT
from benchmarks.stacking import KEEP_MEMORY

TABLE_WIDTH = 150
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = _parser().parse_args(arguments)
    names = options.model or default_names()
    console = Console(width=max(Console().width, TABLE_WIDTH))
    rows = _measured(names, options, console)
    aims = aims_of(rows)
    print_tables(rows, aims, console)
    report = {
        "command": f"python -m benchmarks.formats {' '.join(arguments if arguments is not None else sys.argv[1:])}",
        "date": date.today().isoformat(),
        "git_commit": git_commit(),
        "machine": asdict(describe_machine()),
        "versions": installed_versions(_PACKAGES),
        "settings": {"threads": options.threads, "seconds": options.seconds, "seeds": {"model": 0, "targets": 1, "steps": 3}},
        "environment": KEEP_MEMORY,
        "rows": [asdict(row) | {"step_ratio": row.step_ratio, "peak_ratio": row.peak_ratio} for row in rows],
        "aims": [asdict(aim) | {"verdict": aim.verdict} for aim in aims],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, options.out.with_suffix(".png"))
    console.print(f"written: {options.out} and {options.out.with_suffix('.png')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="FILE.json")
    parser.add_argument("--model", action="append", choices=sorted(entries()), metavar="NAME", help="only this; repeatable")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of a step (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long the steps of a model are timed at least")
    return parser


def _measured(names: Sequence[str], options: argparse.Namespace, console: Console) -> list[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows: list[Row] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(names[0], total=len(names))
        for row in _rows(names, options.threads, options.seconds):
            rows.append(row)
            progress.update(task, advance=1, description=names[min(len(rows), len(names) - 1)])
    return rows


def _rows(names: Sequence[str], threads: int, seconds: float) -> Iterator[Row]:
    command = [sys.executable, "-m", "benchmarks.formats_child", str(threads), str(seconds), *names]
    with (
        tempfile.TemporaryFile("w+") as log,  # where PyTorch's profiler writes a line each time
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | KEEP_MEMORY, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None, "it was asked for"
        for line in process.stdout:
            yield Row(**json.loads(line))
        if process.wait() != 0:
            log.seek(0)
            raise RuntimeError(f"benchmarks.formats_child ended with exit code {process.returncode}:\n{log.read()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
