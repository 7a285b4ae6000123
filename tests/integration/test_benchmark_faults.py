"""The benchmark of faults and load runs end to end at its smallest scale and finds what is wrong; no test looks at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.faults_aims import KILLS, storm_aims
from benchmarks.queue_latency import COMMAND, HTTP_LIST, HTTP_SUBMIT, LIST, SUBMIT
from benchmarks.storm import MIX, Ended, Kill, Storm
from benchmarks.storm_verdict import SUPERVISOR_DIED, WORKER_DIED, find_losses, illegal_moves, judge, read_notes
from benchmarks.storm_watch import Seen
from tests.unit.job_folders import make_job, make_queue
from unified.job_state import JobState
from unified.queue.records import Transition, WorkerRow
from unified.queue.submitting import submit_folder

S = JobState
LIFE = ((None, S.QUEUED), (S.QUEUED, S.LOADING), (S.LOADING, S.RUNNING), (S.RUNNING, S.FINISHED))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_storm_loses_doubles_and_spoils_nothing(tmp_path):
    out = tmp_path / "faults.json"
    faults.main(["--scale", "tiny", "--seed", "3", "--out", str(out)])

    report = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert {"command", "git_commit", "machine", "versions", "settings", "load_before", "aims"} <= set(report)
    storm, verdict = report["storm"], report["storm"]["verdict"]
    assert set(verdict["kills"]) == set(MIX)
    assert sum(verdict["kills"].values()) == len(storm["kills"]) == faults.SCALES["tiny"].kills
    assert verdict["accepted"] == verdict["compared"] > 0
    for name in ("lost", "doubled", "wrong", "illegal", "unasked_ends"):
        assert verdict[name] == [], name
    assert storm["exit_code"] == 0
    assert sum(verdict["attempts"].values()) == verdict["accepted"]
    assert [loss["job"].startswith("beside") for loss in report["neighbour"]].count(False) == 0
    latency = report["latency"]
    assert latency["queued"] >= 50
    assert {SUBMIT, LIST, COMMAND, HTTP_SUBMIT, HTTP_LIST} <= set(latency["quantiles"])
    assert set(latency["rates"]) == {"1", "4"}
    with_and_without = [run["interval_seconds"] is not None for run in report["cost"]["runs"]]
    assert sorted(with_and_without) == [False, True]
    reached = {aim["claim"]: aim["is_reached"] for aim in report["aims"]}
    assert not reached["SIGKILLs delivered"], f"{KILLS} are not for a test"
    assert reached["jobs accepted and lost"]
    assert reached["jobs with wrong weights"]


def test_a_recorded_command_names_no_place_on_this_machine(tmp_path):
    options = ["--quick", "--jobs", "7", "--part", "storm", "--out", str(tmp_path / "x.json")]
    command = faults.command_line(faults.read_settings(options))
    assert str(tmp_path) not in command
    assert faults.read_settings(command.split()[3:]).jobs == 7


def move(old, new, *, epoch, time=0.0, reason=""):
    return Transition(sequence=0, job="a", old=old, new=new, epoch=epoch, time=time, reason=reason, by="supervisor")


def life(*moves):
    epoch, transitions = 0, []
    for old, new in moves:
        epoch += new is S.LOADING
        transitions.append(move(old, new, epoch=epoch))
    return transitions


def test_a_move_that_does_not_follow_from_the_one_before_is_told():
    assert list(illegal_moves("a", life(*LIFE))) == []
    assert len(list(illegal_moves("a", life(*LIFE, (S.FINISHED, S.QUEUED))))) == 1
    assert len(list(illegal_moves("a", life(*LIFE[:2], LIFE[3])))) == 1, "one is missing between"
    skipped = life(*LIFE)
    skipped[1] = replace(skipped[1], epoch=2)
    assert list(illegal_moves("a", skipped)), "an epoch is missing"


@pytest.fixture
def storm(tmp_path):
    """Three jobs that were promised: finished with the right weights, with others, and not at all."""
    import torch

    root, store = make_queue(tmp_path / "root")
    folders = {name: make_job(tmp_path / name, name=name) for name in ("right", "wrong", "left")}
    for name, folder in folders.items():
        submit_folder(root, store, folder, by="somebody", changes={"id": name})
        (tmp_path / "undisturbed" / name).mkdir(parents=True)
        torch.save({"w": torch.ones(2)}, tmp_path / "undisturbed" / name / "state_dict.pt")
    for name in ("right", "wrong"):
        store.lease(name, holder="me", slot=0, seconds=60, reason="is loaded", by="me")
        for old, new in LIFE[2:]:
            store.move(name, new, old=old, epoch=1, holder="me", reason=str(new), by="me")
        root.result(name).mkdir(parents=True)
        torch.save({"w": torch.ones(2) * (1 if name == "right" else 2)}, root.result(name) / "state_dict.pt")
    found = Storm(orders=folders, promised=["right", "right", "wrong", "left", "gone"])
    found.jobs = [Ended(row=row, transitions=tuple(store.transitions(row.id))) for row in store.jobs()]
    yield found, root
    store.close()


def test_what_is_lost_doubled_or_wrong_is_found(storm, tmp_path):
    found, root = storm
    undisturbed = {name: tmp_path / "undisturbed" / name for name in found.orders}
    verdict = judge(found, root.path / "results", undisturbed)
    assert [text.partition(":")[0] for text in verdict.lost] == ["gone", "left"]
    assert (verdict.wrong, verdict.doubled, verdict.illegal) == (["wrong"], [], [])
    assert (verdict.accepted, verdict.compared, verdict.attempts) == (4, 2, {0: 1, 1: 2})
    unreached = [aim.claim for aim in storm_aims(verdict, []) if aim.measured and not aim.is_reached]
    assert unreached == ["jobs accepted and lost", "jobs with wrong weights"]

    twice = found.jobs[0]
    found.jobs[0] = Ended(row=twice.row, transitions=(*twice.transitions, move(S.RUNNING, S.FINISHED, epoch=1)))
    del found.orders["left"]
    found.promised.remove("left")
    verdict = judge(found, root.path / "results", undisturbed)
    assert sorted(verdict.doubled) == sorted([twice.row.id, "left"]), "published twice, and nobody's order"
    assert len(verdict.illegal) == 1


def test_each_loss_is_put_down_to_the_kill_that_caused_it(storm):
    found, root = storm
    row = found.jobs[0].row
    found.kills = [
        Kill(target="worker", time=10.0, pid=1, slot=0),
        Kill(target="worker", time=10.5, pid=2, slot=1),
        Kill(target="supervisor", time=20.0, pid=3),
    ]
    found.workers = [
        WorkerRow(sequence=0, slot=0, pid=1, started=1.0, ended=10.8, how="killed"),
        WorkerRow(sequence=1, slot=1, pid=2, started=1.0, ended=10.6, how="killed"),
    ]
    transitions = (
        move(None, S.QUEUED, epoch=0),
        move(S.QUEUED, S.LOADING, epoch=1),
        move(S.LOADING, S.RUNNING, epoch=1, time=5.0),
        move(S.RUNNING, S.QUEUED, epoch=1, time=10.81, reason=f"{WORKER_DIED} (killed by SIGKILL)"),
        move(S.QUEUED, S.LOADING, epoch=2),
        move(S.LOADING, S.RUNNING, epoch=2, time=11.0),
        move(S.RUNNING, S.QUEUED, epoch=2, time=23.0, reason=SUPERVISOR_DIED),
    )
    found.residencies = {
        ("a", 1): Seen(last_step=30, resumed_step=20, resumed_time=9.5, resumed_epoch=1),
        ("a", 2): Seen(last_step=40, resumed_step=20, resumed_time=9.5, resumed_epoch=1),
    }
    log = "2026-11-21T06:30:00Z  checkpoint at step 20 (724 KiB, 0.250 s; at most every 1.5 s)\n"
    root.log("a").parent.mkdir()
    root.log("a").write_text(log)
    found.jobs = [Ended(row=replace(row, id="a"), transitions=transitions)]
    first, second = find_losses(found, read_notes(found, root, 1.0), 1.0)
    assert (first.target, first.redone_steps, first.redone_seconds) == ("worker", 10, 0.75)
    assert (first.redone_intervals, first.beyond_seconds) == (0.5, 0.0)
    assert (second.interval_seconds, second.beyond_seconds) == (1.0, 8.0), "it had written no checkpoint of its own"
    assert (first.noticed_seconds, first.back_seconds) == (pytest.approx(0.81), pytest.approx(1.0))
    assert (second.target, second.redone_steps, second.redone_seconds) == ("supervisor", 20, 9.0)
    assert second.back_seconds is None


def test_the_benchmark_is_documented():
    text = (Path(faults.__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    assert "python -m benchmarks.faults" in text
    assert all(f"`{part}`" in text for part in faults.PARTS)
