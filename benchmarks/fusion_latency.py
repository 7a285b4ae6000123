"""T5: how well the cost table predicts the latency of fused models, on random candidates of four families.

For each family, such as three VGG-13, the table is measured once. Then candidates, each made by one to four random legal
mutations, are built and measured in turns, the original among them. Predictions are compared in seconds;
what the machine has slowed down or sped up since the table was measured, by the original's own time, is taken out, and the
error with it left in is reported beside. With one thread the clock is that thread's, see ``fusion.timer.work_clock``.

``python -m benchmarks.fusion_latency [--seed 0] [--width 8] [--batch-sizes 1 32] [--candidates 50] [--seconds 20]
[--out FILE]``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fusion_models import VGG, ResNet18, ViT
from fusion.graph.block import BlockSequence
from fusion.graph.parse import parse
from fusion.search.absgraph import Graph, original
from fusion.search.build import build, space_of
from fusion.search.flops import block_flops
from fusion.search.measuring import measure_table
from fusion.search.mutation import Sharing, mutate, pairs
from fusion.search.space import Space
from fusion.search.table import CostTable
from fusion.timer import time_interleaved, work_clock

MAX_ERROR, MIN_SPEARMAN = 0.10, 0.95
MAX_MUTATIONS = 4


class Padded(nn.Module):
    """A model of 32 x 32 pictures that takes 28 x 28 ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 1, 28, 28)`` to logits."""
        return self.model(F.pad(images, (2, 2, 2, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that are fused, and the side of the pictures that they take."""

    side: int
    models: dict[str, Callable[[], nn.Module]]


