"""What people see while variants are built."""

from __future__ import annotations

import io
import math

from rich.console import Console

from serving.progress import LeftOut, NetworkDone, Stage, StageBegan, Stored
from serving.records import Source, Variant
from unified.variants.views import BuildLive, build_event_to_json, build_lines, variants_table


def variant(name: str, tasks: tuple[str, ...], source: Source, ratio: float) -> Variant:
    amounts = {"num_parameters": 1000, "flops": 2_000_000, "num_bytes": 4096}
    achieved = {} if source is Source.FUSED else {"channels": ratio, "parameters": ratio, "flops": ratio}
    record = {"id": name, "name": name, "family": "f", "parent": None, "weights_sha256": "0" * 64, "achieved": achieved}
    return Variant(**record, **amounts, tasks=tasks, source=source, ratio=ratio)


VARIANTS = (
    variant("single-shoe-p50", ("shoe",), Source.SINGLE, 0.5),
    variant("shoe-p50", ("shoe",), Source.HEAD_REMOVED, 0.5),
    variant("fused-all", ("shoe", "size"), Source.FUSED, 0.0),
    variant("shoe-p00", ("shoe",), Source.HEAD_REMOVED, 0.0),
)
EVENTS = (
    StageBegan(stage=Stage.FINE_TUNE, names=("shoe-p00", "shoe-p50")),
    NetworkDone(stage=Stage.FINE_TUNE, name="shoe-p00", seconds=1.5, loss=0.25),
    Stored(variant=VARIANTS[3]),
    LeftOut(name="shoe-p50", reason="its loss is nan"),
)


def test_the_table_goes_by_system_tasks_and_ratio():
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(variants_table(VARIANTS))
    _, *lines = captured.get().splitlines()
    assert [line.split()[0] for line in lines] == ["fused-all", "shoe-p00", "shoe-p50", "single-shoe-p50"]
    assert "–" in lines[0]
    assert "50%" in lines[2]


def test_events_are_lines_and_lines_of_json():
    stream = io.StringIO()
    with build_lines(stream, as_json=False) as tell:
        for event in EVENTS:
            tell(event)
    assert stream.getvalue().splitlines() == [
        "fine-tuning 2 networks",
        "fine-tune shoe-p00: loss 0.25, 1.5 s",
        "left out shoe-p50: its loss is nan",
    ]
    untrained = NetworkDone(stage=Stage.PRUNE, name="a", seconds=1.0, loss=math.nan)
    assert build_event_to_json(untrained) == {
        "event": "NetworkDone",
        "stage": "prune",
        "name": "a",
        "seconds": 1.0,
        "loss": None,
    }
    assert build_event_to_json(EVENTS[2])["variant"]["tasks"] == ["shoe"]


def test_the_live_view_counts_what_is_done():
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    live = BuildLive(console)
    with live as tell:
        for event in EVENTS:
            tell(event)
        with console.capture() as captured:
            console.print(live.drawn())
    text = captured.get()
    assert "fine-tuning: 2 of 2 networks" in text
    assert "left out shoe-p50: its loss is nan" in text
