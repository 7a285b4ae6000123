"""Pruning-aware merging against pruning alone and zipping; prints a line per target, writes FILE.json and FILE.png.

``python -m benchmarks.merging [--quick] [--only ID …] [--seeds 0 1 2] [--network NAME] [--data DIR] --out FILE.json``. For
every seed and pruning method the single networks (trained once, kept in a cache) are pruned alone (B1), zipped and pruned (B2),
and merged and pruned (PAM) by one loop with the same floors and steps; held-out panels are looked at in the end. Targets are
those of the design: ``<id> <measure>=<value> target<op><number> PASS|FAIL|NOT-RUN``; any FAIL gives exit status 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import describe_machine, git_commit, versions
from benchmarks.merging_aims import aims
from benchmarks.merging_data import load_items
from benchmarks.merging_estimator import estimator_figures
from benchmarks.merging_models import NETWORKS
from benchmarks.merging_plot import draw
from benchmarks.merging_runs import Plan, run_plan
from benchmarks.merging_singles import Recipe
from benchmarks.merging_studies import inclusion, relatedness
from benchmarks.merging_tables import print_runs, print_studies
from benchmarks.tensors import find_folder

IDS = ("M1", "M2", "M3", "M4", "M5", "M6")
METHODS = ("taylor", "vib")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark described on the command line; return the exit status."""
    options = _read(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    data = find_folder(options.data, "fashion-mnist")
    plans = [] if data is None else _plans(options, data.parent)
    if data is None:
        console.print("NOT-RUN: no folder 'fashion-mnist' with the four IDX files; give its parent by --data")
    estimator = None
    if {"M1", "M2"} & set(options.only):
        torch.set_num_threads(1)
        estimator = estimator_figures()
    runs = _run_all(plans, options.workers, console)
    studies = None if data is None or not options.studies else study(data.parent, options)
    found = [target for target in aims(runs, estimator) if target.id in options.only or target.value is None]
    print_runs(runs, found, console)
    if studies is not None:
        print_studies(studies, console)
    content = {
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "commit": git_commit(),
        "command": f"python -m benchmarks.merging {' '.join(sys.argv[1:] if argv is None else argv)}",
        "estimator": estimator,
        "runs": runs,
        "studies": studies,
        "targets": [{**asdict(target), "verdict": target.verdict} for target in found],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    if runs:
        draw(runs, options.out.with_suffix(".png"))
    console.print(f"written to {options.out}")
    return int(any(target.verdict == "FAIL" for target in found))


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="one seed, Taylor alone, less training: about five minutes")
    parser.add_argument("--tiny", action="store_true", help="hardly any training, to see that it works")
    parser.add_argument("--only", nargs="+", choices=IDS, default=list(IDS), metavar="ID", help=f"of {', '.join(IDS)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="of panels and networks (default: 0 1 2)")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="lenet5")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="of pruning (default: both; ResNets: taylor)")
    parser.add_argument(
        "--studies", action="store_true", help="also count shared neurons by relatedness, and for included tasks"
    )
    parser.add_argument(
        "--workers", type=int, default=max(1, len(os.sched_getaffinity(0))), help="runs side by side, a thread each"
    )
    parser.add_argument("--data", type=Path, help="folder of fashion-mnist; default: $UNIFIED_DATA")
    parser.add_argument("--cache", type=Path, help="folder of trained single networks (default: beside FILE.json)")
    options = parser.parse_args(argv)
    if options.data is None and "UNIFIED_DATA" in os.environ:
        options.data = Path(os.environ["UNIFIED_DATA"])
    options.cache = options.cache or options.out.parent / "singles"
    is_short = options.quick or options.tiny
    options.seeds = options.seeds or ([0] if is_short else [0, 1, 2])
    options.methods = options.methods or (["taylor"] if is_short or options.network == "resnet18" else list(METHODS))
    return options


def study(data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Count how neurons are grouped for pairs of related tasks, and where one task is a part of the other."""
    torch.set_num_threads(1)
    items, recipe = load_items(data), Recipe(epochs=1 if options.tiny else 8)
    settings = {"seed": options.seeds[0], "folder": options.cache}
    return {"relatedness": relatedness(items, recipe, **settings), "inclusion": inclusion(items, recipe, **settings)}


def _plans(options: argparse.Namespace, data: Path) -> list[Plan]:
    amounts: dict[str, Any] = {"epochs": 40, "panels": 24_000, "alphas": (0.02, 0.1), "steps": 100, "lr": 2e-3}
    if options.quick:
        amounts |= {"epochs": 8, "panels": 16_000, "alphas": (0.02,), "steps": 60}
    if options.tiny:
        amounts |= {"epochs": 1, "panels": 256, "alphas": (0.02,), "steps": 2, "max_drop": 0.0, "judged": 100}
    common = {"network": options.network, "data": data, "cache": options.cache} | amounts
    plans = [
        Plan(tasks="two", seed=seed, method=method, **common)
        for method in options.methods
        for seed in options.seeds
        if {"M3", "M4", "M5"} & set(options.only)
    ]
    if "M6" in options.only and options.network == "lenet5":
        shorter = common | {"epochs": min(8, common["epochs"]), "alphas": (0.2,), "steps": min(60, common["steps"])}
        plans.append(Plan(tasks="three", seed=options.seeds[0], method="taylor", **shorter))
    return plans


def _run_all(plans: Sequence[Plan], workers: int, console: Console) -> list[dict[str, Any]]:
    """Run plans side by side, and return what they found in their order."""
    found: dict[int, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=max(1, min(workers, len(plans))), mp_context=context) as pool:
        waiting = {pool.submit(run_plan, plan): number for number, plan in enumerate(plans)}
        for done in as_completed(waiting):
            number = waiting[done]
            found[number] = done.result()
            plan, run = plans[number], found[number]
            console.print(
                f"{len(found)}/{len(plans)} {plan.name}: singles {run['single_seconds']:.0f} s, "
                f"the rest {run['merge_seconds']:.0f} s",
                highlight=False,
            )
    return [found[number] for number in range(len(plans))]


if __name__ == "__main__":
    sys.exit(main())
