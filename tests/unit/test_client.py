"""``unified.Client``: the same over a folder and over HTTP; what is handed in arrives, and what was sealed comes back."""

import contextlib
import json
import os
import threading
import time

import pytest
import torch

from separator.result import write_weights
from separator.separate import separate
from tests.faults.service import toml
from tests.unit.http_service import DATA, FILES, JOB, MODEL, add_job, append, make_tokens, move_job, publish, served
from tests.unit.signed_jobs import BOBS, USER, sign_for, trusted_table
from unified.errors import InvalidSubmission, UnifiedError
from unified.job import JobSpec
from unified.job_state import JobState
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, RefusedError, UnknownJobError
from unified.queue.verbs import Queue
from unified.queue.vetting import trust_in
from unified.service.client import Client
from unified.service.client_http import ServiceError
from unified.submission.umodel_read import load_umodel


@pytest.fixture
def queue(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        yield queue


@pytest.fixture(params=["folder", "http"])
def client(request, queue):
    if request.param == "folder":
        with Client(queue.root.path) as client:
            yield client
    else:
        with served(queue.root.path) as (_, url), Client(url) as client:
            yield client


def job_of(model, **changes):
    torch.manual_seed(0)
    fields = {
        "name": "tiny",
        "model": model,
        "data": {"train": (torch.randn(32, 4), torch.randint(2, (32,)))},
        "loss": "CrossEntropyLoss",
        "optimizer": {"name": "SGD", "lr": 0.1},
        "epochs": 1,
        "batch_size": 8,
    }
    return JobSpec(**(fields | changes))


def write_folder(folder, job=JOB, files=FILES):
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def finish(queue, job, model):
    """Give a job the result of having trained ``model``."""
    if queue.store.get(job).state is JobState.QUEUED:
        queue.store.lease(job, holder="me", slot=0, seconds=60, reason="placed", by="supervisor")
        move_job(queue, job, JobState.RUNNING, metrics={"train_loss": 0.5}, num_threads=1, loss=0.5)
    made = queue.root.path / "made"
    made.mkdir()
    write_weights(separate(model), made)
    publish(queue, job, {path.name: path.read_bytes() for path in made.iterdir()})


def test_a_module_arrives_as_data_and_its_trained_weights_come_back(queue, client):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    job = client.submit(job_of(model))
    assert (client.state(job), bool(client.reason(job))) == (JobState.QUEUED, True)
    spec = queue.root.spec(job)
    fields = json.loads((spec / "job.json").read_text())
    arrived = load_umodel(spec / fields["model"])
    assert all(torch.equal(arrived.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    trained = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    finish(queue, job, trained)
    (result,) = client.run()
    assert (result.name, result.state, result.reason, result.num_threads) == ("tiny", JobState.FINISHED, None, 1)
    assert result.metrics == {"train_loss": 0.5}
    assert result.timing.completion >= result.timing.waiting >= 0
    result.load_into(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    assert list(client.run()) == []


def test_the_same_job_twice_is_one(client):
    job = job_of(torch.nn.Linear(4, 2))
    assert client.submit(job) == client.submit(job)
    assert client.submit_all([job, job_of(torch.nn.Linear(4, 2), name="other")])[1].startswith("other-")


def test_a_folder_is_the_same_job_through_either_door(queue, tmp_path):
    write_folder(tmp_path / "jobs" / "a", JOB | {"data": {"train": "../data/train.pt"}}, {"model.umodel": MODEL})
    write_folder(tmp_path / "jobs" / "data", files={"train.pt": DATA})
    (tmp_path / "jobs" / "data" / "job.json").unlink()
    with served(queue.root.path) as (_, url), Client(url) as there, Client(queue.root.path) as here:
        assert there.submit_folders([tmp_path / "jobs" / "a"]) == here.submit_folders([tmp_path / "jobs" / "a"])


def test_folders_bring_along_what_they_name(queue, client, tmp_path):
    columns = {"inputs": "text", "targets": "label"}
    job = JOB | {"data": {"train": str(tmp_path / "t.csv"), "tokenizer": "../tok", "columns": columns}}
    write_folder(tmp_path / "jobs" / "a", job, {"model.umodel": MODEL, "extra/notes.txt": b"hello"})
    (tmp_path / "jobs" / "tok").mkdir()
    (tmp_path / "jobs" / "tok" / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "t.csv").write_bytes(b"text,label\nx,y\n")
    (job,) = client.submit_folders([tmp_path / "jobs" / "a"])
    folder = queue.root.spec(job)
    data = json.loads((folder / "job.json").read_text())["data"]
    assert (folder / data["train"]).read_bytes() == b"text,label\nx,y\n"
    assert (folder / data["tokenizer"] / "tokenizer.json").read_bytes() == b"{}"
    assert (folder / "extra" / "notes.txt").read_bytes() == b"hello"


@pytest.mark.parametrize("door", ["folder", "http"])
def test_a_signed_folder_arrives_with_its_signature_whole(queue, tmp_path, door):
    queue.root.config.write_text(toml({"trusted": trusted_table()}))
    (tmp_path / "t.csv").write_bytes(b"text,label\nx,y\n")
    columns = {"inputs": "text", "targets": "label"}
    job = JOB | {"user": USER, "data": {"train": str(tmp_path / "t.csv"), "columns": columns}}
    folder = write_folder(tmp_path / "job", job, {"model.umodel": MODEL})
    signature = sign_for(folder)
    with contextlib.ExitStack() as stack:
        place = queue.root.path if door == "folder" else stack.enter_context(served(queue.root.path))[1]
        client = stack.enter_context(Client(place))
        assert client.submit_folders([folder]) == [signature.claims.job] == client.submit_folders([folder])
        sign_for(folder, BOBS)
        with pytest.raises(InvalidSubmission, match="E-SIGN"):
            client.submit_folders([folder])
    (row,) = queue.store.page().jobs
    config = ServiceConfig.read(queue.root.config)
    assert trust_in(queue.root.spec(row.id), row, config) == signature.claims.model


def test_verbs_do_what_they_say(queue, client):
    add_job(queue, "a")
    client.pause("a")
    assert client.state("a") is JobState.PAUSED
    client.resume("a")
    client.cancel("a")
    assert client.state("a") is JobState.CANCELLED
    client.requeue("a", from_scratch=True)
    assert client.state("a") is JobState.QUEUED
    with pytest.raises(ConflictError, match="queued"):
        client.checkpoint("a")
    with pytest.raises(UnknownJobError):
        client.pause("nobody")
    append(queue.root.log("a"), "2026-11-21T06:30:00Z  hello\n")
    append(queue.root.metrics("a"), '{"step": 1}\n{"step": 2}\n')
    assert client.log("a") == "2026-11-21T06:30:00Z  hello\n"
    assert client.metrics("a", since=2) == [{"step": 2}]


def test_waiting_yields_each_job_as_it_ends(queue, client):
    for job in ("a", "b", "c"):
        add_job(queue, job, state=JobState.RUNNING)
    results = client.wait(["a", "b", "c"])
    move_job(queue, "b", JobState.FAILED)
    first = next(results)
    assert (first.name, first.state, first.reason, first.folder) == ("b", JobState.FAILED, "now failed", None)
    with pytest.raises(UnifiedError, match="has no weights"):
        _ = first.state_dict
    move_job(queue, "a", JobState.DEAD)
    assert next(results).name == "a"
    with pytest.raises(TimeoutError, match="c"):
        list(client.wait(["a", "c"], timeout=0.2))
    threading.Timer(0.2, lambda: move_job(queue, "c", JobState.FAILED)).start()
    assert [result.name for result in results] == ["c"]


def test_run_stops_at_jobs_that_are_paused_and_goes_on_later(queue, client):
    one, two = client.submit_all([job_of(torch.nn.Linear(4, 2), name=name) for name in ("one", "two")])
    client.pause(one)
    client.cancel(two)
    assert [result.name for result in client.run()] == ["two"]
    client.resume(one)
    client.cancel(one)
    assert [result.name for result in client.run()] == ["one"]


def test_what_is_wrong_with_a_job_is_told_as_the_engine_tells_it(client, tmp_path):
    folder = write_folder(tmp_path / "jobs" / "a", JOB | {"epochs": 0, "batch_size": -1})
    with pytest.raises(InvalidSubmission) as caught:
        client.submit_folders([folder])
    assert {problem.field for problem in caught.value.problems} == {"epochs", "batch_size"}
    missing = write_folder(tmp_path / "jobs" / "b", JOB | {"model": "none.umodel"})
    with pytest.raises(InvalidSubmission, match=r"none\.umodel"):
        client.submit_folders([missing])


def test_results_over_http_are_kept_where_asked_and_checked(queue, tmp_path):
    add_job(queue, "a", state=JobState.RUNNING)
    finish(queue, "a", torch.nn.Linear(4, 2))
    with served(queue.root.path) as (_, url):
        with Client(url, out=tmp_path / "out") as client:
            (result,) = client.wait(["a"])
            assert result.folder == tmp_path / "out" / "a"
            assert result.state_dict.keys() == {"weight", "bias"}
        weights = queue.root.result("a") / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        with Client(url) as client, pytest.raises(ServiceError, match="did not come as it was sealed"):
            list(client.wait(["a"]))
        with Client(url, out=tmp_path / "out") as client:  # what was fetched before is not fetched again
            assert [result.name for result in client.wait(["a"])] == ["a"]


def test_data_that_jobs_share_go_up_once(queue, tmp_path):
    with served(queue.root.path) as (_, url), Client(url) as client:
        model = torch.nn.Linear(4, 2)
        client.submit_all([job_of(model, name=f"job-{i}") for i in range(3)])
        assert len([path for path in queue.root.uploads.iterdir() if path.stat().st_size > 0]) <= 2 + 2
        kept = list(queue.root.files.iterdir())
        assert len([path for path in kept if path.stat().st_nlink == 4]) == 1


def test_with_tokens_each_has_their_own(queue, tmp_path, monkeypatch):
    path, headers = make_tokens(tmp_path, alice=["read", "submit"], bob=["read", "submit"], eve=["read"])
    tokens = {user: header["Authorization"].removeprefix("Bearer ") for user, header in headers.items()}
    with served(queue.root.path, "--token-file", path) as (_, url):
        with Client(url, token=tokens["alice"]) as alice, Client(url, token=tokens["bob"]) as bob:
            job = alice.submit(job_of(torch.nn.Linear(4, 2), user="somebody"))
            assert queue.get(job).user == "alice"
            with pytest.raises(UnknownJobError):
                bob.state(job)
        monkeypatch.setenv("UNIFIED_TOKEN", tokens["alice"])
        with Client(url) as alice:
            assert alice.state(job) is JobState.QUEUED
        with Client(url, token="wrong") as nobody:
            with pytest.raises(ServiceError, match="Bearer"):
                nobody.state(job)
            with pytest.raises(ServiceError, match="Bearer"):
                nobody.submit_folders([write_folder(tmp_path / "jobs" / "a")])
        with Client(url, token=tokens["eve"]) as eve, pytest.raises(ServiceError, match="scope submit"):
            eve.submit_folders([tmp_path / "jobs" / "a"])


def test_a_file_that_is_too_large_is_refused_before_it_goes_up(queue, tmp_path):
    (queue.root.path / "config.toml").write_text("max_archive_bytes = 1000\n")
    folder = write_folder(tmp_path / "jobs" / "a", files=FILES | {"big.bin": os.urandom(5000)})
    with served(queue.root.path) as (_, url), Client(url) as client, pytest.raises(RefusedError, match="max_archive_bytes"):
        client.submit_folders([folder])


def test_a_service_that_comes_back_is_waited_for(queue, tmp_path):
    folder = write_folder(tmp_path / "jobs" / "a", files=FILES | {"big.bin": os.urandom(3 << 20)})
    with served(queue.root.path) as (_, url):
        pass
    port = int(url.rpartition(":")[2])
    done = []
    with Client(url) as client:
        thread = threading.Thread(target=lambda: done.extend(client.submit_folders([folder])))
        thread.start()
        time.sleep(0.1)
        with served(queue.root.path, port=port):
            thread.join()
    assert queue.get(done[0]).state is JobState.QUEUED


def test_nobody_there_is_said(monkeypatch):
    monkeypatch.setattr("unified.service.client_http._TRIES", 1)
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceError, match=r"cannot be reached.*is it running"):
        client.state("a")
    with pytest.raises(UnifiedError, match="expected a folder or an address"):
        Client("ftp://127.0.0.1")
