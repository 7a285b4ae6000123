"""A report as values and as JSON: strict, whole, and readable again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NoReturn

import pytest

from fusion.search.absgraph import Graph, capacities, flops
from fusion.search.report import TaskEnd, tree_to_json
from tests.unit.fusion_reports import a_report, a_space


def strictly(text: str) -> dict:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_file_is_strict_json_with_null_for_what_is_not_finite(tmp_path: Path):
    report = a_report(
        audit={"wrongly_ended_share": math.nan, "reasons": {}}, notes=("Übersicht",), original={"cost": math.inf, "flops": 1}
    )
    report.write(tmp_path / "report.json")
    content = strictly((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(report.to_json(), default=str))
    assert content["audit"]["wrongly_ended_share"] is None
    assert content["original"]["cost"] is None
    assert content["candidates"][0]["checks"][0]["errors"]["age"] is None
    assert content["notes"] == ["Übersicht"]


def test_it_says_everything_but_modules():
    report = a_report()
    content = report.to_json()
    assert content.keys() >= {
        "best",
        "front",
        "original",
        "candidates",
        "audit",
        "settings",
        "notes",
        "why",
        "seconds",
        "versions",
    }
    assert content["settings"]["barred"] == ["conv", "norm"]
    shared = content["best"][1]
    assert (shared["threshold"], shared["candidate"], shared["speedup"], shared["rejected_on_test"]) == (0.02, 3, 1.6, [1])
    assert shared["latency"]["median_seconds"] == 0.0025
    assert [task["task"] for task in shared["tasks"]] == ["age", "mood"]
    assert shared["tasks"][0]["drop"] == pytest.approx(0.01)
    assert shared["tasks"][0]["test_drop"] == pytest.approx(0.01)
    graph = report.best[0.02].graph
    assert Graph.from_json(graph.space, shared["graph"]) == graph
    assert report.module is report.best[0.0005].module


def test_without_a_held_out_part_there_is_no_drop_on_it():
    end = TaskEnd(task="age", kind="agreement", before=1.0, after=0.98, error=0.01)
    assert end.drop == pytest.approx(0.02)
    assert end.test_drop is None


def test_the_nodes_of_the_tree_add_up_and_know_whom_they_serve():
    graph = a_report().best[0.02].graph
    nodes = tree_to_json(graph)
    ids = [node["id"] for node in nodes]
    assert len(set(ids)) == len(ids)
    assert [node["parent"] for node in nodes].count(None) == 1
    for place, node in enumerate(nodes):
        assert node["parent"] is None or ids.index(node["parent"]) < place  # each after its parent
    assert sum(node["parameters"] for node in nodes) == capacities(graph).total
    assert sum(node["flops"] for node in nodes) == flops(graph)
    kinds = {node["id"]: (node["kind"], node["task"], node["serves"]) for node in nodes}
    assert kinds["input"] == ("input", None, ["age", "mood"])
    assert kinds["0.0"] == ("conv", "age", ["age", "mood"])
    assert kinds["adapter 0.0 > 1.1"] == ("adapter", None, ["mood"])
    assert kinds["1.2"] == ("conv", "mood", ["mood"])
    assert strictly(json.dumps(nodes)) == nodes


def test_the_space_of_a_report_is_what_was_asked_for():
    assert a_space(("a", "b", "c")).blocks[1][1].input.shape == (5, 8, 8)
