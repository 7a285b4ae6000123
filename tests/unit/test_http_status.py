"""Routes about the service as a whole: what the supervisor says, as far as the asker may know it; health; numbers."""

import json
import os
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.http_service import add_job, append, local_client, make_tokens, move_job, publish, token_client
from unified.job_state import JobState
from unified.queue.verbs import Queue


@pytest.fixture
def queue(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        add_job(queue, "hers", user="alice", state=JobState.RUNNING, steps_done=30, steps_total=40, memory_bytes=1000)
        add_job(queue, "his", user="bob", state=JobState.RUNNING, steps_done=3, steps_total=40)
        yield queue


STATUS = {
    "schema": 1,
    "pid": 1,
    "scheduler": "sjf",
    "device": "cpu",
    "version": "0",
    "slots": [
        {"index": 0, "device": "cpu", "threads": 1, "state": "training", "running": "his", "residents": ["hers", "his"]},
        {"index": 1, "device": "cpu", "threads": 1, "state": "idle", "running": None, "residents": [], "memory_bytes": 5},
    ],
    "memory_bytes": 2000,
    "memory_total_bytes": 9000,
    "queued": 4,
    "is_draining": False,
    "disk_free_bytes": 12345,
    "counters": {
        "worker_restarts": {"0": 2},
        "leases_expired": 1,
        "fenced_writes": 3,
        "checkpoints": 12,
        "checkpoint_seconds": 0.75,
        "rejected": {"E-FOLDER": 5},
        "decision_seconds": 0.001,
        "slot_busy_seconds": {"0": 12.5},
    },
}


@pytest.fixture
def supervised(queue):
    """As if a supervisor held the root and had just said what it does."""
    lock = queue.root.take_lock()

    def say(**changes):
        now = time.time()
        status = STATUS | {"time": now, "ticks": {"spool": now - 2}} | changes
        queue.root.status.write_text(json.dumps(status))

    say()
    yield say
    os.close(lock)


def test_slots_are_shown_with_their_members(queue, supervised):
    with local_client(queue.root.path) as client:
        shown = client.get("/v1/slots").json()
    assert (shown["is_served"], shown["scheduler"], shown["memory_bytes"], shown["queued"]) == (True, "sjf", 2000, 4)
    assert shown["slots"][0]["residents"] == ["hers", "his"]
    assert (shown["slots"][0]["running"], shown["slots"][1]["memory_bytes"]) == ("his", 5)


def test_without_a_supervisor_there_are_no_slots(queue):
    queue.root.status.write_text(json.dumps(STATUS | {"time": time.time()}))  # of one that is dead
    with local_client(queue.root.path) as client:
        shown = client.get("/v1/slots").json()
        assert (shown["is_served"], shown["slots"]) == (False, [])
        assert client.get("/v1/jobs/hers").json()["state"] == "running"


def test_a_user_learns_of_others_only_that_they_are_there(queue, supervised, tmp_path):
    for job, user in (("hers", "alice"), ("his", "bob")):
        append(
            queue.root.timeline, json.dumps({"job": job, "slot": 0, "start": 1.0, "end": 2.0, "steps": 3, "user": user}) + "\n"
        )
    path, headers = make_tokens(tmp_path, alice=["read"], op=["admin"])
    with token_client(queue.root.path, path) as client:
        slot = client.get("/v1/slots", headers=headers["alice"]).json()["slots"][0]
        assert (slot["residents"], slot["running"], slot["num_residents"], slot["is_busy"]) == (["hers"], None, 2, True)
        for url in ("/v1/slots", "/v1/timeline", "/metrics", "/v1/jobs"):
            shown = client.get(url, headers=headers["alice"]).text
            assert "hers" in shown
            assert '"his"' not in shown
            assert '"his"' in client.get(url, headers=headers["op"]).text
            assert client.get(url).status_code == 401


def test_the_timeline_has_the_turns_since_a_time(queue):
    turns = [{"job": "hers", "slot": 0, "start": float(i), "end": i + 1.0, "steps": 2, "user": "alice"} for i in range(5)]
    append(queue.root.timeline, "".join(json.dumps(turn) + "\n" for turn in turns[:3]) + '{"torn\n')
    append(queue.root.timeline, "".join(json.dumps(turn) + "\n" for turn in turns[3:]) + '{"half')
    with local_client(queue.root.path) as client:
        assert client.get("/v1/timeline").json()["turns"] == turns
        assert client.get("/v1/timeline", params={"since": 3.5}).json()["turns"] == turns[3:]


def test_who_asks_is_told_who_they_are(queue, tmp_path):
    path, headers = make_tokens(tmp_path, alice=["submit", "read"], op=["admin"])
    with token_client(queue.root.path, path) as client:
        me = client.get("/v1/whoami", headers=headers["alice"]).json()
        assert me == {"schema": 1, "user": "alice", "scopes": ["read", "submit"], "is_operator": False}
        assert client.get("/v1/whoami", headers=headers["op"]).json()["is_operator"]
        path.write_text("rubbish")
        answer = client.get("/v1/whoami", headers=headers["op"])
        assert (answer.status_code, answer.json()["code"]) == (503, "token-file")
    with local_client(queue.root.path) as client:
        assert client.get("/v1/whoami").json()["is_operator"]


def test_schedulers_are_listed(queue, supervised):
    with local_client(queue.root.path) as client:
        shown = client.get("/v1/schedulers").json()
    assert shown["current"] == "sjf"
    assert {"fcfs", "sjf", "priority", "round-robin"} <= {item["name"] for item in shown["schedulers"]}


def test_ready_means_that_jobs_are_worked_on(queue, supervised):
    with local_client(queue.root.path) as client:

        def ready():
            answer = client.get("/readyz")
            checks = answer.json()["checks"]
            assert (answer.status_code == 200) == answer.json()["ready"] == all(text == "ok" for text in checks.values())
            return [name for name, text in checks.items() if text != "ok"]

        assert ready() == []
        supervised(time=time.time() - 60)
        assert ready() == ["status"]
        supervised(late=["spool"])
        assert ready() == ["ticks"]
        supervised(is_draining=True)
        assert ready() == ["supervisor"]
        assert client.get("/healthz").json() == {"status": "ok"}


def test_not_ready_without_a_supervisor(queue, tmp_path):
    path, _ = make_tokens(tmp_path, op=["admin"])
    with token_client(queue.root.path, path) as client:  # asked without a token, as a prober does
        assert client.get("/readyz").json() == {"ready": False, "checks": {"store": "ok", "supervisor": "none runs"}}
        assert client.get("/healthz").status_code == 200


def numbers(client):
    """Every sample of ``/metrics`` by name and labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_the_numbers_are_what_the_store_and_the_supervisor_say(queue, supervised):
    with local_client(queue.root.path) as client:
        found = numbers(client)
    assert found["unified_jobs", ("state", "running")] == 2
    assert found["unified_jobs", ("state", "dead")] == 0
    assert found["unified_job_steps_total", ("job", "hers")] == 30
    assert found["unified_job_progress_ratio", ("job", "hers")] == 0.75
    assert found["unified_job_memory_bytes", ("job", "hers"), ("kind", "peak"), ("slot", "0")] == 1000
    assert found["unified_slot_busy_seconds_total", ("device_uuid", ""), ("slot", "0")] == 12.5
    assert found["unified_worker_restarts_total", ("cause", "any"), ("slot", "0")] == 2
    assert found["unified_rejected_submissions_total", ("code", "E-FOLDER")] == 5
    assert (found["unified_checkpoint_seconds_count",], found["unified_checkpoint_seconds_sum",]) == (12, 0.75)
    assert (found["unified_fenced_writes_total",], found["unified_leases_expired_total",]) == (3, 1)
    assert found["unified_tick_lag_seconds", ("tick", "spool")] >= 2
    assert (found["unified_supervisor_up",], found["unified_disk_free_bytes",]) == (1, 12345)


def test_numbers_of_a_job_end_with_it_and_counters_only_grow(queue):
    with local_client(queue.root.path) as client:
        assert numbers(client)["unified_supervisor_up",] == 0
        publish(queue, "hers", {})
        found = numbers(client)
        assert not [key for key in found if ("job", "hers") in key]
        assert found["unified_job_completion_seconds_count", ("outcome", "finished")] == 1
        assert found["unified_job_slowdown_count",] == 1
        queue.store.forget("hers")
        move_job(queue, "his", JobState.FAILED)
        found = numbers(client)
        assert found["unified_job_completion_seconds_count", ("outcome", "finished")] == 1
        assert found["unified_queue_wait_seconds_bucket", ("le", "+Inf"), ("outcome", "failed")] == 1
        queue.requeue("his", by="test")
        assert numbers(client)["unified_queue_wait_seconds_count", ("outcome", "failed")] == 1
