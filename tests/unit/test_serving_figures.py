"""The figures of MTLsys: what they show is what selection gives, and both their files say so."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fusion.timer import Timing
from serving.errors import ServingError
from serving.figures.everything import draw_figures
from serving.figures.frontier import frontier
from serving.head_depth import DepthTiming, measure_head_depth
from serving.mishits import Residency, Setting
from serving.networks.programs import write_program
from serving.queries import Budget, Decision, Query
from serving.records import Source
from serving.selection import State, select
from serving.shared_encoder import with_deeper_heads
from serving.systems import System, part_of, view
from tests.unit.serving_tables import family_table

ALL = frozenset("abc")
PNG = b"\x89PNG\r\n\x1a\n"


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    lines = path.read_text().splitlines()
    heads = [line for line in lines if line.startswith("#")]
    return heads, list(csv.DictReader(lines[len(heads) :]))


def _depths() -> tuple[DepthTiming, ...]:
    def timing(ms: float) -> Timing:
        return Timing(median_seconds=ms / 1e3, iqr_seconds=1e-4, quiet_seconds=ms / 1e3, num_runs=9)

    removed = {"a": timing(1.5), "b": timing(2.5)}
    return tuple(DepthTiming(depth=depth, kept=timing(4.0), removed=removed) for depth in (3, 15))


def test_every_figure_is_a_picture_and_the_table_it_was_drawn_from(tmp_path):
    table = family_table()
    drawn = draw_figures(table, tmp_path / "figures", steps=5, measure=_depths)
    assert [one.figure for one in drawn.written] == [3, 4, 5, 6, 7, 8]
    assert not drawn.left_out
    for one in drawn.written:
        assert one.png.read_bytes().startswith(PNG)
        heads, rows = _rows(one.csv)
        assert rows
        assert f"# figure: {one.figure}, {one.title}" in heads
        assert "# hardware: a hand" in heads
        assert "# latency: p50 of 1 row, milliseconds" in heads
        assert {head.split(":")[0] for head in heads} == {
            "# figure", "# family", "# hardware", "# latency", "# residency", "# seeds",
        }  # fmt: skip
    tables = {one.figure: _rows(one.csv)[1] for one in drawn.written}
    for row in tables[3][:40:8]:
        system, budget = System(row["system"]), Budget(row["budget"])
        part = view(table, system)
        query = Query(tasks=ALL, latency_ms=float(row["limit_ms"]) * 1.00001, budget=budget)  # it has six digits
        found = select(query, part, Residency(row["residency"]).state(part), quantile="p50")
        assert isinstance(found, Decision)
        assert found.offer.mean_accuracy == pytest.approx(float(row["mean_score"]), rel=1e-5)
    assert [float(row["cut"]) for row in tables[4]] == [0.5, 0.5]
    grid = next(one for one in drawn.compared if one.tasks == ALL).grids[System.C, Budget.EQUAL]
    first = [float(row["mishits"]) for row in tables[5] if (row["system"], row["budget"]) == ("C", "equal")][:5]
    assert first == pytest.approx(grid.ratios)
    assert len(tables[6]) == 60
    assert {(row["source"], float(row["ratio"])) for row in tables[6]} >= {("single", 0.9), ("head_removed", 0.0)}


def test_what_the_variants_do_not_allow_is_left_out_and_said(tmp_path):
    table = part_of(family_table(), lambda variant: variant.source is Source.PRUNED)
    drawn = draw_figures(table, tmp_path, steps=3, residencies=[Residency.ALL])
    assert sorted(drawn.left_out) == [4, 6]
    assert "no profiled variants of one task alone" in drawn.left_out[6]
    assert not list(tmp_path.glob("fig6*"))
    heads, _ = _rows(tmp_path / "fig3-frontier-all-tasks.csv")
    assert "# residency: all" in heads


def test_the_frontier_of_equal_shares_is_what_each_limit_gives():
    table = view(family_table(), System.C)
    steps = frontier(table, ALL, Setting(), Budget.EQUAL)
    assert len(steps) > 5
    ends = [*[step.limit_ms for step in steps[1:]], 200.0]
    for step, end in zip(steps, ends, strict=True):
        for limit in (step.limit_ms, end - 1e-6):
            query = Query(tasks=ALL, latency_ms=limit, budget=Budget.EQUAL)
            found = select(query, table, State.all_resident(table), quantile="p50")
            assert isinstance(found, Decision)
            assert found.offer.mean_accuracy == pytest.approx(step.offer.mean_accuracy)


class _Parting(nn.Module):
    """Two tasks on one encoder; with ``is_twofold`` they share two of its tensors."""

    def __init__(self, depth: int = 2, *, is_twofold: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.a = nn.Sequential(*[nn.Linear(8, 8) for _ in range(depth - 1)], nn.Linear(8, 3))
        self.b = nn.Sequential(*[nn.Linear(8, 8) for _ in range(depth - 1)], nn.Linear(8, 1))
        self.is_twofold = is_twofold

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x)
        other = torch.tanh(features) if self.is_twofold else features
        return {"a": self.a(torch.relu(features + other)), "b": self.b(other - features if self.is_twofold else features)}


def test_head_depth_is_measured_of_networks_with_all_heads_and_with_each_alone():
    found = measure_head_depth(_Parting, (torch.randn(1, 6),), (1, 3), max_seconds=0.2)
    assert [row.depth for row in found] == [1, 3]
    for row in found:
        assert sorted(row.removed) == ["a", "b"]
        assert row.kept.num_runs > 0
        assert row.cut == pytest.approx(1 - row.removed_ms / row.kept_ms)


def test_deeper_heads_take_the_encoder_of_a_stored_network_as_it_is(tmp_path):
    examples = (torch.randn(2, 6),)
    network = _Parting()
    write_program(network, examples, tmp_path)
    made = with_deeper_heads(tmp_path, examples, hidden=5)(4)
    assert {task: tuple(output.shape) for task, output in made(*examples).items()} == {"a": (2, 3), "b": (2, 1)}
    shapes = sorted(tuple(parameter.shape) for parameter in made.parameters() if parameter.ndim == 2)
    assert shapes == sorted([(5, 8), (5, 5), (5, 5), (3, 5), (5, 8), (5, 5), (5, 5), (1, 5)])
    with torch.no_grad():
        features = made.get_submodule("encoder")(*examples)["features"]
        torch.testing.assert_close(features, network.stem(*examples), rtol=0, atol=0)
    [row] = measure_head_depth(with_deeper_heads(tmp_path, examples, hidden=5), examples, [2], max_seconds=0.1)
    assert row.depth == 2


def test_tasks_that_part_in_several_places_have_no_one_encoder(tmp_path):
    examples = (torch.randn(2, 6),)
    write_program(_Parting(is_twofold=True), examples, tmp_path)
    with pytest.raises(ServingError, match=r"branch off from one value .* they share 2"):
        with_deeper_heads(tmp_path, examples)


def test_only_networks_with_heads_to_remove_are_timed():
    examples = (torch.randn(2, 6),)
    with pytest.raises(ServingError, match="expected depths from 1"):
        measure_head_depth(_Parting, examples, ())

    class _One(_Parting):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": super().forward(x)["a"]}

    with pytest.raises(ServingError, match="at least two tasks, got one of a"):
        measure_head_depth(_One, examples, (1,))
