"""The benchmark of fusion runs end to end at its smallest scale and judges what it finds; no test looks at a time."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import fusion, fusion_aims
from benchmarks.fusion_aims import IDS
from benchmarks.fusion_jobs import Findings
from benchmarks.fusion_records import THRESHOLDS, Audit, End, Gain, Judged, Kill, Passes, Search, Start, Unit
from benchmarks.fusion_runs import BASELINES, GUIDED, REFERENCES

LINE = re.compile(r"(T\d+|C\d+\+?) [\w\-.]+=(-|inf|-?[\d.]+(e[+-]?\d+)?) target(<=|>=|>|=)[\d.e+-]+ (PASS|FAIL|NOT-RUN)")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_run_prints_a_well_formed_line_per_target(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("UNIFIED_DATA", raising=False)
    out = tmp_path / "fusion.json"
    options = ["T3", "T7", "--scale", "tiny", "--set", "vit", "--seconds", "2", "--workers", "1", "--out", str(out)]
    fusion.main(options)

    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"[TC]\d", line)]
    assert [line.split("=")[0] for line in lines] == [
        "T3 fully_trained_ratio",
        *(f"T7 random_passes_equal_reference_{count}" for count in (4, 6, 8)),
    ]
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert all(line.endswith("=1 target>=1 PASS") for line in lines[1:])

    report = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert {"command", "git_commit", "machine", "versions", "settings", "load_before", "targets", "summaries"} <= set(report)
    assert report["failures"] == []
    [unit] = report["units"]
    assert unit["failures"] == []
    assert [search["contender"]["name"] for search in unit["searches"]] == ["guided", "paper-pr"]
    assert [end["threshold"] for end in unit["searches"][0]["ends"]] == list(THRESHOLDS)
    for search in unit["searches"]:
        for end in search["ends"]:
            assert not end["is_over"], f"{search['contender']}: {end}"
            assert set(end["held_out_drops"]) == set(end["accuracy_drops"]) == {"item", "arms"}
            assert end["speedup"] > 0


def test_every_target_has_well_formed_lines_before_anything_was_measured(tmp_path):
    settings = fusion.read_settings(["--quick", "--out", str(tmp_path / "x.json")])
    found = fusion.targets(settings, Findings())
    assert settings.ids == IDS
    assert [name for name in IDS if not any(target.id.rstrip("+") == name for target in found)] == []
    for target in found:
        assert LINE.fullmatch(target.line), target.line
        assert target.verdict == "NOT-RUN" or target.id.endswith("+"), target.line


def test_a_recorded_command_names_no_place_on_this_machine(tmp_path):
    options = [
        "T1",
        "--quick",
        "--data",
        str(tmp_path),
        "--seeds",
        "4",
        "5",
        "--set",
        "text",
        "--out",
        str(tmp_path / "x.json"),
    ]
    command = fusion.command_line(fusion.read_settings(options))
    assert str(tmp_path) not in command
    again = fusion.read_settings(command.split()[3:])
    assert (again.ids, again.seeds, again.sets, again.scale) == (("T1",), (4, 5), ("text",), "quick")


def test_what_is_asked_for_decides_what_is_searched(tmp_path):
    def titles(*ids):
        jobs = fusion.jobs_of(
            fusion.read_settings([*ids, "--scale", "full", "--seeds", "7", "--out", str(tmp_path / "x.json")])
        )
        return {job.argument.set: [each.title for each in job.argument.contenders] for job in jobs if job.kind == "units"}

    assert titles("T10") == {"vgg": ["guided", "paper-pr 0%", "paper-pr 1%", "paper-pr 2%"]}
    assert titles("T4") == {"mixed": ["guided", "paper-pr 1%", "paper-pr 2%"]}
    assert titles("T7") == {}
    assert set(titles()) == {"vgg", "mixed", "vit", "text"}
    assert titles()["vgg"][-4:] == ["paper 1%", "all-shared", "tree", "random"]


def end(threshold=0.01, *, number=1, seconds=0.0, speedup=2.0, rejected=(), held_out=0.0):
    return End(
        threshold=threshold,
        number=number,
        seconds=seconds,
        rejected=rejected,
        drops={"a": 0.0},
        held_out_drops={"a": held_out, "b": -0.5},
        accuracy_drops={"a": 0.0},
        yardstick=speedup,
        own_speedup=speedup,
        speedup=speedup,
        median_speedup=speedup,
        latency_ms=1.0,
        parameters=1,
        flops=1,
    )


def gain(seconds, speedup, *, number=1, threshold=0.01):
    return Gain(threshold=threshold, seconds=seconds, number=number, drop=0.0, predicted=speedup, yardstick=speedup)


def search(contender, ends, gains=(), judged=()):
    return Search(
        set="vgg",
        seed=0,
        contender=contender,
        place=0,
        load_before=0.0,
        seconds=40.0,
        whole_seconds=50.0,
        full_epochs=8,
        why="",
        judged=tuple(judged),
        gains=tuple(gains),
        ends=tuple(ends),
    )


def unit(*searches, **changes):
    first = Unit(
        set="vgg",
        seed=0,
        models="",
        source="",
        has_labels=True,
        teacher_accuracy={},
        teacher_seconds=0.0,
        original_ms=1.0,
        searches=searches,
        starts=(),
        failures=(),
    )
    return replace(first, **changes)


def at(threshold):
    return next(each for each in REFERENCES if each.thresholds == (threshold,))


def values(targets):
    return {f"{target.id} {target.measure}": target.value for target in targets}


def test_time_to_the_references_speedup_leaves_out_what_held_out_samples_ruled_out():
    ours = search(
        GUIDED,
        [end(each, number=2, seconds=9.0, speedup=3.0, rejected=(1,)) for each in THRESHOLDS],
        [gain(3.0, 1.5, number=0), gain(5.0, 2.5, number=1), gain(9.0, 3.0, number=2)],
        [Judged(seconds=6.0, epochs=8, status="failed"), Judged(seconds=20.0, epochs=8, status="failed")],
    )
    theirs = search(
        at(0.01),
        [end(seconds=30.0, number=4, speedup=2.0)],
        [gain(30.0, 2.0, number=4)],
        [Judged(seconds=second, epochs=8, status="failed") for second in (8.0, 16.0, 24.0, 35.0)],
    )
    units = [unit(ours, theirs)]
    [duel] = fusion_aims.duels(units, "paper-pr")
    assert (duel.our_seconds, duel.their_seconds) == (9.0, 30.0)
    found = values([*fusion_aims.time_aims(units), *fusion_aims.training_aims(units)])
    assert found["T2 seconds_ratio_paper-pr"] == pytest.approx(0.3)
    assert found["T2 seconds_ratio_paper-pr_budget"] == pytest.approx(9 / 40)
    assert found["T2 seconds_ratio_paper"] is None
    assert found["T3 fully_trained_ratio"] == pytest.approx(1 / 3)


def test_a_speedup_that_was_never_reached_takes_for_ever():
    ours = search(GUIDED, [end(each, speedup=1.5, seconds=3.0) for each in THRESHOLDS], [gain(3.0, 1.5)])
    theirs = search(at(0.01), [end(speedup=2.0, seconds=30.0)], [gain(30.0, 2.0)])
    found = fusion_aims.speed_aims([unit(ours, theirs)]) + fusion_aims.time_aims([unit(ours, theirs)])
    assert math.isinf(values(found)["T2 seconds_ratio_paper-pr"])
    assert values(found)["T1 seeds_below_reference"] == 1
    assert values(found)["T1 speedup_ratio_mean"] == pytest.approx(0.75)
    lines = [target.line for target in found]
    assert "T2 seconds_ratio_paper-pr=inf target<=0.2 FAIL" in lines
    assert all(LINE.fullmatch(line) for line in lines)


def test_where_a_reference_found_nothing_there_is_nothing_to_catch_up_with():
    nothing = {"number": 0, "speedup": 1.0}
    ours = search(GUIDED, [end(each, **nothing) for each in THRESHOLDS])
    theirs = [search(at(each), [end(each, **nothing)]) for each in THRESHOLDS]
    units = [unit(ours, *theirs)]
    assert values(fusion_aims.time_aims(units))["T2 seconds_ratio_paper-pr"] is None
    assert values(fusion_aims.front_aims(units)) == {
        "T10 front_ratio_0": 1.0,
        "T10 front_ratio_1": 1.0,
        "T10 front_ratio_2": 1.0,
        "T10 seconds_ratio_to_three": 0.0,
        "T10 seconds_ratio_to_one": 0.0,
    }


def test_a_model_over_the_allowed_drop_is_counted_whoever_handed_it_out():
    fine = search(GUIDED, [end(each, held_out=each) for each in THRESHOLDS])
    over = search(BASELINES[0], [end(0.01, held_out=0.0101)])
    assert values(fusion_aims.speed_aims([unit(fine)]))["T1 accepted_over_threshold"] == 0
    assert values(fusion_aims.speed_aims([unit(fine, over)]))["T1 accepted_over_threshold"] == 1


def test_starts_audits_and_kills_are_judged_as_the_design_says():
    starts = [
        Start(
            seed=0,
            host=(0, 1),
            guest=(1, 1),
            drops={"random": 0.4, "least-squares": 0.1, "random + statistics": 0.4, "least-squares + statistics": 0.3},
        )
    ]
    assert fusion_aims.start_ratio(starts, "") == pytest.approx(0.25)
    assert fusion_aims.start_ratio(starts, " + statistics") == pytest.approx(0.75)
    ended = ((0.125, "predicted to miss the threshold", True, False), (0.25, "others promised more", True, True))
    found = values(fusion_aims.audit_aims([Audit(seed=0, candidates=9, met=4, ended=ended)]))
    assert found == {
        "T8 wrongly_killed_share": 0.5,
        "T8 wrongly_killed_share_by_prediction": 0.25,
        "T8 wrongly_killed_share_and_best": 0.25,
        "T8 median_kill_epoch_share": pytest.approx(0.1875),
    }
    kill = Kill(seed=0, after_seconds=1.0, share=0.5, candidates=3, is_equal=True, num_better=1)
    late = replace(kill, after_seconds=None, is_equal=False)
    assert values(fusion_aims.resume_aims([kill, late]))["T9 resumed_equals_uninterrupted_share"] == 1
    assert values(fusion_aims.resume_aims([late]))["T9 resumed_equals_uninterrupted_share"] is None
    wrong = Passes(num_tasks=4, num_passes=10, equal=9, adapters=0, shared=0)
    assert fusion_aims.pass_aims([wrong])[0].verdict == "FAIL"


def test_the_benchmark_is_documented():
    text = (Path(fusion.__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    assert "python -m benchmarks.fusion" in text
    assert [name for name in IDS if name not in text] == []
