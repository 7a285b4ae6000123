"""Fusion against the paper's search and simple baselines; prints a line per target, writes FILE.json and FILE.png.

``python -m benchmarks.fusion [ID …] [--quick] [--seeds 0 1 2] [--seconds N] [--data DIR] --out FILE.json``. On every task set
and with every seed the models are trained once; then each contender searches with the same wall-clock budget, one after another
in an order drawn by the seed, and all finalists are measured in turns in one process. Targets are those of the design: ``<id>
<measure>=<value> target<op><number> PASS|FAIL|NOT-RUN``. Without an ID all are looked at, C1 to C7 on a few models only; named,
on the whole zoo.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import fusion_aims as aims
from benchmarks.fusion_aims import COMPARED, HETEROGENEOUS, IDS
from benchmarks.fusion_audit import AuditPlan, run_audit
from benchmarks.fusion_coverage_targets import Target
from benchmarks.fusion_jobs import (
    NOT_COVERED,
    CountPlan,
    Findings,
    Job,
    LatencyPlan,
    results_of,
    run_coverage,
    run_kills,
    run_latency,
    run_passes,
)
from benchmarks.fusion_latency import MAX_ERROR, MIN_SPEARMAN
from benchmarks.fusion_plot import draw
from benchmarks.fusion_records import THRESHOLDS, Contender, Unit
from benchmarks.fusion_runs import BASELINES, GUIDED, PAPER, REFERENCES, SETS, UnitPlan, config_of, run_unit
from benchmarks.fusion_tables import print_units, summaries
from benchmarks.fusion_tasks import SCALES
from benchmarks.machine import describe_machine, git_commit, versions

SECONDS = {"full": 32.0, "quick": 12.0, "tiny": 5.0}
SEEDS = {"full": (0, 1, 2), "quick": (0,), "tiny": (0,)}
DEFAULT_SETS = {"full": SETS, "quick": ("vgg", "mixed", "text"), "tiny": SETS}
WORKERS = 2
UNIFORM, MIXED = "vgg", HETEROGENEOUS


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much is done beside the searches.

    Attributes:
        starts: Merges with one adapter, per seed.
        audited: Candidates of an audit, per seed.
        kills: Of searches, per seed.
        passes: Random mutation passes for each number of tasks.
        latency: Candidates whose latency is measured and predicted.
        compared: Thresholds that the reference searches for on the sets other than that of T10.
    """

    starts: int
    audited: int
    kills: int
    passes: int
    latency: LatencyPlan
    compared: tuple[float, ...]


