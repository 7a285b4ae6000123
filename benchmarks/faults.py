"""The queue under faults and load; writes FILE.json and FILE.png and prints tables.

``python -m benchmarks.faults [--quick] [--kills N] [--jobs N] [--seed S] [--part NAME] --out FILE.json``. A service trains real
small models while its workers, its supervisor, its HTTP process and its submitters are killed at random; weights are compared
bit for bit with those of an undisturbed run. Then: what a crash costs those beside it, how quick a queue with thousands of jobs
is, and what checkpoints cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import faults_aims as aims
from benchmarks import faults_tables as tables
from benchmarks.checkpoint_cost import CostRun, cost_ratios, measure_costs
from benchmarks.faults_plot import draw
from benchmarks.machine import describe_machine, git_commit, versions
from benchmarks.measure import ROOT
from benchmarks.neighbour import NeighbourLoss, measure_neighbours
from benchmarks.quantiles import Quantiles
from benchmarks.queue_latency import Latencies, LatencyPlan, measure_latencies
from benchmarks.storm import MIX, Storm, StormPlan, StormRun, train_undisturbed
from benchmarks.storm_verdict import Loss, Verdict, find_losses, judge, read_notes
from benchmarks.verdicts import Spread
from unified.queue.root import Root

PARTS = ("storm", "neighbour", "latency", "cost")
PACKAGES = ("sqlalchemy", "apscheduler", "fastapi", "uvicorn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done.

    Attributes:
        kills: In the storm.
        epoch_share: Of the storm's jobs.
        num_seeds: Of each of its models.
        crashes: Of a neighbour.
        latency: How often what is timed.
        cost_share: Of the epochs of the jobs that measure checkpoints.
        cost_interval: Between their checkpoints; the service's default at full scale.
        cost_repeats: How often they are run with and without.
    """

    kills: int
    epoch_share: float
    num_seeds: int
    crashes: int
    latency: LatencyPlan
    cost_share: float
    cost_interval: float
    cost_repeats: int


