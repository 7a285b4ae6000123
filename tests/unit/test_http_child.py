"""The HTTP process as its supervisor has it: what is said at the start, and how often one that fails is started again."""

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.http_service import make_tokens
from unified.queue.verbs import Queue
from unified.service.http_child import MAX_SECONDS, MIN_SECONDS, STEADY_SECONDS, HttpChild, wait_after


@pytest.fixture
def root(tmp_path):
    with Queue.open(tmp_path / "root", make=True):
        pass
    return tmp_path / "root"


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def serve(root, *options):
    """Run ``unified serve``, which must refuse; returns what it says."""
    command = [sys.executable, "-m", "unified", "serve", "--root", str(root), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_in_use_ends_the_service_before_it_begins(tmp_path, taken):
    where = f"127.0.0.1:{taken.getsockname()[1]}"
    said = serve(tmp_path / "root", "--http", where)
    assert said == f"unified: cannot listen on {where}: Address already in use; choose another --http\n"
    assert not (tmp_path / "root").exists()


def test_a_token_file_that_is_none_does_too(tmp_path):
    (tmp_path / "tokens").write_text("rubbish\n")
    assert "expected 'sha256:HASH SCOPE,SCOPE USER'" in serve(
        tmp_path / "root", "--http", "127.0.0.1:0", "--token-file", tmp_path / "tokens"
    )


@given(st.lists(st.floats(0, STEADY_SECONDS - 1), min_size=1, max_size=20), st.floats(STEADY_SECONDS, 1e6))
def test_waits_double_up_to_a_limit_and_begin_anew_after_a_steady_one(lives, steady):
    wait, waits = 0.0, []
    for lived in lives:
        wait = wait_after(wait, lived)
        waits.append(wait)
    assert waits == [min(MIN_SECONDS * 2**number, MAX_SECONDS) for number in range(len(lives))]
    assert wait_after(wait, steady) == MIN_SECONDS


def test_one_that_fails_is_started_ever_more_rarely(root, taken):
    now = 1000.0
    child = HttpChild(host="127.0.0.1", port=taken.getsockname()[1], token_file=None, root=root, clock=lambda: now)
    starts = []
    before = None
    while now < 1050:
        child.ensure()
        if child.pid is not None and child.pid != before:
            starts.append(now - 1000)
            before = child.pid
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it fails; the clock stands meanwhile
        now += 1
    child.stop()
    assert starts == [0, 5, 15, 35]


def test_one_that_is_killed_comes_again(root, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    now = 1000.0
    tokens, _ = make_tokens(tmp_path, op=["admin"])
    child = HttpChild(host="127.0.0.1", port=port, token_file=tokens, root=root, clock=lambda: now)

    def until_served():
        child.ensure()
        while True:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code
            except httpx.TransportError:
                time.sleep(0.05)

    try:
        assert until_served() == 200
        first = child.pid
        now += MAX_SECONDS
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert until_served() == 200
        assert child.pid != first
    finally:
        child.stop()
    assert child.pid is None
