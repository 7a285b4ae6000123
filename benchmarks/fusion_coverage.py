"""How many kinds of model ``fusion.graph.parse`` takes apart, and whether what comes out is the model (targets C1-C7).

    python -m benchmarks.fusion_coverage --out coverage.json            # all models, about twelve minutes on two cores
    python -m benchmarks.fusion_coverage --quick --out coverage.json    # one model per family, about a minute

Prints one line per target, ``<id> <measure>=<value> target<op><number> PASS|FAIL|NOT-RUN``, and a table of families. A target
that the models at hand cannot tell of is NOT-RUN: a library is missing, or ``--quick`` left models out. Targets whose id ends
in ``+`` are of the models beyond the 52 that the design states its targets for.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fusion_coverage_checks import (
    FILED,
    TRAINED,
    FileCheck,
    TrainCheck,
    TreeCheck,
    check_boundaries,
    check_file,
    check_training,
    check_tree,
)
from benchmarks.fusion_coverage_rows import Row, examine
from benchmarks.fusion_coverage_targets import Target, family_table, targets
from benchmarks.fusion_zoo import ZooModel, zoo
from benchmarks.machine import describe_machine, git_commit, installed_versions

QUICK = ("resnet18", "convnextv2_atto", "bert", "loop_cnn", "branch_on_value")
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that was measured; None where it could not be.

    Attributes:
        rows: What came of each model.
        training: Training steps, by model.
        boundaries: For each boundary of two ResNet-18s, whether sharing there is bitwise.
        tree: The tree of three families.
        files: Models read from files.
        is_quick: Whether models were left out.
    """

    rows: tuple[Row, ...]
    training: tuple[TrainCheck, ...]
    boundaries: tuple[bool, ...] | None
    tree: TreeCheck | None
    files: tuple[FileCheck, ...]
    is_quick: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark described on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="one model per family")
    parser.add_argument("--model", action="append", help="only this model of the zoo; may be given again")
    options = parser.parse_args(argv)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # other libraries' advice on their own models
    started = time.perf_counter()
    found = measure(options.model, is_quick=options.quick)
    reached = targets(found)
    for line in (target.line for target in reached):
        print(line)
    print()
    print(family_table(found.rows))
    write(options.out, found, reached, seconds=time.perf_counter() - started)


def measure(names: Sequence[str] | None, *, is_quick: bool) -> Findings:
    """Examine the models, one at a time.

    Args:
        names: Only these; None for all.
        is_quick: Only one per family, and the smallest of the further checks.
    """
    chosen = names or (QUICK if is_quick else None)
    entries = {entry.name: entry for entry in zoo()}
    rows = [_told(examine(entry)) for entry in entries.values() if chosen is None or entry.name in chosen]

    def available(wanted: Sequence[str]) -> list[ZooModel]:
        return [entries[name] for name in wanted if entries[name].is_available and (chosen is None or name in chosen)]

    has_torchvision = importlib.util.find_spec("torchvision") is not None and names is None
    return Findings(
        rows=tuple(rows),
        training=tuple(check_training(entry) for entry in available(TRAINED)),
        boundaries=tuple(check_boundaries()) if has_torchvision else None,
        tree=check_tree() if has_torchvision and not is_quick else None,
        files=tuple(check_file(entry, is_dynamic=dynamic) for entry in available(FILED) for dynamic in (True, False)),
        is_quick=chosen is not None,
    )


def write(path: Path, found: Findings, reached: Sequence[Target], *, seconds: float) -> None:
    """Write targets, measures, versions and the machine as JSON."""
    record = {
        "benchmark": "fusion_coverage",
        "seconds": seconds,
        "versions": versions(),
        "machine": dataclasses.asdict(describe_machine()),
        "num_threads": torch.get_num_threads(),
        "commit": git_commit(),
        "targets": [{**dataclasses.asdict(target), "verdict": target.verdict} for target in reached],
        **dataclasses.asdict(found),
    }
    path.write_text(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python and of those libraries that are installed."""
    return installed_versions(_PACKAGES)


def _told(row: Row) -> Row:
    """Say on standard error how far it is."""
    print(f"{row.family}/{row.name}: {row.outcome} {row.message[:160]}", file=sys.stderr, flush=True)
    return row


def _finite(value: Any) -> Any:
    """Return a record as JSON can hold it: what is infinite becomes the text ``inf``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


if __name__ == "__main__":
    main()
