"""The stages of the benchmark of serving, each over the variants that were built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.serving_build import run_unified
from benchmarks.serving_fuzz import run_fuzz
from benchmarks.serving_panels import small_network
from benchmarks.serving_parsing import measure_parsing
from benchmarks.serving_select import measure_select
from benchmarks.serving_server import lost_in_drain, lost_in_swap, serving, write_requests
from serving.data import TaskData
from serving.drafts import Draft
from serving.head_depth import measure_head_depth
from serving.mishits import Residency, Setting, compare
from serving.profiling import profile
from serving.queries import AccuracyMode
from serving.store import VariantStore

Say = Callable[[str], None]
FAMILY = "panels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much is done.

    Attributes:
        load_seconds: Of each load.
        repeats: Of each load, batching and none in turns.
        malformed: Requests.
        steps: Of the mishit grid.
        head_seconds: Of measuring, for all depths.
    """

    load_seconds: float
    repeats: int
    malformed: int
    steps: int
    head_seconds: float


AMOUNTS = {
    "full": Amount(load_seconds=6, repeats=3, malformed=100_000, steps=20, head_seconds=60),
    "quick": Amount(load_seconds=3, repeats=1, malformed=10_000, steps=20, head_seconds=20),
    "tiny": Amount(load_seconds=0.5, repeats=1, malformed=200, steps=4, head_seconds=2),
}

#: What the clients of a load ask for, in turn, by the name of the load.
LOADS: Mapping[str, list[dict[str, Any]]] = {
    "fast": [{"tasks": "tops,shoe,first", "min_accuracy": 0.0}, {"tasks": "shoe", "min_accuracy": 0.0}],
    "accurate": [{"tasks": "tops,shoe,first", "latency_ms": 1000.0}],
}
"""``fast``: the fastest variant will do, so that what a request costs beside inference weighs most. ``accurate``: the most
accurate one, near the unpruned network."""


