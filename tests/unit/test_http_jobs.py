"""The routes about jobs: what they show, what they do, and that nobody reaches other people's."""

import base64
import datetime
import io
import json
import zipfile

import pytest

from tests.unit.http_service import add_job, append, local_client, make_tokens, move_job, publish, sha256, token_client
from unified.job_state import JobState
from unified.queue.verbs import Queue
from unified.service.http_app import make_app


@pytest.fixture
def queue(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        yield queue


@pytest.fixture
def client(queue):
    with local_client(queue.root.path) as client:
        yield client


def test_a_job_is_shown_with_all_that_was_promised(queue, client):
    add_job(queue, "a", user="alice", state=JobState.RUNNING, steps_done=5, steps_total=20, step_seconds=0.5)
    job = client.get("/v1/jobs/a").json()
    assert job["schema"] == 1
    assert (job["id"], job["name"], job["user"], job["state"]) == ("a", "a", "alice", "running")
    assert (job["steps_done"], job["steps_total"], job["eta_seconds"], job["epoch"]) == (5, 20, 7.5, 1)
    assert (job["result"], job["slot"], job["loss"], job["metrics"]) == (False, 0, None, {})
    assert job["spec"]["batch_size"] == 8
    assert job["attempts"] == [
        {"epoch": 1, "started": job["attempts"][0]["started"], "ended": None, "outcome": None, "reason": None}
    ]
    assert job["submit_time"].endswith("Z")
    assert datetime.datetime.fromisoformat(job["submit_time"])
    assert job["reason"]


def test_a_number_that_json_does_not_know_is_null(queue, client):
    add_job(queue, "a", state=JobState.RUNNING, loss=float("nan"), metrics={"test_loss": float("inf"), "accuracy": 0.5})
    job = client.get("/v1/jobs/a").json()
    assert (job["loss"], job["metrics"]) == (None, {"test_loss": None, "accuracy": 0.5})


def test_attempts_tell_how_each_stay_on_a_slot_ended(queue, client):
    add_job(queue, "a", state=JobState.RUNNING)
    move_job(queue, "a", JobState.QUEUED)
    queue.store.lease("a", holder="me", slot=0, seconds=60, reason="again", by="supervisor")
    move_job(queue, "a", JobState.RUNNING)
    move_job(queue, "a", JobState.FAILED)
    attempts = client.get("/v1/jobs/a").json()["attempts"]
    assert [(each["epoch"], each["outcome"]) for each in attempts] == [(1, "queued"), (2, "failed")]
    moves = client.get("/v1/jobs/a/transitions").json()["transitions"]
    assert [move["new"] for move in moves] == ["queued", "loading", "running", "queued", "loading", "running", "failed"]
    assert moves[0]["old"] is None


def test_pages_go_through_all_jobs_once(queue, client):
    names = [add_job(queue, f"job-{i}") for i in range(7)]
    found, cursor = [], None
    while True:
        page = client.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        found += [job["id"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == names
    newest = client.get("/v1/jobs", params={"newest": 1, "limit": 1}).json()["jobs"]
    assert [job["id"] for job in newest] == names[-1:]


def test_jobs_are_chosen_by_state_and_user(queue, client):
    add_job(queue, "a", user="alice", state=JobState.RUNNING)
    add_job(queue, "b", user="bob", state=JobState.PAUSED)
    add_job(queue, "c", user="alice")

    def ids(**params):
        return [job["id"] for job in client.get("/v1/jobs", params=params).json()["jobs"]]

    assert ids(user="alice") == ["a", "c"]
    assert ids(state=["running", "paused"]) == ["a", "b"]
    assert ids(state="queued", user="bob") == []


def cursor(text):
    return {"cursor": base64.urlsafe_b64encode(text.encode()).decode()}


CURSORS = [
    '[1.0,"\\ud800",false]',
    '[1.0,"\\u0000",false]',
    '[NaN,"a",false]',
    '[1e999,"a",false]',
    "[1.0,[],false]",
    '[1.0,"a",1]',
]


@pytest.mark.parametrize("text", [*CURSORS, "[1.0]", "[]", "{}", "null", "1", '"abc"', "[" * 10_000])
def test_a_cursor_that_no_page_gave_is_refused(client, text):
    answer = client.get("/v1/jobs", params=cursor(text))
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-cursor")


@pytest.mark.parametrize("params", [{"state": "sleeping"}, {"limit": 0}, {"limit": "many"}, {"cursor": "rubbish"}])
def test_a_listing_that_cannot_be_is_a_problem(client, params):
    answer = client.get("/v1/jobs", params=params)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"


VERBS = [
    (JobState.QUEUED, "pause", 200, "paused"),
    (JobState.PAUSED, "pause", 200, "paused"),
    (JobState.PAUSED, "resume", 200, "queued"),
    (JobState.QUEUED, "cancel", 200, "cancelled"),
    (JobState.CANCELLED, "cancel", 200, "cancelled"),
    (JobState.CANCELLED, "requeue", 200, "queued"),
    (JobState.RUNNING, "pause", 202, "running"),
    (JobState.RUNNING, "cancel", 202, "running"),
    (JobState.RUNNING, "checkpoint", 202, "running"),
    (JobState.CANCELLED, "pause", 409, "cancelled"),
    (JobState.FAILED, "resume", 409, "failed"),
    (JobState.FINISHED, "cancel", 409, "finished"),
    (JobState.FINISHED, "requeue", 409, "finished"),
]


@pytest.mark.parametrize(("state", "verb", "status", "after"), VERBS)
def test_a_verb_is_done_or_asked_for_or_impossible(queue, client, state, verb, status, after):
    add_job(queue, "a", state=state)
    answer = client.post(f"/v1/jobs/a:{verb}", json={})
    assert answer.status_code == status
    assert client.get("/v1/jobs/a").json()["state"] == after
    if status == 409:
        assert (answer.json()["code"], str(state) in answer.json()["detail"]) == ("conflict", True)
    else:
        assert (answer.json()["done"], answer.json()["job"]["id"]) == (status == 200, "a")


def test_a_verb_refuses_options_it_does_not_have(queue, client):
    add_job(queue, "a", state=JobState.CANCELLED)
    assert client.post("/v1/jobs/a:requeue", json={"from_scrach": True}).status_code == 422
    assert client.post("/v1/jobs/a:pause", json={"wait_seconds": 1e9}).status_code == 422
    assert client.post("/v1/jobs/a:requeue", json={"from_scratch": True}).status_code == 200


def test_an_unknown_job_and_a_short_id(queue, client):
    add_job(queue, "lenet-1")
    add_job(queue, "lenet-2")
    assert client.get("/v1/jobs/nobody").json()["code"] == "unknown-job"
    answer = client.get("/v1/jobs/lenet")
    assert (answer.status_code, answer.json()["code"]) == (409, "ambiguous-id")
    add_job(queue, "other-1")
    assert client.get("/v1/jobs/oth").json()["id"] == "other-1"


def test_a_log_is_read_whole_or_its_end(queue, client):
    add_job(queue, "a")
    assert client.get("/v1/jobs/a/logs").text == ""
    append(queue.root.log("a"), "one\ntwo\nthree\nunfinish")
    answer = client.get("/v1/jobs/a/logs")
    assert (answer.text, answer.headers["content-type"]) == ("one\ntwo\nthree\nunfinish", "text/plain; charset=utf-8")
    assert client.get("/v1/jobs/a/logs?tail=2").text == "two\nthree\n"
    assert client.get("/v1/jobs/a/logs?tail=0").text == ""


def test_metrics_are_read_from_a_step_on(queue, client):
    add_job(queue, "a")
    rows = [{"step": step, "loss": float("nan") if step == 2 else 1.0, "company": ["x", "y"]} for step in (1, 2, 3)]
    append(queue.root.metrics("a"), "".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    found = client.get("/v1/jobs/a/metrics", params={"since": 2}).json()["rows"]
    assert [(row["step"], row["loss"], row["num_company"]) for row in found] == [(2, None, 2), (3, 1.0, 2)]


RESULT = {"model.safetensors": bytes(range(256)) * 5000, "metrics.jsonl": b"{}\n", "sub/x.txt": b"deep"}


@pytest.fixture
def finished(queue):
    add_job(queue, "a", state=JobState.RUNNING)
    publish(queue, "a", {name: content for name, content in RESULT.items() if "/" not in name})
    append(queue.root.result("a") / "sub" / "x.txt", "deep")
    return "a"


def test_a_result_comes_file_by_file_in_ranges_and_as_one_zip(queue, client, finished):
    assert client.get("/v1/jobs/a").json()["result"] is True
    files = {item["name"]: item["bytes"] for item in client.get("/v1/jobs/a/artifacts").json()["files"]}
    assert files.keys() == RESULT.keys() | {"result.json"}
    for name, content in RESULT.items():
        assert files[name] == len(content)
        assert client.get(f"/v1/jobs/a/artifacts/{name}").content == content
    part = client.get("/v1/jobs/a/artifacts/model.safetensors", headers={"Range": "bytes=1000000-"})
    assert (part.status_code, part.content) == (206, RESULT["model.safetensors"][1000000:])
    with zipfile.ZipFile(io.BytesIO(client.get("/v1/jobs/a/artifacts.zip").content)) as archive:
        assert archive.testzip() is None
        assert {name: sha256(archive.read(name)) for name in RESULT} == {n: sha256(c) for n, c in RESULT.items()}


@pytest.mark.parametrize("name", ["nothing", "../a/result.json", "..%2f..%2fstore.db", "%2fetc%2fpasswd", "sub", "%00"])
def test_what_is_no_file_of_the_result_is_not_found(client, finished, name):
    answer = client.get(f"/v1/jobs/a/artifacts/{name}")
    assert answer.status_code == 404
    assert b"SQLite" not in answer.content


def test_a_job_without_a_result_has_no_files(queue, client):
    add_job(queue, "a")
    assert client.get("/v1/jobs/a/artifacts").json()["files"] == []
    assert client.get("/v1/jobs/a/artifacts.zip").status_code == 404


def job_routes():
    """Every route about one job, with its method."""
    app = make_app(".", tokens=None)
    return [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods if "{job}" in path]


@pytest.mark.parametrize(("method", "path"), job_routes())
def test_other_peoples_jobs_do_not_exist(queue, tmp_path, method, path):
    add_job(queue, "hers", user="alice", state=JobState.RUNNING)
    publish(queue, "hers", {"x": b"x"})
    tokens, headers = make_tokens(tmp_path, bob=["read", "submit"], eve=["submit"], op=["admin"])
    url = path.replace("{job}", "hers").replace("{name}", "x")
    with token_client(queue.root.path, tokens) as client:
        asked = {"method": method, "url": url} | ({"json": {}} if method == "POST" else {})
        theirs = client.request(**asked, headers=headers["bob"])
        assert (theirs.status_code, theirs.json()["code"]) == (404, "unknown-job")
        missing = client.request(**asked | {"url": url.replace("hers", "none")}, headers=headers["bob"])
        assert theirs.json() | {"detail": ""} == missing.json() | {"detail": ""}
        assert "alice" not in theirs.text
        assert client.request(**asked).status_code == 401
        assert client.request(**asked, headers={"Authorization": "Bearer unified_x"}).status_code == 401
        assert client.request(**asked, headers=headers["eve"]).status_code == (404 if method == "POST" else 403)
        assert client.request(**asked, headers=headers["op"]).status_code in {200, 202, 409}


def test_a_user_lists_and_steers_their_own_and_an_operator_all(queue, tmp_path):
    add_job(queue, "hers", user="alice")
    add_job(queue, "his", user="bob")
    path, headers = make_tokens(tmp_path, alice=["read", "submit"], op=["admin"])
    with token_client(queue.root.path, path) as client:

        def ids(who, **params):
            return [job["id"] for job in client.get("/v1/jobs", params=params, headers=headers[who]).json()["jobs"]]

        assert ids("alice") == ids("alice", user="alice") == ["hers"]
        assert ids("alice", user="bob") == []
        assert ids("op") == ["hers", "his"]
        assert ids("op", user="bob") == ["his"]
        assert client.post("/v1/jobs/hers:cancel", json={}, headers=headers["alice"]).status_code == 200
        assert client.post("/v1/jobs/his:pause", json={}, headers=headers["op"]).status_code == 200
    assert queue.store.transitions("hers")[-1].by == "alice"


def test_who_is_beside_a_job_is_the_operators_to_know(queue, tmp_path):
    add_job(queue, "hers", user="alice")
    append(queue.root.metrics("hers"), json.dumps({"step": 1, "company": ["his"]}) + "\n")
    path, headers = make_tokens(tmp_path, alice=["read"], op=["admin"])
    with token_client(queue.root.path, path) as client:
        shown = client.get("/v1/jobs/hers/metrics", headers=headers["alice"])
        assert shown.json()["rows"] == [{"step": 1, "num_company": 1}]
        assert client.get("/v1/jobs/hers/metrics", headers=headers["op"]).json()["rows"][0]["company"] == ["his"]


LETTER = {"schema": 1, "reason": "it crashed twice", "neighbours": ["his-1", "his-2"], "host": "node-7", "slot": 0}


@pytest.mark.parametrize("content", [LETTER, LETTER | {"neighbours": None}, ["his-1"], None])
def test_a_dead_letter_tells_its_owner_nothing_of_others_and_the_machine(queue, tmp_path, content):
    add_job(queue, "hers", user="alice", state=JobState.DEAD)
    append(queue.root.dead("hers") / "reason.json", "his-1, torn" if content is None else json.dumps(content))
    append(queue.root.dead("hers") / "log.txt", "a line\n")
    path, headers = make_tokens(tmp_path, alice=["read"], op=["admin"])
    whole = (queue.root.dead("hers") / "reason.json").read_bytes()
    with token_client(queue.root.path, path) as client:
        shown = client.get("/v1/jobs/hers/artifacts/reason.json", headers=headers["alice"])
        packed = client.get("/v1/jobs/hers/artifacts.zip", headers=headers["alice"])
        files = client.get("/v1/jobs/hers/artifacts", headers=headers["alice"]).json()["files"]
        assert client.get("/v1/jobs/hers/artifacts/reason.json", headers=headers["op"]).content == whole
        assert client.get("/v1/jobs/hers/artifacts/log.txt", headers=headers["alice"]).content == b"a line\n"
    assert b"his-" not in shown.content
    assert b"node-7" not in shown.content
    assert shown.headers["content-disposition"] == 'attachment; filename="reason.json"'
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "log.txt": b"a line\n",
            "reason.json": shown.content,
        }
    assert {item["name"]: item["bytes"] for item in files} == {"log.txt": 7, "reason.json": len(shown.content)}
    if content == LETTER:
        assert shown.json() == {"schema": 1, "reason": "it crashed twice", "slot": 0, "num_neighbours": 2}


def test_without_tokens_a_dead_letter_is_as_it_was_written(queue, client):
    add_job(queue, "a", state=JobState.DEAD)
    append(queue.root.dead("a") / "reason.json", json.dumps(LETTER))
    assert client.get("/v1/jobs/a/artifacts/reason.json").json() == LETTER
