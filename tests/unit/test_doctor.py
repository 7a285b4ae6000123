import argparse
import json
import os
import sqlite3
import time

import pytest

from tests.unit.queue_cases import S, Supervisor, bring, submitted
from unified import cli
from unified.queue.faults import CRASH_POINTS
from unified.queue.verbs import Queue
from unified.queue_parsers import add_queue_commands
from unified.service.doctor_checks import fsync_seconds

NAMES = {
    "versions",
    "root",
    "file system",
    "fsync",
    "config",
    "disk",
    "slots",
    "memory",
    "sandbox",
    "supervisor",
    "store",
    "leases",
    "ticks",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIFIED_ROOT", str(tmp_path / "root"))
    with Queue.open(tmp_path / "root", make=True) as queue:
        yield queue.root


@pytest.fixture
def doctor(capsys):
    def run(*arguments):
        parser = argparse.ArgumentParser(prog="unified")
        add_queue_commands(parser.add_subparsers())
        options = parser.parse_args(["doctor", *arguments])
        code = cli.guarded(lambda: options.command(options))
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def checks(doctor):
    def run():
        code, out = doctor("--json")
        told = json.loads(out)
        assert told["schema"] == 1
        assert code == (0 if told["is_well"] else 1)
        assert all(check["remedy"] for check in told["checks"] if check["level"] != "ok")
        return {check["name"]: check for check in told["checks"]}

    return run


def test_a_sound_queue_is_well(root, doctor, checks):
    found = checks()
    assert found.keys() >= NAMES
    assert {name for name, check in found.items() if check["level"] == "fail"} == set()
    assert (found["supervisor"]["level"], found["store"]["level"]) == ("warn", "ok")
    code, out = doctor()
    assert code == 0
    assert len(out.splitlines()) >= len(NAMES)
    assert all(line.split()[0] in ("ok", "warn") for line in out.splitlines() if not line.startswith(" "))


def test_a_folder_that_is_no_queue_fails_with_a_remedy(doctor, tmp_path):
    code, out = doctor("--root", str(tmp_path))
    assert code == 1
    assert "is not a queue's folder" in out
    assert "unified serve --root" in out


def test_the_ring_is_that_of_the_running_supervisor_whatever_the_settings_say(root, checks):
    root.status.write_text(json.dumps({"time": time.time(), "slots": [], "sandbox": "off"}))
    assert not checks()["sandbox"]["text"].startswith("off")  # nobody runs
    with Supervisor(root):
        assert checks()["sandbox"]["text"].startswith("off; here jobs could be")


def test_a_running_supervisor_is_told_from_one_that_hangs(root, checks):
    with Supervisor(root):
        root.status.write_text(json.dumps({"time": time.time(), "slots": [{}, {}]}))
        assert checks()["supervisor"]["level"] == "ok"
        assert f"process {os.getpid()}, 2 slots" in checks()["supervisor"]["text"]
        root.status.write_text(json.dumps({"time": time.time() - 100, "slots": []}))
        assert checks()["supervisor"]["level"] == "fail"


def test_a_lock_that_is_left_locks_nothing(root, checks):
    with Supervisor(root):
        pass
    assert "it locks nothing" in checks()["supervisor"]["text"]


def test_wrong_settings_are_told(root, checks):
    root.config.write_text("slots = 0\nfoo = 1\n")
    found = checks()["config"]
    assert found["level"] == "fail"
    assert "foo" in found["text"]
    assert "slots" in found["text"]


def test_a_full_disk_fails(root, checks):
    root.config.write_text(f"min_free_bytes = {1 << 60}\n")
    assert checks()["disk"]["level"] == "fail"


def test_a_store_of_another_version_is_told(root, checks):
    with sqlite3.connect(root.database) as database:
        database.execute("UPDATE meta SET value = '9999' WHERE key LIKE '%version%'")
    database.close()
    assert checks()["store"]["level"] == "fail"


def test_jobs_whose_lease_is_lost_are_told(root, checks, tmp_path):
    with Queue.open(root.path) as queue:
        job = submitted(queue, tmp_path / "jobs")
        queue.store.lease(job, holder="gone", slot=0, seconds=0.0, reason="placed", by="supervisor")
        time.sleep(0.01)
        found = checks()
        assert found["leases"]["level"] == "warn"
        assert job in found["leases"]["text"]


def test_a_tick_that_is_late_is_told(root, checks):
    with Queue.open(root.path) as queue, Supervisor(root):
        queue.store.stamp("spool")
        assert checks()["ticks"]["level"] == "ok"


def test_crash_points_are_as_many_as_there_are(root, doctor):
    assert doctor("--crash-points", "--quiet")[1].split() == list(CRASH_POINTS)
    points = json.loads(doctor("--crash-points", "--json")[1])["crash_points"]
    assert {point["name"]: point["where"] for point in points} == CRASH_POINTS


def test_fsync_is_measured_and_leaves_nothing(tmp_path):
    assert fsync_seconds(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []


def test_jobs_in_any_state_keep_the_doctor_going(root, checks, tmp_path):
    with Queue.open(root.path) as queue:
        for number, state in enumerate((S.RUNNING, S.DEAD, S.PAUSED)):
            bring(queue, submitted(queue, tmp_path / "jobs", f"job-{number}"), state)
    assert "1 running, 1 paused, 1 dead" in checks()["store"]["text"]
