"""The process that serves: where it listens, how it ends, and that broken connections cost nothing."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.unit.http_service import DATA, add_job, make_tokens, served, sha256
from unified.job_state import JobState
from unified.queue.verbs import Queue

COMMAND = [sys.executable, "-m", "unified.service.http_process"]


@pytest.fixture
def root(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        add_job(queue, "a", state=JobState.RUNNING)
    return tmp_path / "root"


@contextlib.contextmanager
def started(url, path, length, method="PUT", kind="application/zip"):
    """A request whose body is yet to come."""
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)) as connection:
        connection.putrequest(method, path)
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        yield connection


def refused(*arguments):
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", ""])
def test_other_machines_are_not_served_without_tokens(root, host):
    assert refused(root, host, 0) == f"unified: refusing to listen on {host} without --token-file\n"


def test_with_tokens_other_machines_are_served(root, tmp_path):
    tokens, headers = make_tokens(tmp_path, op=["admin"])
    with served(root, "--token-file", tokens, host="0.0.0.0") as (_, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/jobs").status_code == 401
        assert len(httpx.get(f"{url}/v1/jobs", headers=headers["op"]).json()["jobs"]) == 1


def test_what_cannot_be_served_is_said_in_a_line(root, tmp_path):
    (tmp_path / "empty").touch()
    assert "has no tokens" in refused(root, "127.0.0.1", 0, "--token-file", tmp_path / "empty")
    assert "cannot be read" in refused(root, "127.0.0.1", 0, "--token-file", tmp_path / "none")
    assert "is not a queue's folder" in refused(tmp_path / "nothing", "127.0.0.1", 0)
    assert "cannot listen on nowhere.invalid" in refused(root, "nowhere.invalid", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another" in refused(root, "127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_ends_streams_too_and_well(root, number):
    with served(root) as (process, url):
        with httpx.stream("GET", f"{url}/v1/jobs/a/logs?follow=1", timeout=20) as answer:
            process.send_signal(number)
            assert b"".join(answer.iter_raw()) == b""
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_those_who_wait_for_the_supervisor_do_not_hold_up_the_end(root):
    with Queue.open(root) as queue, served(root) as (process, url):
        lock = queue.root.take_lock()  # of a supervisor that never gets to it
        with started(url, "/v1/jobs/a:pause", 20, method="POST", kind="application/json") as connection:
            connection.send(b'{"wait_seconds": 30}')
            while not queue.store.pending():
                time.sleep(0.02)
            process.terminate()
            assert process.wait(20) == 0
        os.close(lock)


def test_it_ends_with_its_parent(root):
    code = (
        "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True); "
        "print(p.stdout.readline().split()[-1], p.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, *COMMAND, str(root), "127.0.0.1", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        url, pid = parent.stdout.readline().split()
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        parent.kill()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.05)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_it_ends_at_once_if_its_parent_is_gone_already(root):
    command = [*COMMAND, str(root), "127.0.0.1", "0", "--parent", str(os.getpid() + 1)]
    assert subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def test_a_kill_amid_an_upload_keeps_what_came_and_the_rest_completes_it(root):
    content = os.urandom(5 << 20)
    path = f"/v1/uploads/{sha256(content)}"
    with served(root) as (process, url), started(url, path, len(content)) as connection:
        connection.send(content[: 3 << 20])
        while int(httpx.head(url + path).headers["upload-offset"]) < 2 << 20:
            time.sleep(0.02)
        process.kill()
    with served(root) as (_, url):
        offset = int(httpx.head(url + path).headers["upload-offset"])
        assert 2 << 20 <= offset <= 3 << 20
        range_ = {"Content-Range": f"bytes {offset}-{len(content) - 1}/{len(content)}"}
        assert httpx.put(url + path, content=content[offset:], headers=range_).status_code == 201
        assert httpx.head(url + path).status_code == 200


def test_a_broken_connection_leaves_an_upload_to_go_on_with(root):
    content = os.urandom(300_000)
    path = f"/v1/uploads/{sha256(content)}"
    with served(root) as (process, url):
        with started(url, path, len(content)) as connection:
            connection.send(content[:100_000])
        while int(httpx.head(url + path).headers["upload-offset"]) < 100_000:
            time.sleep(0.02)
        answer = httpx.put(url + path, content=content)
        assert answer.status_code == 201
        process.terminate()
        process.wait(20)
        assert process.stderr.read() == ""


def test_two_that_bring_the_same_file_do_not_mix(root):
    path = f"/v1/uploads/{sha256(DATA)}"
    with served(root) as (_, url), started(url, path, len(DATA)) as connection:
        connection.send(DATA[:10])
        while not list((root / "uploads").glob("*.part")):
            time.sleep(0.02)
        answer = httpx.put(url + path, content=DATA)
        assert (answer.status_code, answer.json()["code"]) == (409, "upload-busy")
        connection.send(DATA[10:])
        with connection.getresponse() as answer:
            assert answer.status == 201


def test_a_body_that_is_too_large_ends_early(root):
    (root / "config.toml").write_text("max_archive_bytes = 100000\n")
    with served(root) as (_, url), started(url, "/v1/jobs", 1 << 40, method="POST") as connection:
        connection.send(b"x" * 200_000)
        with connection.getresponse() as answer:
            assert (answer.status, answer.getheader("connection")) == (413, "close")
