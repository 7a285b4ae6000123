"""What a search found, as values: models, measurements, the front, and every candidate's fate."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fusion.graph.tree import FusedTree
from fusion.search.absgraph import AdapterId, Graph
from fusion.search.history import finite
from fusion.timer import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnd:
    """How one task came out.

    Attributes:
        task: Its name.
        kind: What the score says: accuracy, agreement with the model handed in, closeness, or the caller's own.
        before: Score of the model handed in, on the validation part.
        after: Of the fused one.
        error: Standard error of the difference.
        test_before: As ``before``, on the held-out part; None without one.
        test_after: As ``after``, on the held-out part.
        test_error: As ``error``, on the held-out part.
    """

    task: str
    kind: str
    before: float
    after: float
    error: float
    test_before: float | None = None
    test_after: float | None = None
    test_error: float | None = None

    @property
    def drop(self) -> float:
        """Score lost on the validation part."""
        return self.before - self.after

    @property
    def test_drop(self) -> float | None:
        """Score lost on the held-out part."""
        return None if self.test_before is None or self.test_after is None else self.test_before - self.test_after


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """The model for one allowed drop.

    Attributes:
        threshold: The drop that is allowed.
        module: The fused model, in eval mode.
        graph: What it shares.
        number: Of the candidate, from 1; 0 is the models side by side.
        tasks: How each task came out.
        cost: Predicted, in the search's metric.
        speedup: Latency of the original over its own, measured side by side.
        timing: Its latency.
        original_timing: That of the original.
        flops: Per sample.
        parameters: Number of them.
        rejected: Numbers of faster candidates that were within the drop on the validation part and not on the held-out one.
        is_within: Whether it is within the drop on the held-out part; None without one.
    """

    threshold: float
    module: FusedTree
    graph: Graph
    number: int
    tasks: tuple[TaskEnd, ...]
    cost: float
    speedup: float
    timing: Timing
    original_timing: Timing
    flops: int
    parameters: int
    rejected: tuple[int, ...]
    is_within: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return all but the module."""
        return {
            "threshold": self.threshold,
            "candidate": self.number,
            "graph": self.graph.to_json(),
            "tree": tree_to_json(self.graph),
            "tasks": [asdict(task) | {"drop": task.drop, "test_drop": task.test_drop} for task in self.tasks],
            "predicted_cost": self.cost,
            "speedup": self.speedup,
            "latency": asdict(self.timing),
            "original_latency": asdict(self.original_timing),
            "flops": self.flops,
            "parameters": self.parameters,
            "rejected_on_test": list(self.rejected),
            "is_within": self.is_within,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusionReport:
    """What a search found.

    Attributes:
        best: The model for each threshold; at worst the models side by side, with a speedup of about 1.
        front: Points no other beats in predicted cost, drop and parameters, as JSON values, by cost.
        candidates: Every candidate's fate, in order.
        original: Cost, FLOPs and parameters of the models side by side.
        audit: Under audit, how often filters and early ends were wrong; else None.
        settings: Of the search.
        notes: What the parser and the estimators want known.
        why: What ended the search.
        seconds: That it took.
        latency_batch: Samples of one measured forward pass.
    """

    best: Mapping[float, Entry]
    front: tuple[dict[str, Any], ...]
    candidates: tuple[dict[str, Any], ...]
    original: Mapping[str, float]
    audit: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    why: str
    seconds: float
    latency_batch: int

    @property
    def module(self) -> FusedTree:
        """The model for the first threshold."""
        return next(iter(self.best.values())).module

    def to_json(self) -> dict[str, Any]:
        """Return everything but modules, as JSON values; what is not finite is null."""
        content = {
            "best": [entry.to_json() for entry in self.best.values()],
            "front": list(self.front),
            "original": dict(self.original),
            "candidates": list(self.candidates),
            "audit": None if self.audit is None else dict(self.audit),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "why": self.why,
            "seconds": self.seconds,
            "latency_batch": self.latency_batch,
            "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
            "threads": torch.get_num_threads(),
        }
        return finite(content)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(self.to_json(), indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")


def tree_to_json(graph: Graph) -> list[dict[str, Any]]:
    """Return the nodes of a graph for a picture: each with its parent, what it is, and the tasks it serves."""
    names = graph.space.tasks
    return [
        {
            "id": _label(node.id),
            "kind": node.op_type,
            "name": "" if isinstance(node.id, AdapterId) or node.id is None else graph.space.info(node.id).name,
            "task": None if isinstance(node.id, AdapterId) or node.id is None else names[node.id.task],
            "parent": _label(node.parent) if node.id is not None else None,
            "shape": None if node.output is None else list(node.output.shape),
            "parameters": node.capacity,
            "flops": node.flops,
            "serves": sorted(names[task] for task in node.tasks),
        }
        for node in graph.nodes()
    ]


def _label(node: Any) -> str:
    if node is None:
        return "input"
    if isinstance(node, AdapterId):
        return f"adapter {_label(node.source)} > {_label(node.target)}"
    return f"{node.task}.{node.op}"
