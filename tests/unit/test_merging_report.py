"""The report of a merge: gains as the paper's table has them, costs by combination, and a page that shows them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.gains import gains
from fusion.merging.page import page, write_page
from fusion.merging.plots import figures, svg_of
from fusion.merging.reconnect import alone
from fusion.merging.records import ALONE, ORIGINAL, OURS
from fusion.merging.report import Scheme, combinations_of, record_schemes
from fusion.merging.samples import scores
from tests.unit.merging_reports import a_report, samples_for, shared_in_part, united
from tests.unit.pages import read

#: Table 1 of the paper: MFLOP of A, B and A&B for B1, B2 and PAM, then average and peak gain over B1 and over B2.
PUBLISHED = {
    "LeNet-5 P1": ((28.34, 28.34, 56.69), (52.58,) * 3, (28.49, 26.16, 48.68), (1.08, 1.16), (1.65, 2.01)),
    "LeNet-5 P2": ((18.64, 18.64, 37.27), (31.19,) * 3, (18.65, 18.65, 26.48), (1.14, 1.41), (1.51, 1.67)),
    "VGG-16 P1": ((4.52, 4.32, 8.85), (7.3,) * 3, (4.48, 4.49, 4.70), (1.29, 1.88), (1.60, 1.63)),
    "VGG-16 P2": ((153.13, 152.65, 305.78), (243.20,) * 3, (155.82, 155.84, 156.74), (1.30, 1.95), (1.56, 1.56)),
    "ResNet-18 P2": ((5.72, 5.72, 11.44), (8.84,) * 3, (4.78, 4.83, 6.40), (1.39, 1.79), (1.69, 1.85)),
}
COMBINATIONS = (("A",), ("B",), ("A", "B"))


@pytest.mark.parametrize("row", PUBLISHED)
def test_gains_are_those_of_the_paper(row):
    alone_costs, zipped_costs, ours, *published = PUBLISHED[row]
    for baseline, (average, peak) in zip((alone_costs, zipped_costs), published, strict=True):
        found = gains(dict(zip(COMBINATIONS, ours, strict=True)), dict(zip(COMBINATIONS, baseline, strict=True)))
        # the table's costs are rounded to two digits behind the point, its gains too
        assert found.average == pytest.approx(average, abs=0.0075)
        assert found.peak == pytest.approx(peak, abs=0.0075)


def test_gains_need_the_same_combinations_and_costs():
    with pytest.raises(MergeError, match="same combinations"):
        gains({("A",): 1.0}, {("B",): 1.0})
    with pytest.raises(MergeError, match="above 0, got 0"):
        gains({("A",): 0}, {("A",): 1.0})


def test_a_scheme_of_single_networks_costs_their_sum_and_one_network_what_it_runs():
    union = united(3)
    singles = Scheme(name=ORIGINAL, networks=tuple(alone(network) for network in union.networks.values()))
    merged = shared_in_part(union)
    ours = Scheme(name=OURS, networks=(merged,))
    for names in combinations_of(union.tasks):
        assert singles.flops(names) == sum(flops(alone(union.networks[name])) for name in names)
        assert ours.flops(names) == flops(merged, names)
    assert len(combinations_of(union.tasks)) == 7


def test_parameters_are_what_the_masks_let_live():
    union = united()
    merged = shared_in_part(union)
    scheme = Scheme(name=OURS, networks=(merged,))
    weights = [merged.part(position).masked() for position in range(len(merged.steps)) if str(position) in merged.parts]
    biases = sum(len(weight) for weight in weights)
    # a product of linear layers counts two operations for each edge that lives, whether its weight is zero or not
    assert scheme.parameters == flops(merged) // 2 + biases


def test_scores_are_of_held_out_data_and_feasibility_of_those_that_chose():
    union = united()
    validation, test = samples_for(union), samples_for(union, 24)
    merged = shared_in_part(union)
    found = record_schemes(
        [Scheme(name=OURS, networks=(merged,))], union.tasks, validation=validation, test=test, floors={"A": 0.0, "B": 1.01}
    )[OURS]
    assert found.scores == scores(merged, test, union.tasks)
    assert found.validation == scores(merged, validation, union.tasks)
    assert not found.is_feasible
    assert found.combinations[-1].score == pytest.approx(sum(found.scores.values()) / 2)


def test_the_report_is_strict_json_with_combinations_by_name():
    report = replace(a_report(), alpha=float("inf"))
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["alpha"] is None
    assert content["gains"][ALONE]["ratios"].keys() == {"A", "B", "A+B"}
    assert [layer["sizes"] for layer in content["layers"]] == [{"A": 5, "B": 5, "A+B": 6}, {"A": 3, "B": 3, "A+B": 4}]
    assert [layer["sharing"] for layer in content["layers"]] == [6 / 16, 4 / 10]
    (curve,) = content["curves"]
    assert curve["num_chosen"] == sum(value <= curve["threshold"] for value in curve["value"])


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_the_page_shows_every_cost_and_picture_and_fetches_nothing(num_tasks, tmp_path):
    report = a_report(num_tasks)
    write_page(report, tmp_path)
    reader = read((tmp_path / "report.html").read_text())
    tags = [tag for tag, _ in reader.tags]
    assert "script" not in tags
    assert tags.count("svg") == 4
    assert not [
        value
        for _, attributes in reader.tags
        for value in (attributes.get("src"), attributes.get("href"))
        if value and not value.startswith("#")
    ]
    texts = " ".join(reader.texts)
    for record in report.schemes[OURS].combinations:
        assert f"FLOPs {'+'.join(record.tasks)}" in texts
    assert "0.1 (chosen)" in texts
    assert "a note" in texts
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"flops.png", "sharing.png", "curves.png", "rounds.png"}


def test_a_picture_is_the_same_each_time():
    content = a_report().to_json()
    first, second = (svg_of(figures(content)["sharing"]) for _ in range(2))
    assert first == second


def test_names_are_escaped_and_what_there_is_not_is_left_out():
    report = replace(a_report(), alphas=(), curves=(), notes=("<script>alert(1)</script>",))
    text = page(report.to_json(), {})
    reader = read(text)
    assert "script" not in [tag for tag, _ in reader.tags]
    assert "Alphas tried" not in text
    assert "What neurons tell" not in text


def test_latency_is_measured_when_there_are_inputs():
    union = united()
    merged = shared_in_part(union)
    found = record_schemes(
        [Scheme(name=OURS, networks=(merged,))], union.tasks, validation=samples_for(union), test=None,
        floors=dict.fromkeys(union.tasks, 0.0), latency=torch.randn(2, 6),
    )[OURS]  # fmt: skip
    assert all(record.latency is not None and record.latency.num_runs > 0 for record in found.combinations)
    text = page(replace(a_report(), schemes={OURS: found}, gains={}, latency_batch=2).to_json(), {})
    assert "latency, ms" in text
