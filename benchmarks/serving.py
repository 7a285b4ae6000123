"""Serving of variants: built together, profiled, selected, loaded; prints a line per target, writes FILE.json and FILE.png.

``python -m benchmarks.serving [--quick] [--only ID …] [--data DIR] --out FILE.json``. On Fashion-MNIST panels with three tasks
(:mod:`benchmarks.serving_panels`): the 40 variants of the multi-task system by ``unified variants``, and one after another in
separate processes; the 30 of the single-task system; planned mishits of the three systems; what unused heads cost; selection
among 1,000 variants; a server under load with and without batching, while it drains, while variants change, and against
malformed requests. Targets are those of the design: ``<id> <measure>=<value> target<op><number> PASS|FAIL|NOT-RUN``; any FAIL
gives exit status 1. What was found is written after each stage. ``--work DIR`` keeps the variants; a later run with
the same DIR uses those there, and adds to what FILE.json has of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import describe_machine, git_commit, installed_versions
from benchmarks.serving_aims import aims
from benchmarks.serving_build import Recipe, build_apart, build_together, prepare
from benchmarks.serving_panels import NETWORKS
from benchmarks.serving_plot import draw
from benchmarks.serving_stages import Stages
from benchmarks.serving_tables import print_found
from benchmarks.tensors import find_folder

PACKAGES = ("torch", "torch-pruning", "numpy", "fastapi", "uvicorn")
#: Of which targets each stage finds something.
STAGES = {
    "build": {"V1"},
    "select": {"V2"},
    "mishits": {"V4"},
    "heads": {"V5"},
    "load": {"V3", "V7"},
    "drain": {"V6"},
    "swap": {"V6"},
    "fuzz": {"V6"},
    "figures": {"V8"},
}
IDS = tuple(f"V{number}" for number in range(1, 9))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark described on the command line; return the exit status."""
    options = _read(argv)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    data = find_folder(options.data, "fashion-mnist")
    if data is None:
        console.print("NOT-RUN: no folder 'fashion-mnist' with the four IDX files; give its parent by --data")
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="variants-") as temporary:
        found = _run(options, data.parent, Path(options.work or temporary), console)
    judged = [target for target in aims(found["found"]) if target.id in options.only]
    print_found(found["found"], judged, console)
    draw(found["found"], options.out.with_suffix(".png"))
    console.print(f"written to {options.out}")
    return int(any(target.verdict == "FAIL" for target in judged))


def _run(options: argparse.Namespace, data: Path, work: Path, console: Console) -> dict[str, Any]:
    run = {
        "command": f"python -m benchmarks.serving {' '.join(options.given)}",
        "commit": git_commit(),
        "load_average_before": os.getloadavg()[0],
    }
    before = json.loads(options.out.read_text()) if (work / "variants").exists() and options.out.exists() else {}
    content: dict[str, Any] = {
        "machine": asdict(describe_machine()),
        "versions": installed_versions(PACKAGES),
        "recipe": asdict(options.recipe),
        "runs": [*before.get("runs", []), run],
        "found": before.get("found", {}),
    }
    begin = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"[{time.perf_counter() - begin:6.0f} s] {line}", markup=False)

    _variants(options, data, work, content["found"], say)
    stages = Stages(work, options.amount)
    for stage, ids in STAGES.items():
        if ids & set(options.only) and stage != "build":
            say(f"{stage} …")
            content["found"][stage] = getattr(stages, stage)(say)
        _write(content, options.out)
    return content


def _variants(options: argparse.Namespace, data: Path, work: Path, found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Make the variants, unless they are there; measure how long that takes, and what it takes otherwise."""
    recipe = options.recipe
    if (work / "variants").exists() and "V1" not in options.only:
        return
    say("panels …")
    prepare(recipe, data, work)
    seconds = build_together(recipe, work, "multi")
    say(f"the multi-task system, built together and profiled: {seconds:.0f} s")
    apart = build_apart(recipe, work, say) if "V1" in options.only else None
    singles = build_together(recipe, work, "single", force=True)
    say(f"the single-task system, and all profiled in turns: {singles:.0f} s")
    found["build"] = Stages(work, options.amount).table(say)
    if apart is not None:
        times = {"seconds": seconds, "single_seconds": singles, "build_speedup": apart["total_seconds"] / seconds}
        found["build"] |= {"apart": apart, **times}


def _write(content: dict[str, Any], out: Path) -> None:
    targets = [{**asdict(target), "verdict": target.verdict} for target in aims(content["found"])]
    out.write_text(json.dumps({**content, "targets": targets}, indent=1) + "\n")


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the panels, a pass each, shorter loads: some minutes")
    parser.add_argument("--tiny", action="store_true", help="three ratios, hardly any training, to see that it works")
    parser.add_argument("--only", nargs="+", choices=IDS, default=list(IDS), metavar="ID", help=f"of {', '.join(IDS)}")
    parser.add_argument("--encoder", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of fashion-mnist; default: $UNIFIED_DATA")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where variants are kept (default: nowhere)")
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(given)
    options.given = given
    if options.data is None and "UNIFIED_DATA" in os.environ:
        options.data = Path(os.environ["UNIFIED_DATA"])
    recipe = Recipe(network=options.encoder, seed=options.seed)
    if options.quick:
        recipe = replace(recipe, train_epochs=2, finetune_epochs=1, scale=0.25)
    if options.tiny:
        recipe = replace(recipe, train_epochs=1, finetune_epochs=0, scale=0.02, ratios=(0.0, 0.5))
    options.recipe = recipe
    options.amount = "tiny" if options.tiny else "quick" if options.quick else "full"
    return options


if __name__ == "__main__":
    sys.exit(main())
