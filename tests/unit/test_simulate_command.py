"""``unified simulate``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unified.cli import main

TRACE = "job_id,submit_s,duration_s,user\n" + "".join(
    f"job-{index},{100 * index},{30 + 971 * index % 5000},{'abc'[index % 3]}\n" for index in range(60)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "sixty.csv"
    path.write_text(TRACE)
    return path


def simulated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["simulate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_golden_prints_the_papers_case_and_that_all_of_it_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = simulated(capsys, "--golden")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[2:]]
    assert ["round-robin", "280.8", "714.6", "1167.0", "720.8", "yes"] in rows
    assert all(row[-1] == "yes" for row in rows)
    code, out, _ = simulated(capsys, "--golden", "--json")
    assert json.loads(out)["equal"] is True


def test_the_tables_fit_and_hold_every_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "aging(srtf,weight=0.02,max_wait=72h)"
    code, out, err = simulated(capsys, trace, "--compare", f"fcfs,{long},fair(fcfs,by=user)", "--seeds", "2", "--slots", "2")
    assert (code, err) == (0, "")
    head, host, *lines = out.splitlines()
    assert head.startswith("sixty: 60 jobs of ")
    assert host.startswith("2 slots, load 0.9, sigma 1, 2 seeds from 0, corun 1, quantum ")
    assert max(map(len, [head, host, *lines])) <= 100
    for title in ("mean JCT", "no service", "preemptions", "Jain index", "worst rho", "slot seconds"):
        assert title in out
    assert out.count("fcfs  ") >= 3


def test_json_holds_every_figure_and_what_it_was_made_under(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--compare", "fcfs,hrrn", "--corun", "1.3", "--placement", "resident", "--quantum", "2min", "--switch-seconds", 1]
    code, out, _ = simulated(capsys, trace, "--json", *line)
    found = json.loads(out)
    assert code == 0
    assert [row["policy"] for row in found["policies"]] == ["fcfs alone", "fcfs", "hrrn"]
    assert found["quantum_seconds"] == 120
    assert found["host"] == {
        "slots": 4,
        "corun": 1.3,
        "pairs": {},
        "placement": "resident",
        "switch_seconds": 1.0,
        "checkpoint_seconds": 0.0,
    }
    base, _, hrrn = found["policies"]
    assert base["gain"] == 1
    assert hrrn["gain"] == pytest.approx(base["metrics"]["mean_jct"] / hrrn["metrics"]["mean_jct"])
    assert set(hrrn["rho"]) == {"a", "b", "c"}


def test_pairs_of_models_have_speeds_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, pairs = tmp_path / "pair.csv", tmp_path / "pairs.csv"
    trace.write_text("job_id,submit_s,duration_s,model\n0,0,90,bert\n1,0,90,vgg16\n")
    pairs.write_text("one,other,speed\nbert,vgg16,1.5\nbert,bert,1.1\n")
    code, out, _ = simulated(capsys, trace, "--slots", 1, "--sigma", 0, "--corun-table", pairs, "--compare", "fcfs", "--json")
    alone, together = json.loads(out)["policies"]
    assert code == 0
    assert json.loads(out)["host"]["pairs"] == {"bert + vgg16": 1.5, "bert": 1.1}
    assert (alone["metrics"]["mean_jct"], together["metrics"]["mean_jct"]) == (135, 120)  # 180 s of work at 1.5 times the speed
    pairs.write_text("one,other,speed\nbert,vgg16,2.5\n")
    code, _, err = simulated(capsys, trace, "--corun-table", pairs)
    assert code == 1
    assert "pairs.csv, line 2, column 'speed': expected a number from 1 to 2, got '2.5'" in err


def test_deadlines_are_kept_by_who_admits_no_more_than_fits(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--compare", "fcfs,edf", "--deadline-factor", 1.5, "--sigma", 0, "--load", 2]
    code, out, _ = simulated(capsys, trace, *line)
    assert code == 0
    fcfs, edf = out.splitlines()[-2:]
    assert fcfs.startswith("fcfs: accepted 60, refused 0, late among accepted ")
    assert not fcfs.endswith(" 0")
    assert edf.startswith("edf: accepted ")
    assert edf.endswith("late among accepted 0; its figures are of these alone")
    assert "refused 0" not in edf


def test_plots_are_written_beside_the_tables(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = simulated(capsys, trace, "--plot", tmp_path / "plots", "--compare", "fcfs,stride")
    assert code == 0
    names = {path.name for path in (tmp_path / "plots").iterdir() if path.stat().st_size > 5000}
    assert names == {"jct.png", "slowdown.png", "slots-0.png", "slots-1.png", "users-0.png", "users-1.png"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.csv"], "missing.csv: No such file or directory"),
        (["TRACE", "--compare", "fcfs,srft"], "no scheduler is called 'srft'; did you mean 'srtf'?"),
        (["TRACE", "--compare", ","], "--compare: expected schedulers such as fcfs,srtf"),
        (["TRACE", "--compare", "fcfs,priority"], "'priority' decides by priority, which trace 'sixty' lacks"),
        (["TRACE", "--quantum", "soon"], "'--quantum': expected a time"),
        (["TRACE", "--quantum", "0s"], "a quantum lasts a positive number of seconds, got 0.0"),
        (["TRACE", "--corun-table", "missing.csv"], "pairs missing.csv: No such file or directory"),
        (["TRACE", "--corun-table", "TRACE"], "expected a CSV file with the columns one, other, speed"),
        (["TRACE", "--users-column", "owner"], "no column 'owner' with values"),
        (["TRACE", "--min-seconds", "86000"], "none of its 60 one-GPU jobs lasts 86000 to 86400 s"),
    ],
)
def test_what_is_wrong_is_a_line(trace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    code, out, err = simulated(capsys, *(str(trace) if word == "TRACE" else word for word in arguments))
    assert (code, out) == (1, "")
    assert err.startswith("unified: ")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [".", "--compare", "fcfs"],
        [".", "--plot", "p"],
        ["trace.csv", "--golden"],
        ["t.csv", "--corun", "3"],
        ["t.csv", "--load", "0"],
        ["t.csv", "--load", "1e-300"],
        ["t.csv", "--sigma", "1e6"],
        ["t.csv", "--switch-seconds", "1e308"],
        ["t.csv", "--deadline-factor", "inf"],
        ["t.csv", "--min-seconds", "90000"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["simulate", *arguments])
    assert "unified simulate: error: " in capsys.readouterr().err
