"""A queue with some jobs, and the service over it: in this process, or in one of its own on a free port."""

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from fastapi.testclient import TestClient

from unified.job_state import ENDED, JobState
from unified.queue.records import NewJob
from unified.queue.verbs import Queue
from unified.service.http_app import make_app
from unified.service.http_auth import Tokens, make_token

JOB = {
    "name": "tiny",
    "model": "model.umodel",
    "data": {"train": "train.pt"},
    "loss": "MSELoss",
    "optimizer": {"name": "SGD", "lr": 0.1},
    "epochs": 1,
    "batch_size": 8,
}
LOCAL = "http://127.0.0.1"


def packed(**files):
    """A whole zip: what a model or a tensor file is, as far as anybody looks who does not load it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


MODEL = packed(**{"manifest.json": "{}"})
CODE = packed(**{"code/data.pkl": "what runs when it is loaded"})
DATA = packed(**{"train/data.pkl": "tensors"})
FILES = {"model.umodel": MODEL, "train.pt": DATA}


def local_client(root):
    """The app without tokens, as somebody on this machine reaches it; started when entered."""
    return TestClient(make_app(root, tokens=None), base_url=LOCAL)


def make_tokens(folder, **users):
    """A token file; ``users`` are names with lists of scopes. Returns it and the headers of each."""
    pairs = {user: make_token(user, scopes) for user, scopes in users.items()}
    path = Path(folder, "tokens")
    path.write_text("# who may come in\n\n" + "".join(f"{line}\n" for _, line in pairs.values()))
    return path, {user: {"Authorization": f"Bearer {token}"} for user, (token, _) in pairs.items()}


def token_client(root, path):
    return TestClient(make_app(root, tokens=Tokens(path)), base_url="http://queue.example")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(job=JOB, files=FILES):
    """A job folder as a zip; equal for equal jobs."""
    return packed(**{"job.json": json.dumps(job)} | files)


def add_job(queue, name, *, user="", state=JobState.QUEUED, **changes):
    """Put a job into the store and take it along legal moves to a state; returns its id."""
    spec = JOB | {"name": name}
    new = NewJob(id=name, name=name, user=user, spec=spec, content_sha256=sha256(name.encode()))
    queue.store.submit(new, by=user or "test")
    queue.root.spec(name).mkdir(parents=True)
    (queue.root.spec(name) / "job.json").write_text(json.dumps(spec))
    if state is JobState.QUEUED:
        return name
    if state in {JobState.PAUSED, JobState.CANCELLED}:
        move_job(queue, name, state, **changes)
        return name
    queue.store.lease(name, holder="me", slot=0, seconds=60, reason="placed", by="supervisor")
    path = {
        JobState.LOADING: [],
        JobState.RETRY_WAIT: [JobState.RETRY_WAIT],
        JobState.CANCELLING: [JobState.CANCELLING],
    }.get(state, [JobState.RUNNING, *([] if state is JobState.RUNNING else [state])])
    for step in path:
        move_job(queue, name, step, **(changes if step is path[-1] else {}))
    return name


def move_job(queue, job, state, **changes):
    row = queue.store.get(job)
    if state in ENDED:
        changes = {"finished_time": time.time()} | changes
    queue.store.move(job, state, old=row.state, epoch=row.epoch, reason=f"now {state}", by="supervisor", **changes)


def publish(queue, job, files):
    """Give a job that is running a published result."""
    folder = queue.root.result(job)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sealed = {"name": job, "sha256": {name: sha256(content) for name, content in files.items()}}
    (folder / "result.json").write_text(json.dumps(sealed))
    move_job(queue, job, JobState.FINISHED, result_path=f"results/{job}", training_seconds=0.5)


def append(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


@contextlib.contextmanager
def served(root, *options, host="127.0.0.1", port=0):
    """The service in a process of its own; yields the process and its address."""
    with Queue.open(root, make=True):
        pass
    command = [sys.executable, "-m", "unified.service.http_process", str(root), host, str(port), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), process.stderr.read()
        yield process, line.removeprefix("listening on ").strip()
    finally:
        process.kill()
        process.communicate()