class Stages:
    """Measures over the variants in a folder.

    Args:
        work: Holds ``variants`` and ``data``.
        amount: Of :data:`AMOUNTS`.
    """

    def __init__(self, work: Path, amount: str) -> None:
        self.work = work
        self.amount = AMOUNTS[amount]

    def table(self, _: Say) -> dict[str, Any]:
        """Return the variants and what was measured of them."""
        store = VariantStore.open(self.work / "variants")
        table = store.table(FAMILY)
        rows = [
            {
                "name": variant.name,
                "tasks": list(variant.tasks),
                "source": str(variant.source),
                "ratio": variant.ratio,
                "achieved": dict(variant.achieved),
                "parameters": variant.num_parameters,
                "flops": variant.flops,
                "scores": dict(zip(table.family.task_names, _finite(table.scores[place]), strict=True)),
                "p50_ms": dict(zip(map(str, table.batches), table.infer_ms["p50"][place].tolist(), strict=True)),
                "p95_ms": dict(zip(map(str, table.batches), table.infer_ms["p95"][place].tolist(), strict=True)),
                "load_cold_ms": float(table.load_cold_ms[place]),
                "load_warm_ms": float(table.load_warm_ms[place]),
            }
            for place, variant in enumerate(table.variants)
        ]
        single = sum(row["source"] == "single" for row in rows)
        return {"rows": rows, "variants_single": single, "variants_mtl": len(rows) - single, "suspect": len(table.suspect)}

    def select(self, _: Say) -> dict[str, Any]:
        """Time selection."""
        return measure_select(1000)

    def mishits(self, say: Say) -> dict[str, Any]:
        """Plan the mishits of the three systems, for all tasks together and for each."""
        table = VariantStore.open(self.work / "variants").table(FAMILY)
        grids, ratios = [], {}
        names = table.family.task_names
        for residency in Residency:
            for mode in AccuracyMode:
                for tasks in (names, *((name,) for name in names)):
                    setting = Setting(residency=residency, mode=mode)
                    found = compare(table, frozenset(tasks), setting, steps=self.amount.steps)
                    mishits = {f"{system}/{budget}": grid.ratio for (system, budget), grid in found.grids.items()}
                    grids.append({"tasks": list(tasks), "residency": str(residency), "mode": str(mode), "mishits": mishits})
                    if tasks == names and mode is AccuracyMode.PER_TASK:
                        ratios[str(residency)] = found.times_fewer()
                        say(f"mishits, all tasks, {residency} resident: {mishits}")
        return {"grids": grids, "ratio_c_to_a": ratios}

    def heads(self, _: Say) -> dict[str, Any]:
        """Measure what unused heads cost, by their depth."""
        timings = measure_head_depth(
            lambda depth: small_network(depth=depth),
            (torch.randn(1, 1, 28, 112),),
            (1, 3, 5, 10, 15),
            max_seconds=self.amount.head_seconds,
        )
        rows = [
            {"depth": timing.depth, "kept_ms": timing.kept_ms, "removed_ms": timing.removed_ms, "cut": timing.cut}
            for timing in timings
        ]
        return {"rows": rows, "cut_at_15": rows[-1]["cut"]}

    def load(self, say: Say) -> dict[str, Any]:
        """Load a server at several concurrencies, with and without batching in turns."""
        runs: list[dict[str, Any]] = []
        for name, parameters in LOADS.items():
            requests = self._requests(f"{name}.requests", parameters)
            for repeat in range(self.amount.repeats):
                for batching in (True, False):
                    options = [] if batching else ["--no-batching"]
                    with serving(self.work / "variants", self.work / "server.log", "--threads", "1", *options) as server:
                        for concurrency in (1, 4, 16):
                            seen = server.load(requests, concurrency=concurrency, seconds=self.amount.load_seconds).result()
                            run = {"load": name, "repeat": repeat, "batching": batching, "concurrency": concurrency}
                            runs.append(run | _summary(seen))
                            say(f"{name}, {concurrency} clients, {'batching' if batching else 'none'}: {_spoken(runs[-1])}")
        return {"runs": runs, "read_ms": self._read_ms()} | _judged(runs)

    def _read_ms(self) -> dict[str, float]:
        """Return what reading a request takes, by how tensors are sent."""
        family = VariantStore.open(self.work / "variants").family(FAMILY)
        return {
            name: measure_parsing(self._requests(f"{name}.requests", LOADS["fast"], binary=binary), family)
            for name, binary in (("json", False), ("binary", True))
        }

    def drain(self, _: Say) -> dict[str, Any]:
        """Stop a server under load."""
        return lost_in_drain(self.work / "variants", self._requests("drain.requests", LOADS["fast"]), self.work / "server.log")

    def swap(self, _: Say) -> dict[str, Any]:
        """Replace a variant that is in use under load."""
        requests = self._requests("swap.requests", LOADS["fast"])
        return lost_in_swap(self.work / "variants", requests, self.work / "server.log", self._replace_fastest)

    def fuzz(self, _: Say) -> dict[str, Any]:
        """Send malformed requests."""
        with serving(self.work / "variants", self.work / "server.log") as server:
            return run_fuzz(f"http://127.0.0.1:{server.port}", self.amount.malformed, pid=server.process.pid)

    def figures(self, _: Say) -> list[str]:
        """Draw the paper's figures 3 to 8."""
        out = self.work / "figures"
        command = ["variants", "figures", str(self.work / "variants"), "--out", str(out)]
        run_unified(command, self.work / "figures.log")
        return sorted(path.name for path in out.iterdir())

    def _requests(self, name: str, parameters: list[dict[str, Any]], *, binary: bool = True) -> Path:
        inputs = torch.load(self.work / "data" / "test.pt", weights_only=True)["inputs"][:64]
        input_name = VariantStore.open(self.work / "variants").family(FAMILY).inputs[0].name
        return write_requests(self.work / name, inputs, parameters, binary=binary, name=input_name)

    def _replace_fastest(self) -> None:
        """Put a copy of the fastest variant, its weights hardly changed, in its place."""
        store = VariantStore.open(self.work / "variants")
        fastest = store.table(FAMILY).variants[0]
        module = store.load(fastest.id)
        with torch.no_grad():
            next(module.buffers()).mul_(1 + 1e-6)
        draft = Draft(name=f"{fastest.name}-new", module=module, tasks=fastest.tasks, source=fastest.source,
                      ratio=fastest.ratio, achieved=fastest.achieved)  # fmt: skip
        store.add(draft, store.examples(FAMILY), family=FAMILY)
        validation = store.validation(FAMILY)
        assert isinstance(validation, TaskData), "the command line keeps validation data"
        profile(store, FAMILY, validation, threads=1)
        store.remove(fastest.id)


def _finite(scores: np.ndarray) -> list[float | None]:
    return [None if np.isnan(score) else float(score) for score in scores]


def _summary(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a load comes to."""
    seconds = np.array(seen["seconds"] or [np.nan])
    predicted, measured = np.array(seen["predicted_ms"] or [np.nan]), np.array(seen["measured_ms"] or [np.nan])
    return {
        "per_second": len(seen["seconds"]) / seen["elapsed"],
        "p50_ms": float(np.median(seconds) * 1e3),
        "p99_ms": float(np.percentile(seconds, 99) * 1e3),
        "measured_p50_ms": float(np.median(measured)),
        "prediction_error": float(np.median(np.abs(measured - predicted) / predicted)),
        "batch_rows": float(np.mean(seen["batch_rows"] or [np.nan])),
        "late": seen["late"],
        "lost": seen["lost"],
        "statuses": seen["statuses"],
    }


def _spoken(run: Mapping[str, Any]) -> str:
    rate, p50, p99, rows = (run[name] for name in ("per_second", "p50_ms", "p99_ms", "batch_rows"))
    return f"{rate:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {rows:.1f} rows a batch"


def _judged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the throughput of batching over none in the same repeat, and how far predictions were off."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run["batching"]:
            pair = next(other for other in runs if other == {**other, "batching": False, **_place(run)})
            ratios.setdefault(run["load"], {}).setdefault(str(run["concurrency"]), []).append(
                run["per_second"] / pair["per_second"]
            )
    errors = [run["prediction_error"] for run in runs if run["batching"] and run["concurrency"] == 1]
    return {
        "ratios": ratios,
        "throughput_ratio": {concurrency: median(values) for concurrency, values in ratios["fast"].items()},
        "prediction_error": median(errors),
    }


def _place(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("load", "repeat", "concurrency")}
