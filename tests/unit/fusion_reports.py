"""A report of a search that never took place, with everything in it that a report can hold."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fusion.graph.feature import Feature, Layout
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, Graph, capacities, flops, original
from fusion.search.mutation import Pair, mutate
from fusion.search.report import Entry, FusionReport, TaskEnd
from fusion.search.space import BlockInfo, Space
from fusion.timer import Timing
from tests.unit.fused_trees import step, tree_of


def a_space(tasks: tuple[str, ...], name: str = "layer") -> Space:
    """Models of three blocks; the second of them takes maps of another size in every other model."""
    picture = Feature((3, 8, 8), Layout.CHW)

    def blocks(number: int) -> tuple[BlockInfo, ...]:
        inner = Feature((4 + number % 2, 8, 8), Layout.CHW)
        features = [(picture, inner), (inner, inner), (inner, None)]
        return tuple(
            BlockInfo(name=f"{name}{op}", op_type="conv", input=takes, output=makes, capacity=100, flops=2000)
            for op, (takes, makes) in enumerate(features)
        )

    return Space(tasks=tasks, blocks=tuple(blocks(number) for number in range(len(tasks))))


def a_report(tasks: tuple[str, ...] = ("age", "mood"), *, name: str = "layer", **changes: Any) -> FusionReport:
    """One threshold with a model that shares, one with the original."""
    start = original(a_space(tasks, name))
    shared = mutate(start, Pair(BlockId(0, 1), BlockId(1, 1)))
    assert shared.adapters()
    values = {
        "best": {0.0005: entry(0.0005, start, 0, tasks), 0.02: entry(0.02, shared, 3, tasks)},
        "front": (point(0, 1.0, 0.0), point(3, 1.6, 0.015)),
        "candidates": (
            record(1, shared, "failed", [{"age": 0.5, "mood": None}]),
            record(2, shared, "skipped", []),
            record(3, shared, "accepted", [{"age": 0.015, "mood": -0.01}, {"age": 0.02, "mood": 0.0}]),
            record(4, shared, "unknown", [{"age": 1.5, "mood": 0.0}]),
        ),
        "original": {"cost": 0.004, "flops": flops(start), "parameters": capacities(start).total},
        "audit": None,
        "settings": {"metric": "latency", "barred": frozenset({"norm", "conv"}), "lr": None, "thresholds": [0.0005, 0.02]},
        "notes": ("model 'age': only 2 shareable boundaries",),
        "why": "the time was up",
        "seconds": 12.5,
        "latency_batch": 1,
    }
    return FusionReport(**(values | changes))


def entry(threshold: float, graph: Graph, number: int, tasks: tuple[str, ...]) -> Entry:
    return Entry(
        threshold=threshold,
        module=module(),
        graph=graph,
        number=number,
        tasks=tuple(
            TaskEnd(task=task, kind="accuracy", before=0.9, after=0.89, error=0.005, test_before=0.91, test_after=0.9)
            for task in tasks
        ),
        cost=0.0025,
        speedup=1.6,
        timing=Timing.of([0.002, 0.0025, 0.003]),
        original_timing=Timing.of([0.003, 0.004, 0.005]),
        flops=flops(graph),
        parameters=capacities(graph).total,
        rejected=(1,) if number else (),
        is_within=True,
    )


def module() -> FusedTree:
    return tree_of(step("b0_0", None), step("b0_1", "b0_0", "age"), step("b1_1", "b0_0", "mood"), b1_1=nn.Identity())


def point(number: int, speedup: float, drop: float) -> dict[str, Any]:
    return {
        "candidate": number, "cost": 0.004 / speedup, "speedup": speedup, "drop": drop, "drops": {"age": drop},
        "parameters": 500, "epoch": 2,
    }  # fmt: skip


def record(number: int, graph: Graph, status: str, drops: list[dict[str, float | None]]) -> dict[str, Any]:
    return {
        "number": number, "key": graph.key(), "base": None, "pairs": [[[0, 1], [1, 1]]], "graph": graph.to_json(),
        "cost": 0.0025 if number != 4 else 0.008, "parameters": 500, "status": status, "why": "had its <full> training",
        "epochs": len(drops), "given_up": None, "improved": 0,
        "checks": [{"weights": "", "drops": each, "errors": {"age": math.inf}, "epoch": 1} for each in drops],
    }  # fmt: skip