def families(width: int) -> dict[str, Family]:
    """Return the families by name; ``width`` is that of a convolutional model's first stage."""
    return {
        "3 x VGG-13": Family(side=32, models={f"vgg{n}": lambda n=n: VGG(13, width=width, classes=n) for n in (10, 4, 2)}),
        "VGG-16 + ResNet-18": Family(
            side=28,
            models={
                "vgg": lambda: Padded(VGG(16, width=width, classes=10)),
                "resnet": lambda: ResNet18(width=width, classes=2),
            },
        ),
        "VGG-13 + ResNet-18": Family(
            side=32,
            models={
                "vgg": lambda: VGG(13, width=width, classes=10),
                "resnet": lambda: ResNet18(width=3 * width // 2, classes=2),
            },
        ),
        "ViT-6 + ViT-4": Family(
            side=32,
            models={
                "large": lambda: ViT(dim=12 * width, depth=6, classes=10),
                "base": lambda: ViT(dim=8 * width, depth=4, classes=2),
            },
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How predictions and measurements of a family agree.

    Attributes:
        family: Its name.
        batch_size: Samples per run.
        num_candidates: How many were compared.
        median_error: Median of |predicted - measured| / measured, the machine's drift taken out.
        max_error: The largest one.
        median_error_with_drift: The median with the drift left in.
        spearman: Rank correlation of predicted and measured seconds.
        original_seconds: Of the original when the table was measured.
        drift: The original's time beside the candidates, over that.
        predicted: Seconds of each candidate, drift taken out.
        measured: Seconds of each candidate.
        measured_iqr: Distance of the quartiles of the measurements over their median; the median of all candidates.
        predictions_per_second: How many graphs the table can tell the cost of.
        table_seconds: What measuring the table took.
    """

    family: str
    batch_size: int
    num_candidates: int
    median_error: float
    max_error: float
    median_error_with_drift: float
    spearman: float
    original_seconds: float
    drift: float
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    measured_iqr: float
    predictions_per_second: float
    table_seconds: float


def measure(
    seed: int,
    *,
    width: int = 8,
    batch_sizes: Sequence[int] = (1, 32),
    num_candidates: int = 50,
    max_seconds: float = 20.0,
) -> dict[str, Any]:
    """Compare predictions with measurements and print a line for each target: the worst family and batch size.

    Args:
        seed: Of weights, inputs and candidates.
        width: Of the models.
        batch_sizes: Samples per run; each is measured for itself.
        num_candidates: Per family and batch size.
        max_seconds: For the candidates of one family and batch size; the table gets half as many.

    Returns:
        Raw values, by target and per family.
    """
    fits = [
        _fit(name, family, seed=seed, batch_size=batch_size, num_candidates=num_candidates, max_seconds=max_seconds)
        for name, family in families(width).items()
        for batch_size in batch_sizes
    ]
    error = max(fit.median_error for fit in fits)
    rank = min(fit.spearman for fit in fits)
    slowest = min(fit.predictions_per_second for fit in fits)
    for line in (
        _line("latency_median_error", error, "<=", MAX_ERROR),
        _line("latency_spearman", rank, ">=", MIN_SPEARMAN),
    ):
        print(line)
    return {
        "id": "T5",
        "seed": seed,
        "width": width,
        "threads": torch.get_num_threads(),
        "latency_median_error": error,
        "latency_spearman": rank,
        "predictions_per_second": slowest,
        "fits": [asdict(fit) for fit in fits],
    }


def _line(name: str, value: float, sign: str, target: float) -> str:
    is_met = value <= target if sign == "<=" else value >= target
    return f"T5 {name}={value:.4g} target{sign}{target:g} {'PASS' if is_met else 'FAIL'}"


def _fit(name: str, family: Family, *, seed: int, batch_size: int, num_candidates: int, max_seconds: float) -> Fit:
    sequences, inputs = _parsed(family, seed, batch_size)
    space = space_of(sequences, [block_flops(sequence, [inputs]) for sequence in sequences])
    begin = time.perf_counter()
    table = measure_table(
        space,
        sequences,
        [inputs],
        batch_size=batch_size,
        max_seconds=max_seconds / 2,
        generator=torch.Generator().manual_seed(seed),
    )
    table_seconds = time.perf_counter() - begin
    candidates = random_candidates(space, num_candidates, random.Random(f"{seed} {name}"))
    predicted = np.array([table.predict(graph) for graph in candidates])
    measured, drift, spread = _measured(candidates, sequences, inputs, table, max_seconds)
    errors = np.abs(predicted * drift - measured) / measured
    return Fit(
        family=name,
        batch_size=batch_size,
        num_candidates=len(candidates),
        median_error=float(np.median(errors)),
        max_error=float(errors.max()),
        median_error_with_drift=float(np.median(np.abs(predicted - measured) / measured)),
        spearman=_spearman(predicted * drift, measured),
        original_seconds=table.predict(original(space)),
        drift=drift,
        predicted=tuple((predicted * drift).tolist()),
        measured=tuple(measured.tolist()),
        measured_iqr=spread,
        predictions_per_second=_predictions_per_second(table, candidates),
        table_seconds=table_seconds,
    )


def _parsed(family: Family, seed: int, batch_size: int) -> tuple[list[BlockSequence], Tensor]:
    torch.manual_seed(seed)
    inputs = torch.randn(max(2, batch_size), 1, family.side, family.side)
    models = {name: build_model().eval() for name, build_model in family.models.items()}
    return [parse(model, inputs[:2], name=name) for name, model in models.items()], inputs


def random_candidates(space: Space, count: int, rng: random.Random) -> list[Graph]:
    """Return graphs that differ, each one to four random legal mutations away from the original."""
    found: dict[str, Graph] = {}
    while len(found) < count:
        graph = original(space)
        for _ in range(rng.randint(1, MAX_MUTATIONS)):
            legal = pairs(graph, sharing=Sharing.PARTIAL)
            if legal:
                graph = mutate(graph, rng.choice(legal))
        found.setdefault(graph.key(), graph)
    return list(found.values())


def _measured(
    candidates: Sequence[Graph], sequences: Sequence[BlockSequence], inputs: Tensor, table: CostTable, max_seconds: float
) -> tuple[np.ndarray, float, float]:
    """Return the seconds of each candidate, the machine's drift since the table, and the relative spread of the measurements.

    All take turns all the time, so that a slow spell of the machine meets each of them.
    """
    first, inputs = original(table.space), inputs[: table.conditions.batch_size]
    trees = [build(graph, sequences, seed=0).eval() for graph in (first, *candidates)]
    reference, *timings = time_interleaved(
        [lambda tree=tree: tree.run([inputs]) for tree in trees],
        max_seconds=max_seconds,
        min_runs=20,
        clock=work_clock(inputs.device),
    )
    measured = np.array([timing.quiet_seconds for timing in timings])
    spread = float(np.median([timing.iqr_seconds / timing.median_seconds for timing in timings]))
    return measured, reference.quiet_seconds / table.predict(first), spread


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def _predictions_per_second(table: CostTable, candidates: Sequence[Graph]) -> float:
    begin = time.perf_counter()
    for _ in range(20):
        for graph in candidates:
            table.predict(graph)
    return 20 * len(candidates) / (time.perf_counter() - begin)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0, help="per family and batch size")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    result = measure(
        given.seed,
        width=given.width,
        batch_sizes=given.batch_sizes,
        num_candidates=given.candidates,
        max_seconds=given.seconds,
    )
    for fit in result["fits"]:
        print(
            f"  {fit['family']}, batch {fit['batch_size']}: median error {fit['median_error']:.3f} "
            f"(max {fit['max_error']:.3f}, with drift {fit['median_error_with_drift']:.3f}), spearman {fit['spearman']:.4f}, "
            f"original {1e3 * fit['original_seconds']:.2f} ms, drift {fit['drift']:.2f}, spread {fit['measured_iqr']:.3f}, "
            f"{fit['predictions_per_second']:.0f} predictions/s, table in {fit['table_seconds']:.1f} s"
        )
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
