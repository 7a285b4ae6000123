"""The variants of the benchmark: built by ``unified variants``, and one after another in separate processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT
from benchmarks.serving_panels import NETWORKS, OUTPUTS, panel_data

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the variants are made; equal for all ways.

    Attributes:
        network: Of :data:`benchmarks.serving_panels.NETWORKS`.
        ratios: How much is pruned; published: 0 to 0.9 in steps of 0.1.
        train_epochs: Before pruning; published: 10.
        finetune_epochs: After it; published: 10.
        scale: Share of the 8000 panels.
    """

    network: str = "small"
    seed: int = 0
    ratios: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(10))
    train_epochs: int = 5
    finetune_epochs: int = 4
    batch_size: int = 64
    scale: float = 1.0


def prepare(recipe: Recipe, data: Path, folder: Path) -> None:
    """Write what all ways start from: panels, the untrained parent, the recipe."""
    import unified

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    parts = panel_data(data, seed=recipe.seed, scale=recipe.scale)
    for part, samples in parts.items():
        torch.save({"inputs": samples.inputs[0], "targets": dict(samples.labels)}, folder / "data" / f"{part}.pt")
    torch.save({part: (samples.inputs[0], dict(samples.labels)) for part, samples in parts.items()}, folder / "panels.pt")
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    network = NETWORKS[recipe.network](recipe.seed)
    unified.export(network, parts["train"].inputs[0][:2], folder / "parent.umodel")


def build_together(recipe: Recipe, folder: Path, systems: str, *, force: bool = False) -> float:
    """Build and profile the variants of ``systems`` by the command line; return the seconds from outside.

    Args:
        recipe: How.
        folder: That :func:`prepare` wrote; its variants are in ``variants``.
        systems: ``multi`` or ``single``.
        force: Measure those that were there before again: what is compared takes turns in one run.
    """
    options = {
        "--data": folder / "data",
        "--out": folder / "variants",
        "--name": "panels",
        "--systems": systems,
        "--ratios": ",".join(f"{ratio:g}" for ratio in recipe.ratios),
        "--seed": recipe.seed,
        "--device": "cpu",
        "--train-epochs": recipe.train_epochs,
        "--finetune-epochs": recipe.finetune_epochs,
        "--batch-size": recipe.batch_size,
    }
    given = [str(part) for option in options.items() for part in option]
    build = run_unified(["variants", "build", str(folder / "parent.umodel"), *given], folder / f"build-{systems}.log")
    profiled = ["variants", "profile", str(folder / "variants"), "--threads", "1", *(["--force"] if force else [])]
    return build + run_unified(profiled, folder / f"profile-{systems}.log")


def build_apart(recipe: Recipe, folder: Path, say: Say) -> dict[str, Any]:
    """Train the parent, then make one variant after another, each in a process of its own; return the seconds of each."""
    found: dict[str, Any] = {"parent_seconds": _run([*_CHILD, str(folder), "parent"], folder / "apart.log"), "seconds": {}}
    for tasks in ("+".join(OUTPUTS), *OUTPUTS):
        for ratio in recipe.ratios:
            name = f"{'_'.join(tasks.split('+'))}-p{100 * ratio:02.0f}"
            seconds = _run([*_CHILD, str(folder), "variant", name, tasks, str(ratio)], folder / "apart.log")
            found["seconds"][name] = seconds
            say(f"apart: {name} {seconds:.1f} s")
    found["total_seconds"] = found["parent_seconds"] + sum(found["seconds"].values())
    return found


def run_unified(arguments: list[str], log: Path) -> float:
    """Run ``unified`` and return the seconds it took."""
    return _run([sys.executable, "-m", "unified", *arguments], log)


_CHILD = [sys.executable, "-m", "benchmarks.serving_child"]


def _run(command: list[str], log: Path) -> float:
    begin = time.perf_counter()
    with log.open("ab") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[2:])} ended with {done.returncode}:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - begin