SCALES = {
    "full": Scale(
        kills=1000, epoch_share=1.0, num_seeds=3, crashes=10, cost_share=1.0, cost_interval=60.0, cost_repeats=3,
        latency=LatencyPlan(queued=10_000, submits=1000, http_submits=300, lists=300, commands=20, sustained=1000),
    ),
    "quick": Scale(
        kills=60, epoch_share=1.0, num_seeds=1, crashes=3, cost_share=0.15, cost_interval=8.0, cost_repeats=1,
        latency=LatencyPlan(queued=1000, submits=300, http_submits=100, lists=100, commands=5, sustained=300),
    ),
    "tiny": Scale(
        kills=6, epoch_share=0.2, num_seeds=1, crashes=1, cost_share=0.01, cost_interval=1.0, cost_repeats=1,
        latency=LatencyPlan(queued=50, submits=10, http_submits=5, lists=10, commands=1, sustained=8),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be run.

    Attributes:
        scale: A name out of :data:`SCALES`.
        kills: In the storm.
        jobs: At most so many in the storm; None: as many as keep the slots busy.
        seed: Of the storm.
        parts: Out of :data:`PARTS`.
        out: The JSON file; the plot goes beside it.
        work: Folder to work in, which is kept; None: a temporary one.
    """

    scale: str
    kills: int
    jobs: int | None
    seed: int
    parts: tuple[str, ...]
    out: Path
    work: Path | None = None


@dataclass(slots=True, kw_only=True)
class Findings:
    """What the parts that were run have found."""

    plan: StormPlan
    storm: Storm | None = None
    verdict: Verdict | None = None
    losses: list[Loss] = field(default_factory=list)
    neighbours: list[NeighbourLoss] | None = None
    latencies: Latencies | None = None
    costs: list[CostRun] | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark described on the command line."""
    run(read_settings(argv), Console(width=None if sys.stdout.isatty() else 160))


def read_settings(argv: Sequence[str] | None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="60 kills, 1,000 jobs in the store: a few minutes")
    parser.add_argument("--scale", choices=tuple(SCALES), help="instead of --quick")
    parser.add_argument("--kills", type=int, help="SIGKILLs of the storm")
    parser.add_argument("--jobs", type=int, help="at most so many in the storm (default: as many as keep the slots busy)")
    parser.add_argument("--seed", type=int, default=1, help="of the storm's targets and times")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given again")
    parser.add_argument("--work", type=Path, metavar="DIR", help="new folder to work in, which is kept; default: temporary")
    options = parser.parse_args(argv)
    scale = options.scale or ("quick" if options.quick else "full")
    return Settings(
        scale=scale,
        kills=SCALES[scale].kills if options.kills is None else options.kills,
        jobs=options.jobs,
        seed=options.seed,
        parts=tuple(part for part in PARTS if not options.part or part in options.part),
        out=options.out,
        work=options.work,
    )


def run(settings: Settings, console: Console) -> None:
    """Run the benchmark part by part; what is known is written after each."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    load_before, began = os.getloadavg()[0], time.monotonic()
    found = Findings(plan=StormPlan(kills=settings.kills, jobs=settings.jobs, seed=settings.seed))
    with _work_folder(settings) as work:
        scale = SCALES[settings.scale]
        _write_jobs(work / "jobs", scale)
        for part in settings.parts:
            _RUNNERS[part](found, work, scale, console)
            report = {"load_before": load_before, "seconds": time.monotonic() - began}
            settings.out.write_text(json.dumps(_report(settings, found) | report, indent=1) + "\n")
    tables.print_aims(_aims(found, SCALES[settings.scale]), console, scale=settings.scale)
    draw(found.storm, found.losses, found.latencies, settings.out.with_suffix(".png"))
    console.print(f"written: {settings.out} and the plot beside it")


def _work_folder(settings: Settings) -> AbstractContextManager[Path]:
    if settings.work is not None:
        settings.work.mkdir(parents=True)
        return nullcontext(settings.work.resolve())
    return _temporary_folder()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="unified-faults-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def command_line(settings: Settings) -> str:
    """Return the command that repeats the run, without the places of this machine's files."""
    parts = ["python -m benchmarks.faults", f"--scale {settings.scale}", f"--kills {settings.kills}"]
    parts += [] if settings.jobs is None else [f"--jobs {settings.jobs}"]
    parts += [f"--seed {settings.seed}"]
    parts += [f"--part {part}" for part in settings.parts if settings.parts != PARTS]
    return " ".join([*parts, f"--out {settings.out.name}"])


def _write_jobs(out: Path, scale: Scale) -> None:
    """Write the job folders in another process: this one needs no torch."""
    shares = ["--epoch-share", scale.epoch_share, "--cost-share", scale.cost_share, "--seeds", scale.num_seeds]
    command = [sys.executable, "-m", "benchmarks.storm_jobs", "--out", str(out), *map(str, shares)]
    subprocess.run(command, check=True, cwd=ROOT)


def _run_storm(found: Findings, work: Path, _: Scale, console: Console) -> None:
    specs = sorted((work / "jobs" / "storm").iterdir())
    console.print(f"training {len(specs)} jobs undisturbed …")
    undisturbed = train_undisturbed(found.plan, specs, work / "undisturbed")
    mix = ", ".join(f"{share:.0%} {target}" for target, share in MIX.items())
    console.print(f"killing {found.plan.kills} times ({mix}), every {found.plan.gap_seconds:g} s on average …")
    storm = found.storm = StormRun(found.plan, specs, work / "storm").run()
    root = Root(path=work / "storm" / "root")
    found.verdict = judge(storm, root.path / "results", undisturbed)
    interval = found.plan.checkpoint_seconds
    found.losses = find_losses(storm, read_notes(storm, root, interval), interval)
    tables.print_storm(storm, found.verdict, found.losses, found.plan.checkpoint_seconds, console)


def _run_neighbour(found: Findings, work: Path, scale: Scale, console: Console) -> None:
    jobs, interval = work / "jobs", found.plan.checkpoint_seconds
    console.print(f"crashing {scale.crashes} neighbours …")
    found.neighbours = measure_neighbours(
        jobs / "beside", jobs / "crash", work / "neighbour", crashes=scale.crashes, checkpoint_seconds=interval
    )
    tables.print_neighbours(found.neighbours, interval, console)


def _run_latency(found: Findings, work: Path, scale: Scale, console: Console) -> None:
    console.print(f"filling a queue with {scale.latency.queued} jobs …")
    found.latencies = measure_latencies(scale.latency, work / "jobs" / "small", work / "latency")
    tables.print_latencies(found.latencies, console)


def _run_cost(found: Findings, work: Path, scale: Scale, console: Console) -> None:
    specs = sorted((work / "jobs" / "cost").iterdir())
    runs = found.costs = []
    for each in measure_costs(specs, work / "cost", interval_seconds=scale.cost_interval, repeats=scale.cost_repeats):
        runs.append(each)
        console.print(f"{'without' if each.interval_seconds is None else 'with'} checkpoints: {each.total_seconds:.1f} s")
    tables.print_costs(runs, console)


_RUNNERS = {"storm": _run_storm, "neighbour": _run_neighbour, "latency": _run_latency, "cost": _run_cost}
"""By part, in order."""


def _aims(found: Findings, scale: Scale) -> list[aims.Aim]:
    interval = found.plan.checkpoint_seconds
    reached = [] if found.verdict is None else aims.storm_aims(found.verdict, found.losses)
    reached += [] if found.neighbours is None else aims.neighbour_aims(found.neighbours, interval)
    reached += [] if found.latencies is None else aims.latency_aims(found.latencies)
    return reached + ([] if found.costs is None else aims.cost_aims(found.costs, scale.cost_interval))


def _report(settings: Settings, found: Findings) -> dict[str, Any]:
    report: dict[str, Any] = {
        "command": command_line(settings),
        "git_commit": git_commit(),
        "machine": asdict(describe_machine()),
        "versions": versions() | {name: version(name) for name in PACKAGES},
        "settings": {"scale": asdict(SCALES[settings.scale]), "storm": asdict(found.plan), "mix": MIX, "parts": settings.parts},
        "aims": [asdict(aim) | {"is_reached": aim.is_reached} for aim in _aims(found, SCALES[settings.scale])],
    }
    if found.storm is not None and found.verdict is not None:
        storm = found.storm
        report["storm"] = {
            "seconds": storm.ended - storm.began,
            "verdict": asdict(found.verdict),
            "kills": [asdict(kill) | {"time": kill.time - storm.began} for kill in storm.kills],
            "starts": [start - storm.began for start in storm.starts],
            "exit_code": storm.exit_code,
            "losses": [asdict(loss) | {"redone_intervals": loss.redone_intervals} for loss in found.losses],
        }
    if found.neighbours is not None:
        report["neighbour"] = [asdict(loss) | {"seconds": loss.seconds} for loss in found.neighbours]
    if found.latencies is not None:
        report["latency"] = asdict(found.latencies) | {"quantiles": _quantiles(found.latencies)}
    if found.costs is not None:
        ratios = cost_ratios(found.costs)
        report["cost"] = {"runs": [asdict(each) for each in found.costs], "ratio": asdict(Spread.of(ratios))}
    return report


def _quantiles(latencies: Latencies) -> dict[str, Any]:
    found = {name: Quantiles.of(seconds) for name, seconds in latencies.seconds.items()}
    return {name: asdict(each) for name, each in found.items() if each is not None}


if __name__ == "__main__":
    main()