AMOUNTS = {
    "full": Amounts(
        starts=12, audited=12, kills=4, passes=60,
        latency=LatencyPlan(seed=0, width=8, batch_sizes=(1, 32), candidates=50, seconds=6.0),
        compared=COMPARED,
    ),
    "quick": Amounts(
        starts=6, audited=6, kills=3, passes=20,
        latency=LatencyPlan(seed=0, width=8, batch_sizes=(1,), candidates=20, seconds=2.0),
        compared=COMPARED[:1],
    ),
    "tiny": Amounts(
        starts=2, audited=3, kills=1, passes=3,
        latency=LatencyPlan(seed=0, width=4, batch_sizes=(1,), candidates=4, seconds=0.4),
        compared=COMPARED[:1],
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be run.

    Attributes:
        ids: Of targets, out of :data:`~benchmarks.fusion_aims.IDS`.
        is_named: Whether they were named on the command line.
        scale: ``full``, ``quick`` or ``tiny`` (for tests).
        seeds: Of teachers and searches.
        seconds: Budget of each search.
        sets: Task sets out of :data:`~benchmarks.fusion_runs.SETS`.
        threads: Of PyTorch, in every process.
        workers: Sets and seeds that are run side by side, each in a process with cores of its own.
        samples: Of the training part, that searches see; None: all.
        data: Folder of real data, or None for made-up data.
        out: The JSON file; the plot goes beside it.
    """

    ids: tuple[str, ...]
    is_named: bool
    scale: str
    seeds: tuple[int, ...]
    seconds: float
    sets: tuple[str, ...]
    threads: int
    workers: int
    samples: int | None
    data: Path | None
    out: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark described on the command line."""
    run(read_settings(argv), Console(width=None if sys.stdout.isatty() else 160))


def read_settings(argv: Sequence[str] | None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"targets, of {', '.join(IDS)}; default: all")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="fewer samples, 12 s a search, one seed: under 4 minutes")
    parser.add_argument("--scale", choices=tuple(SECONDS), help="instead of --quick")
    parser.add_argument("--seeds", type=int, nargs="+", help="of models and searches (default: 0 1 2)")
    parser.add_argument("--seconds", type=float, help="budget of each search (default: 32)")
    parser.add_argument("--set", action="append", choices=SETS, help="only this task set; may be given again")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, in every process")
    parser.add_argument("--workers", type=int, help=f"sets and seeds side by side (default: {WORKERS}, if there are the cores)")
    parser.add_argument("--samples", type=int, help="of the training part, that searches see (default: all)")
    parser.add_argument("--data", type=Path, help="folder of real data; default: $UNIFIED_DATA, else made-up data")
    options = parser.parse_args(argv)
    unknown = [name for name in options.ids if name not in IDS]
    if unknown:
        parser.error(f"expected ids of {', '.join(IDS)}; got {', '.join(unknown)}")
    scale = options.scale or ("quick" if options.quick else "full")
    named_data = options.data or os.environ.get("UNIFIED_DATA")
    cores = len(os.sched_getaffinity(0))
    return Settings(
        ids=tuple(name for name in IDS if not options.ids or name in options.ids),
        is_named=bool(options.ids),
        scale=scale,
        seeds=tuple(options.seeds or SEEDS[scale]),
        seconds=options.seconds or SECONDS[scale],
        sets=tuple(name for name in SETS if name in (options.set or DEFAULT_SETS[scale])),
        threads=options.threads,
        workers=options.workers or max(1, min(WORKERS, cores // options.threads)),
        samples=options.samples,
        data=Path(named_data).resolve() if named_data else None,
        out=options.out,
    )


def run(settings: Settings, console: Console) -> None:
    """Run the benchmark; what is known is written after each part."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    load_before, began = os.getloadavg()[0], time.monotonic()
    found = Findings()
    for job in results_of(jobs_of(settings), found, workers=settings.workers, threads=settings.threads):
        told = {"load_before": load_before, "seconds": time.monotonic() - began}
        settings.out.write_text(json.dumps(_finite(_report(settings, found) | told), indent=1, allow_nan=False) + "\n")
        console.print(f"{told['seconds']:.0f} s: {job.title}", highlight=False)
    found.units.sort(key=lambda unit: (settings.sets.index(unit.set), unit.seed))
    print_units(found.units, console)
    for failure in found.failures:
        console.print(failure, markup=False)
    for target in targets(settings, found):
        print(target.line)
    draw(found.units, settings.seconds, settings.out.with_suffix(".png"))
    console.print(f"written: {settings.out}" + (" and the plot beside it" if found.units else ""))


def jobs_of(settings: Settings) -> list[Job]:
    """Return what is to be done, the longest first."""
    seeds, amount, threads = settings.seeds, AMOUNTS[settings.scale], settings.threads
    found = [
        Job(title=f"{plan.set}, seed {plan.seed}", kind="units", function=run_unit, argument=plan)
        for name in settings.sets
        for seed in seeds
        if (plan := _unit_plan(settings, name, seed)).contenders
    ]
    if "T8" in settings.ids:
        plans = [AuditPlan(seed=seed, candidates=amount.audited, data=settings.data, threads=threads) for seed in seeds]
        found += [Job(title=f"audit, seed {plan.seed}", kind="audits", function=run_audit, argument=plan) for plan in plans]
    for name, kind, function, count in (("T9", "kills", run_kills, amount.kills), ("T7", "passes", run_passes, amount.passes)):
        if name in settings.ids:
            plans = [CountPlan(seed=seed, count=count, threads=threads) for seed in (seeds if name == "T9" else seeds[:1])]
            found += [Job(title=f"{kind}, seed {plan.seed}", kind=kind, function=function, argument=plan) for plan in plans]
    if any(name.startswith("C") for name in settings.ids) and (settings.is_named or settings.scale == "full"):
        found.append(Job(title="coverage", kind="coverage", function=run_coverage, argument=not settings.is_named))
    if "T5" in settings.ids:
        plan = replace(amount.latency, seed=seeds[0])
        found.append(Job(title="latency", kind="latency", function=run_latency, argument=plan, is_alone=True))
    return found


def _unit_plan(settings: Settings, name: str, seed: int) -> UnitPlan:
    """Return what is searched on a set: what the targets that were asked for need of it."""
    wanted = set(settings.ids)
    is_compared = bool(wanted & {"T1", "T2", "T3"}) or ("T4" in wanted and name == MIXED)
    contenders: list[Contender] = []
    is_front = "T10" in wanted and name == UNIFORM
    if is_compared or is_front:
        thresholds = THRESHOLDS if is_front else COMPARED if name == UNIFORM else AMOUNTS[settings.scale].compared
        contenders += [GUIDED, *(each for each in REFERENCES if each.thresholds[0] in thresholds)]
    if "T2" in wanted and name == UNIFORM:
        contenders.append(PAPER)
    if "T1" in wanted:
        contenders += BASELINES
    return UnitPlan(
        set=name,
        seed=seed,
        scale=settings.scale,
        seconds=settings.seconds,
        samples=settings.samples,
        contenders=tuple(contenders),
        num_starts=AMOUNTS[settings.scale].starts if "T4" in wanted and name == MIXED else 0,
        data=settings.data,
        threads=settings.threads,
    )


def targets(settings: Settings, found: Findings) -> list[Target]:
    """Return every target that was asked for, in order."""
    by_id = {
        "T1": aims.speed_aims(found.units),
        "T2": aims.time_aims(found.units),
        "T3": aims.training_aims(found.units),
        "T4": aims.mixed_aims(found.units),
        "T5": aims.latency_aims(found.latency, max_error=MAX_ERROR, min_spearman=MIN_SPEARMAN),
        "T7": aims.pass_aims(found.passes),
        "T8": aims.audit_aims(found.audits),
        "T9": aims.resume_aims(found.kills),
        "T10": aims.front_aims(found.units),
        "T11": aims.published_aims(),
    }
    return [target for name in settings.ids for target in (by_id[name] if name in by_id else found.covered(name))]


def command_line(settings: Settings) -> str:
    """Return the command that repeats the run, without the places of this machine's files."""
    parts = ["python -m benchmarks.fusion", *(settings.ids if settings.is_named else ())]
    parts += [f"--scale {settings.scale}", f"--seconds {settings.seconds:g}"]
    parts += [f"--threads {settings.threads}", f"--workers {settings.workers}"]
    parts += [f"--set {name}" for name in settings.sets if settings.sets != DEFAULT_SETS[settings.scale]]
    parts += [f"--samples {settings.samples}"] if settings.samples else []
    parts += ["--data $UNIFIED_DATA"] if settings.data is not None else []
    seeds = " ".join(map(str, settings.seeds))
    return " ".join([*parts, f"--seeds {seeds}", f"--out {settings.out.name}"])


def _report(settings: Settings, found: Findings) -> dict[str, Any]:
    plans = [job.argument for job in jobs_of(settings) if isinstance(job.argument, UnitPlan)]
    searches = {contender: plan for plan in reversed(plans) for contender in plan.contenders}
    return {
        "command": command_line(settings),
        "git_commit": git_commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": {
            "ids": settings.ids,
            "scale": asdict(SCALES[settings.scale]),
            "amounts": asdict(AMOUNTS[settings.scale]),
            "seeds": settings.seeds,
            "seconds": settings.seconds,
            "sets": settings.sets,
            "threads": settings.threads,
            "workers": settings.workers,
            "samples": settings.samples,
            "has_real_data": settings.data is not None,
            "searches": {
                contender.title: config_of(plan, contender, has_labels=True).identity() for contender, plan in searches.items()
            },
        },
        "targets": [asdict(target) | {"verdict": target.verdict} for target in targets(settings, found)],
        "summaries": [asdict(each) for each in summaries(found.units)],
        "units": [_unit(unit) for unit in found.units],
        "audits": [asdict(audit) for audit in found.audits],
        "passes": [asdict(each) for each in found.passes],
        "kills": [asdict(kill) for kill in found.kills],
        "failures": found.failures,
        "latency": found.latency,
        "coverage": asdict(found.coverage) if found.coverage is not NOT_COVERED else None,
    }


def _unit(unit: Unit) -> dict[str, Any]:
    record = asdict(unit)
    for search, content in zip(unit.searches, record["searches"], strict=True):
        for end, ended in zip(search.ends, content["ends"], strict=True):
            ended["is_over"] = end.is_over
    return record


def _finite(value: Any) -> Any:
    """Return a record as JSON can hold it: what is infinite becomes the text ``inf``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


if __name__ == "__main__":
    main()
