"""What people see of a search: lines, JSON, a live view; and options that say what there is."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fusion.search.config import BASELINES, POLICIES, PRESETS, Metric
from fusion.search.progress import CandidateDone, Event, Finished, Improved, Started
from unified import fuse_parsers
from unified.fusing.fuse_command import FuseOptions
from unified.fusing.views import FuseLive, cost_text, fuse_lines

STORY: tuple[Event, ...] = (
    Started(
        tasks=("digit", "parity"),
        num_blocks=(5, 1),
        num_pairs=64,
        original_cost=0.0004,
        scores={"digit": 0.97, "parity": 0.985},
        notes=("model 'parity': only 1 shareable boundary",),
    ),
    Improved(threshold=0.01, speedup=1.5, drop=0.002, seconds=2.0),
    CandidateDone(number=1, status="accepted", speedup=1.5, drop=0.002, epochs=2, seconds=3.0, best={0.01: 1.5}),
    CandidateDone(number=2, status="skipped", speedup=2.0, drop=float("nan"), epochs=0, seconds=3.5, best={0.01: 1.5}),
    Finished(why="2 candidates were judged", num_candidates=2, seconds=4.0),
)


def test_plain_lines_tell_the_story():
    stream = io.StringIO()
    with fuse_lines(stream, "latency", as_json=False) as tell:
        for event in STORY:
            tell(event)
    assert stream.getvalue().splitlines() == [
        "2 models: digit (5 blocks, score 0.97), parity (1 block, score 0.985); 64 pairs of blocks may share an input",
        "together 0.4 ms",
        "note: model 'parity': only 1 shareable boundary",
        "     2.0 s  best within 0.01: 1.50x, drop 0.0020",
        "     3.0 s  candidate 1 accepted: 1.50x, drop 0.0020 after 2 epochs; best 1.50x within 0.01",
        "     3.5 s  candidate 2 skipped: 2.00x, drop – after 0 epochs; best 1.50x within 0.01",
        "     4.0 s  2 candidates were judged: 2 candidates",
    ]


def test_json_lines_are_strict_json_of_every_field():
    stream = io.StringIO()
    with fuse_lines(stream, "latency", as_json=True) as tell:
        for event in STORY:
            tell(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in STORY]
    assert lines[2]["best"] == {"0.01": 1.5}
    assert lines[3]["drop"] is None


def test_the_live_view_shows_how_far_it_is_and_leaves_nothing_behind():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40, color_system=None)
    live = FuseLive(console, "latency", num_candidates=10, budget_seconds=60)
    for event in STORY:
        live(event)
    with console.capture() as captured:
        console.print(live.drawn())
    shown = captured.get()
    assert "2 candidates of 10" in shown
    assert "1.50x" in shown
    assert "skipped" in shown


def test_a_live_view_may_end_before_the_search_began():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with FuseLive(console, "flops", num_candidates=None, budget_seconds=None) as tell:
        assert callable(tell)


@pytest.mark.parametrize(
    ("cost", "metric", "text"),
    [(0.0012345, "latency", "1.23 ms"), (2e9, "flops", "2 GFLOP"), (1500, "parameters", "1.5 k"), (2048, "memory", "2 KiB")],
)
def test_costs_have_the_unit_of_their_metric(cost, metric, text):
    assert cost_text(cost, metric) == text


def test_the_choices_of_the_command_line_are_those_there_are():
    assert tuple(map(str, Metric)) == fuse_parsers.METRICS
    assert fuse_parsers.POLICIES == POLICIES
    assert fuse_parsers.BASELINES == BASELINES
    assert tuple(PRESETS) == fuse_parsers.PRESETS


def test_options_become_settings_over_those_of_the_preset(tmp_path):
    options = FuseOptions(results=(), out=tmp_path, preset="paper", thresholds=(0.0, 0.02), epochs=3, candidates=7)
    config = options.config()
    assert (config.policy, config.epochs, config.thresholds, config.max_candidates) == ("annealing", 3, (0.0, 0.02), 7)
    assert FuseOptions(results=(), out=tmp_path, baseline="all-shared", policy="random").config().policy == "all-shared"
