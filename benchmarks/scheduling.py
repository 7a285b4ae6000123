"""Schedulers on public traces, by the simulator: time-sliced and co-running, with free and with fixed placement.

``python -m benchmarks.scheduling --traces DIR --out FILE.json [--quick] [--seeds N]`` prints a table for each trace and way of
running it, then what was aimed at and whether it was reached; writes every figure to FILE.json and a plot beside it. ``DIR``
holds ``alibaba_openb_gpu2023.csv`` and ``philly_vc_muri_trace2.csv``. Nothing is trained; simulated times do not depend on the
machine, only those of decisions do. Two processes at most run at the same time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from benchmarks.faults_tables import print_aims
from benchmarks.machine import describe_machine, git_commit, versions
from benchmarks.scheduling_aims import aims_of
from benchmarks.scheduling_plot import draw
from benchmarks.scheduling_runs import PLANS, TRACES, Finding, Plan, Settings, measured
from benchmarks.scheduling_tables import print_findings

NUM_PROCESSES = 2
TABLE_WIDTH = 140
QUICK_JOBS = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print and write."""
    options = _parser().parse_args(arguments)
    settings = Settings(traces=options.traces, jobs=QUICK_JOBS if options.quick else 1200, seeds=options.seeds)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    commit = git_commit()  # before: it runs for minutes, and others may work here
    findings = _findings(settings, console)
    aims = aims_of(findings)
    print_findings(findings, console)
    scale = f"quick: the first {QUICK_JOBS} jobs" if options.quick else "full"
    print_aims(aims, console, scale=scale)
    report = {
        "command": f"python -m benchmarks.scheduling {' '.join(_words(arguments, options.traces))}",
        "git_commit": commit,
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": {"jobs": settings.jobs, "seeds": settings.seeds, "load": settings.load, "sigma": settings.sigma},
        "findings": [asdict(finding) for finding in findings],
        "aims": [{**asdict(aim), "is_reached": aim.is_reached} for aim in aims],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(findings, options.out.with_suffix(".png"))
    console.print(f"written: {options.out} and {options.out.with_suffix('.png')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR", help="folder of the traces")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the figures go")
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK_JOBS} jobs of each trace")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the estimates (default 5)")
    return parser


def _findings(settings: Settings, console: Console) -> list[Finding]:
    """Run every plan on every trace, two at a time; the long ones first."""
    tasks: list[tuple[str, Plan]] = [(trace, plan) for plan in PLANS for trace in TRACES]
    console.print(f"{len(tasks)} comparisons of {settings.jobs} jobs, {settings.seeds} seeds each; minutes at full scale")
    with ProcessPoolExecutor(NUM_PROCESSES, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(measured, trace, plan, settings) for trace, plan in tasks]
        return [finding for future in futures for finding in future.result()]


def _words(arguments: Sequence[str] | None, traces: Path) -> list[str]:
    """Return the command's words; where this machine keeps the traces is nobody's affair."""
    words = list(arguments if arguments is not None else sys.argv[1:])
    return ["$UNIFIED_DATA/traces" if word == str(traces) else Path(word).name if "/" in word else word for word in words]


if __name__ == "__main__":
    raise SystemExit(main())
