"""What people see of a merge: lines, JSON, a live view, the table at the end; and options that say what there is."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from fusion.merging.progress import AlphaTried, Event, Finished, RoundEnded, StageBegan, Started
from fusion.merging.pruning import Method
from fusion.merging.records import OURS
from tests.unit.merging_reports import a_report, shared_in_part, united
from unified import merge_parser
from unified.cli import build_parser
from unified.errors import UnifiedError
from unified.merging.session import Merged
from unified.merging.settings import make_settings
from unified.merging.tables import end_lines, end_table
from unified.merging.views import MergeLive, merge_lines

SCORES = {"digit": 0.97, "parity": 0.985}
FLOPS = {("digit",): 1_000_000, ("parity",): 900_000, ("digit", "parity"): 1_500_000}
STORY: tuple[Event, ...] = (
    Started(
        tasks=("digit", "parity"),
        scores=SCORES,
        floors={"digit": 0.96, "parity": 0.975},
        flops=4_000_000,
        layers=("conv1", "fc1"),
        notes=("fc2: nothing corresponds",),
    ),
    StageBegan(what="merging and pruning with alpha 0.1", number=1, num_stages=2, seconds=1.0),
    RoundEnded(scheme="PAM", network=("digit", "parity"), number=1, scores=SCORES, flops=FLOPS, is_feasible=False, seconds=2.0),
    AlphaTried(alpha=0.1, flops=FLOPS, scores=SCORES, cost=1.1e6, is_feasible=True, seconds=3.0),
    StageBegan(what="measuring", number=2, num_stages=2, seconds=3.0),
    Finished(alpha=math.inf, is_feasible=True, seconds=4.0),
)


def test_plain_lines_tell_the_story():
    stream = io.StringIO()
    with merge_lines(stream, as_json=False) as tell:
        for event in STORY:
            tell(event)
    assert stream.getvalue().splitlines() == [
        "2 models: digit 97.00%, parity 98.50%; together 4 MFLOP",
        "floors: digit 96.00%, parity 97.50%",
        "2 layers can be shared: conv1, fc1",
        "note: fc2: nothing corresponds",
        "     1.0 s  merging and pruning with alpha 0.1 (1 of 2)",
        "     2.0 s  PAM digit+parity round 1: 1.5 MFLOP, digit 97.00%, parity 98.50%; not good enough",
        "     3.0 s  alpha 0.1: digit 1 MFLOP, parity 900 kFLOP, digit+parity 1.5 MFLOP, digit 97.00%, parity 98.50%",
        "     3.0 s  measuring (2 of 2)",
        "     4.0 s  done with alpha inf: every task is good enough",
    ]


def test_json_lines_are_strict_json_of_every_field():
    stream = io.StringIO()
    with merge_lines(stream, as_json=True) as tell:
        for event in STORY:
            tell(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in STORY]
    assert [set(line) for line in lines] == [{"event", *event.__dataclass_fields__} for event in STORY]
    assert lines[2]["flops"]["digit+parity"] == 1_500_000
    assert lines[-1]["alpha"] is None


def test_the_live_view_shows_stage_alphas_and_rounds_and_leaves_nothing_behind():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    view = MergeLive(console)
    with view as tell:
        for event in STORY[:4]:
            tell(event)
        drawn = Console(file=io.StringIO(), width=120)
        drawn.print(view.drawn())
    text = drawn.file.getvalue()
    assert all(part in text for part in ("merging and pruning with alpha 0.1", "undone", "good enough", "digit+parity"))


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_the_table_at_the_end_has_a_line_for_each_combination_and_network(num_tasks):
    report = a_report(num_tasks)
    console = Console(file=io.StringIO(), width=160)
    console.print(end_table(report))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1 + len(report.schemes) * (2**num_tasks - 1)
    assert any(line.startswith("A+B ") for line in lines)


def test_what_is_said_below_names_what_is_not_good_enough():
    report = a_report()
    merged = Merged(network=shared_in_part(united()), report=report, folder=Path("out"), notes=("of the data",))
    said = end_lines(merged, 1)
    assert {"note: a note", "note: of the data"} <= set(said)
    assert said[-1] == "the merged model and report.html are in out"
    assert not any("good enough" in line for line in said)
    worse = replace(report.schemes[OURS], is_feasible=False)
    said = end_lines(replace(merged, report=replace(report, schemes=report.schemes | {OURS: worse})), 1)
    assert any("not every task is good enough" in line for line in said)


def test_a_baseline_is_judged_by_its_floors_before_its_flops():
    report = a_report()
    merged = Merged(network=shared_in_part(united()), report=report, folder=None)

    def said(name: str, average: float, peak: float, *, is_feasible: bool) -> str:
        schemes = report.schemes | {name: replace(report.schemes[name], is_feasible=is_feasible)}
        gains = {name: replace(report.gains[name], average=average, peak=peak)}
        return "\n".join(end_lines(replace(merged, report=replace(report, schemes=schemes, gains=gains)), 1))

    assert "B1: pruned alone takes fewer FLOPs here, for every combination" in said("B1", 0.5, 0.9, is_feasible=True)
    assert "for the average of the combinations" in said("B1", 0.5, 1.1, is_feasible=True)
    assert "falls below a floor" in said("B1", 0.5, 0.9, is_feasible=False)
    assert "did not pay" not in said("B1", 0.5, 0.9, is_feasible=False) + said("B1", 1.2, 1.4, is_feasible=True)


def test_options_name_what_there_is():
    assert set(merge_parser.PRUNE) == {*get_args(Method), "none"}
    options = build_parser().parse_args(["merge", "results", "--out", "d", "--alpha", "inf", "--private", "a,b.c"])
    assert (options.alpha, options.private, options.max_drop) == (math.inf, ("a", "b.c"), 0.01)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--alpha", "2", "expected a number from 0 to 1, inf or auto; got '2'"),
        ("--max-drop", "0.1,0.2", "expected one drop of a score"),
        ("--max-drop", "5", "expected one drop of a score from 0 up to 1, such as 0.01; got '5'"),
        ("--steps", "0", "expected a whole number from 1"),
        ("--prune", "l1", "invalid choice"),
    ],
)
def test_values_out_of_range_are_usage_errors(option, value, expected, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["merge", "results", "--out", "d", option, value])
    assert end.value.code == 2
    assert expected in capsys.readouterr().err


def test_settings_are_refused_all_at_once_and_unknown_ones_by_name():
    with pytest.raises(UnifiedError, match=r"steps is a whole number from 0.*alpha is a fraction"):
        make_settings(steps=-1, alpha=3.0)
    with pytest.raises(UnifiedError, match="unknown setting 'stepz'; there are: alpha, "):
        make_settings(stepz=3)
