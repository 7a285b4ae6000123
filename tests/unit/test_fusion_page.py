"""The page of a search: well-formed, safe to open, nothing cut off, and nothing fetched from anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fusion.search.front_picture import drop_of, front_svg
from fusion.search.page import page, write_page
from fusion.search.tree_picture import colours_of, tree_svg
from tests.unit.fusion_reports import a_report, point, record
from tests.unit.pages import read


def texts_of(report: Any, **options: Any) -> str:
    return " ".join(read(page(report.to_json(), **options)).texts)


@pytest.mark.parametrize("num_tasks", [2, 3, 9])
def test_the_page_is_well_formed_and_has_the_pictures_and_the_tables(num_tasks: int):
    report = a_report(tuple(f"task-{number}" for number in range(num_tasks)))
    reader = read(page(report.to_json()))
    labels = [attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg"]
    assert labels == ["the shared tree", "the shared tree", "candidates"]
    assert sum(tag == "table" for tag, _ in reader.tags) == 6  # summary, two thresholds, front, candidates, settings
    text = " ".join(reader.texts)
    assert "at most 0.05%" in text  # a small threshold is not rounded away
    assert "candidate 3, 1.60x" in text
    assert "the time was up" in text
    assert all(text.count(f"task-{number}") >= 4 for number in range(num_tasks))


def test_names_and_texts_of_others_are_shown_and_never_run():
    evil = "<script>alert(1)</script>&'\""
    report = a_report(name=evil, notes=(evil,), why=evil)
    text = page(report.to_json(), title=evil)
    reader = read(text)
    assert not any(tag == "script" for tag, _ in reader.tags)
    assert "<script" not in text
    assert evil in " ".join(reader.texts)
    assert "had its <full> training" in " ".join(reader.texts)
    for _, attrs in reader.tags:
        assert not any(name.startswith("on") for name in attrs)


def test_nothing_is_fetched():
    text = page(a_report().to_json())
    addresses = set(re.findall(r"https?://[^'\"\s]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<(script|link|img|iframe|object|embed|base|form)\b|\bsrc=|\bhref=|url\(|@import", text)


def test_both_colour_schemes_are_served():
    text = page(a_report().to_json())
    assert "color-scheme: light dark" in text
    assert "prefers-color-scheme: dark" in text
    names = set(re.findall(r"var\((--[a-z]+)\)", text))
    light, dark = re.findall(r":root \{([^}]*)\}", text)
    assert all(f"{name}:" in light and f"{name}:" in dark for name in names)


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r"<rect x='([\d.]+)' y='([\d.]+)' width='([\d.]+)' height='([\d.]+)'", svg)
    return [tuple(map(float, row)) for row in found]


@pytest.mark.parametrize("name", ["layer", "a.very.long.path.of.a.module.in.a.large.network.WWWW."])
@pytest.mark.parametrize("tasks", [("a", "b"), tuple(f"the-task-of-number-{number}" for number in range(8))])
def test_in_the_picture_of_the_tree_nothing_overlaps_or_is_cut_off(tasks: tuple[str, ...], name: str):
    report = a_report(tasks, name=name)
    for entry in report.to_json()["best"]:
        svg = tree_svg(entry["tree"], colours_of(tasks))
        reader = read(svg)
        width, height = (float(reader.tags[0][1][side] or 0) for side in ("width", "height"))
        found = boxes(svg)
        for place, (x, y, w, h) in enumerate(found):
            assert 0 <= x <= x + w <= width
            assert 0 <= y <= y + h <= height
            for left, top, across, down in found[place + 1 :]:
                assert x + w <= left or left + across <= x or y + h <= top or top + down <= y
        labels = re.findall(r"<text x='([\d.]+)' y='[\d.]+' class='task'>([^<]*)</text>", svg)
        assert sorted(label for _, label in labels) == sorted(tasks)
        for x, label in labels:
            assert float(x) + 7 * len(label) <= width  # seven pixels to a letter of twelve, in the mean


def circles(svg: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y)) for x, y in re.findall(r"<circle cx='([\d.-]+)' cy='([\d.-]+)' r='4' fill='[^']*' fill-op", svg)
    ]


def test_every_candidate_that_was_looked_at_is_a_dot_within_the_picture():
    content = a_report().to_json()
    svg = front_svg(content)
    read(svg)
    dots = circles(svg)
    assert len(dots) == 3  # the skipped one is none; one is slower than the original, one lost more than everything
    assert all(84 <= x <= 676 and 40 <= y <= 346 for x, y in dots)
    assert re.findall(r">(allowed)<", svg) == ["allowed", "allowed"]
    assert "drop 150.00%" in svg
    assert svg.count("<polyline") == 1


def test_an_accepted_candidate_is_shown_at_its_best_check_so_that_the_front_meets_it():
    content = a_report().to_json()
    accepted = next(entry for entry in content["candidates"] if entry["status"] == "accepted")
    assert drop_of(accepted) == 0.015
    [line] = re.findall(r"<polyline points='([^']*)'", front_svg(content))
    ends = [tuple(float(value) for value in pair.split(",")) for pair in line.split()]
    assert ends[1] in circles(front_svg(content))
    assert drop_of(record(1, a_report().best[0.02].graph, "failed", [{"a": 0.3, "b": None}, {"a": 0.1, "b": 0.2}])) == 0.2
    assert drop_of(record(1, a_report().best[0.02].graph, "failed", [{"a": None}])) is None


@pytest.mark.parametrize("speedup", [1.0, 3.0, 40.0, 1e5])
def test_any_range_of_speedups_has_a_few_round_ticks(speedup: float):
    graph = a_report().best[0.02].graph
    report = a_report(
        candidates=(record(1, graph, "accepted", [{"age": 0.0}]) | {"cost": 0.004 / speedup},),
        front=(point(0, 1.0, 0.0), point(1, speedup, 0.0)),
    )
    ticks = re.findall(r">([\d.e+]+)x</text>", front_svg(report.to_json()))
    assert 1 <= len(ticks) <= 9
    assert ticks[0] == "1"


def test_a_search_without_candidates_has_a_page_too(tmp_path: Path):
    report = a_report(candidates=(), front=(point(0, 1.0, 0.0),), notes=())
    write_page(report, tmp_path / "page.html", title="None")
    read((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_another_metric_is_called_by_its_name():
    assert "predicted speedup" in texts_of(a_report())
    text = texts_of(a_report(settings={"metric": "parameters"}))
    assert "gain in parameters" in text
    assert "predicted speedup" not in text


def test_an_audit_is_told():
    audit = {
        "ended_early": 5, "would_have_met": 3, "wrongly_ended": [2], "wrongly_ended_share": 1 / 3, "median_end_share": 0.25,
        "reasons": {"others promised more after 1 epochs": {"ended": 5, "wrong": 1}},
    }  # fmt: skip
    text = texts_of(a_report(audit=audit))
    assert "5 would have been left out or ended early, 1 of them" in text
    assert "others promised more after 1 epochs" in text
