"""What nobody can do to the others: fill the memory, hold all connections, or follow so much that nobody else can."""

import contextlib
import http.client
import json
import resource
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import anyio
import httpx
import pytest
import uvicorn
from starlette.types import Message

from serving.http.connections import ConnectionLimits, bounded_protocol
from serving.http.problems import no_http
from tests.unit.http_service import LOCAL, add_job, local_client, make_tokens, served, token_client
from unified.job_state import JobState
from unified.queue.verbs import Queue
from unified.service import http_guard, http_streams
from unified.service.http_app import make_app
from unified.service.http_guard import MAX_BODY_BYTES
from unified.service.http_problems import HttpError
from unified.service.http_streams import MAX_STREAMS_PER_USER, Streams

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def root(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        add_job(queue, "a", user="alice", state=JobState.RUNNING)
    return tmp_path / "root"


@pytest.fixture
def many_files():
    """Room for more connections than the service takes."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def address_of(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def memory_of(process):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def ask_with_body(url, headers, pieces=(), length=None, method="POST", path="/v1/jobs/a:pause"):
    """The status of a request whose body does not end, or is longer than what is sent of it."""
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)) as connection:
        connection.putrequest(method, path)
        for name, value in (JSON | headers).items():
            connection.putheader(name, value)
        connection.putheader(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
        connection.endheaders()
        with contextlib.suppress(OSError):  # it stopped to listen
            for piece in pieces:
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        try:
            with connection.getresponse() as answer:
                return answer.status
        except OSError:
            return "closed"


def test_nobody_fills_the_memory_with_a_body(root, tmp_path):
    tokens, headers = make_tokens(tmp_path, alice=["submit"])
    piece = b" " * (1 << 20)
    with served(root, "--token-file", tokens) as (process, url):
        assert ask_with_body(url, {}, length=600 << 20) == 401
        for method, path in (("POST", "/v1/jobs/a:pause"), ("POST", "/v1/jobs"), ("PUT", f"/v1/uploads/{'0' * 64}")):
            assert ask_with_body(url, {}, method=method, path=path) == 401  # whoever is not known is not waited for
        assert ask_with_body(url, headers["alice"], length=600 << 20) == 413
        before = memory_of(process)
        for who in ({}, headers["alice"]):
            assert ask_with_body(url, who, pieces=[piece] * 200) in {401, 413, "closed"}
        assert memory_of(process) - before < 50 << 20
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.terminate()
        assert (process.wait(20), process.stderr.read()) == (0, "")


@pytest.mark.parametrize("path", ["/v1/jobs/a:pause", "/v1/jobs/a:requeue", "/nowhere", "/v1/jobs/"])
def test_a_body_that_is_too_large_is_a_problem(root, path):
    with local_client(root) as client:
        for content in (b" " * (MAX_BODY_BYTES + 1), iter([b" " * MAX_BODY_BYTES, b" "])):
            answer = client.post(path, content=content, headers=JSON)
            assert (answer.status_code, answer.json()["code"], answer.headers["connection"]) == (413, "too-large", "close")
            assert str(MAX_BODY_BYTES) in answer.json()["detail"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_as_large_as_it_may_be_arrives_whole(root):
    body = b'{"wait_seconds": 0' + b" " * (MAX_BODY_BYTES - 19) + b"}"
    with local_client(root) as client:
        assert client.post("/v1/jobs/a:pause", content=body, headers=JSON).status_code == 202
        assert client.post("/v1/jobs/a:pause", content=iter([body[:7], body[7:]]), headers=JSON).status_code == 202
        assert client.post("/v1/jobs/a:pause", content=b"{", headers=JSON).status_code == 422


def asgi_answers(root, receive):
    """What the app sends to a POST whose body comes from ``receive``."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/jobs/a:pause", "raw_path": b""}
    scope |= {"query_string": b"", "headers": headers, "scheme": "http", "server": ("127.0.0.1", 80), "root_path": ""}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    anyio.run(make_app(root, tokens=None), scope, receive, send)
    return sent


def test_a_body_that_does_not_come_is_not_waited_for(root, monkeypatch):
    monkeypatch.setattr(http_guard, "BODY_SECONDS", 0.05)
    start, body = asgi_answers(root, anyio.sleep_forever)
    assert (start["status"], json.loads(body["body"])["code"]) == (408, "timeout")
    assert (b"connection", b"close") in start["headers"]


def test_a_connection_that_breaks_amid_a_body_is_answered_nothing(root):
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert asgi_answers(root, receive) == []


@pytest.mark.usefixtures("many_files")
def test_those_who_never_finish_their_head_do_not_keep_others_out(root, tmp_path):
    tokens, headers = make_tokens(tmp_path, alice=["read"])
    with contextlib.ExitStack() as stack:
        process, url = stack.enter_context(served(root, "--token-file", tokens))
        with httpx.stream("GET", f"{url}/v1/jobs/a/logs?follow=1", headers=headers["alice"], timeout=20) as followed:
            for _ in range(1100):
                connection = stack.enter_context(socket.create_connection(address_of(url), timeout=20))
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            for _ in range(3):
                assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
            with Queue.open(root) as queue:
                move_to_end(queue)
            assert b"event: end" in followed.read()  # who is being answered has kept the connection
        process.terminate()
        assert (process.wait(20), process.stderr.read()) == (0, "")


def move_to_end(queue):
    row = queue.store.get("a")
    queue.store.move("a", JobState.FAILED, old=row.state, epoch=row.epoch, reason="x", by="test", finished_time=time.time())


ANSWER = b"x" * (8 << 20)


async def answering(scope, receive, send):
    """An app that answers at once, whatever is asked."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(ANSWER))]})
        await send({"type": "http.response.body", "body": ANSWER if scope["path"] == "/large" else b"", "more_body": False})


@contextlib.contextmanager
def bounded_server(**limits):
    """A server in a thread that gives up on who brings no request; yields its address and connections."""
    protocol = bounded_protocol(no_http, ConnectionLimits(keep_alive_seconds=limits["head_seconds"], **limits))
    config = uvicorn.Config(answering, http=protocol, lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname(), server.server_state.connections
        finally:
            server.should_exit = True
            thread.join()


def is_closed(connection):
    """Wait for the other side to close a connection; what it said before is passed over."""
    num_bytes_of(connection)
    return True


HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "said", [b"", b"G", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + HEAD, HEAD + b"Content-Length: 9\r\n\r\nxx"]
)
def test_who_brings_no_request_is_closed(said):
    with bounded_server(head_seconds=0.2) as (address, _), socket.create_connection(address, timeout=20) as connection:
        connection.sendall(said)
        assert is_closed(connection)


def test_single_bytes_prolong_nothing():
    with bounded_server(head_seconds=0.2) as (address, _), socket.create_connection(address, timeout=20) as connection:
        connection.sendall(HEAD)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while True:
                connection.sendall(b"X")
                time.sleep(0.02)


def test_what_is_no_http_is_answered_like_all_else(root):
    with served(root) as (_, url), socket.create_connection(address_of(url), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert (json.loads(body)["status"], json.loads(body)["code"]) == (400, "http")


def test_the_oldest_make_room():
    with contextlib.ExitStack() as stack:
        address, _ = stack.enter_context(bounded_server(head_seconds=600, max_idle=3))
        connections = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(5)]
        assert all(map(is_closed, connections[:2]))
        for connection in connections[2:]:
            connection.sendall(HEAD + b"\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_who_reads_slowly_gets_all_and_who_does_not_read_is_closed():
    request = b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with bounded_server(head_seconds=0.1, send_seconds=1) as (address, connections), contextlib.ExitStack() as stack:
        slow, silent = (stack.enter_context(socket.socket()) for _ in range(2))
        for connection in (slow, silent):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            connection.settimeout(20)
            connection.connect(address)
            connection.sendall(request)
        assert num_bytes_of(slow, pause=0.002) > len(ANSWER)
        while connections:  # of the server; the other one's is over too, though it has not read a byte
            time.sleep(0.05)
        assert num_bytes_of(silent) < len(ANSWER)


def num_bytes_of(connection, pause=0.0):
    """How much comes until the other side closes."""
    num_bytes = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 17):
            num_bytes += len(piece)
            time.sleep(pause)
    return num_bytes


def test_one_cannot_follow_so_much_that_others_cannot(root, tmp_path):
    tokens, headers = make_tokens(tmp_path, alice=["read"], op=["admin"])
    with contextlib.ExitStack() as stack:
        _, url = stack.enter_context(served(root, "--token-file", tokens))
        head = f"GET /v1/jobs/a/logs?follow=1 HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['alice']['Authorization']}\r\n\r\n"
        connections = [
            stack.enter_context(socket.create_connection(address_of(url), timeout=20)) for _ in range(MAX_STREAMS_PER_USER + 9)
        ]
        for connection in connections:  # all at once: none is counted before another is let in
            connection.sendall(head.encode())
        answers = [connection.recv(1 << 16) for connection in connections]
        assert Counter(answer.split()[1] for answer in answers) == {b"200": MAX_STREAMS_PER_USER, b"429": 9}
        answer = httpx.get(f"{url}/v1/jobs/a/metrics?follow=1", headers=headers["alice"])
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (429, "your-streams", "10")
        with httpx.stream("GET", f"{url}/v1/jobs/a/logs?follow=1", headers=headers["op"], timeout=20) as followed:
            assert followed.status_code == 200
        for connection in connections:
            connection.close()
        ask = {"url": f"{url}/v1/jobs/a/logs?follow=1", "headers": headers["alice"], "timeout": 20}
        while status_of(ask) == 429:  # until it has noticed that they are gone
            time.sleep(0.05)
        assert status_of(ask) == 200


def status_of(ask):
    with httpx.stream("GET", **ask) as answer:
        return answer.status_code


def test_a_place_is_free_again_however_its_reader_left(monkeypatch):
    monkeypatch.setattr(http_streams, "MAX_STREAMS_PER_USER", 1)
    monkeypatch.setattr(http_streams, "MAX_STREAMS", 2)
    streams = Streams()
    for _ in range(3):
        with contextlib.suppress(KeyError), streams.place("alice"):
            with pytest.raises(HttpError, match="you follow 1 files") as refusal, streams.place("alice"):
                pass
            assert refusal.value.status == 429
            with streams.place("bob"), pytest.raises(HttpError, match="2 streams are open"), streams.place("carol"):
                pass
            raise KeyError
    with streams.place(None), streams.place(None):
        pass  # without tokens nobody is told from others


def test_a_service_without_tokens_asks_for_none(root, tmp_path):
    tokens, headers = make_tokens(tmp_path, bob=["read"])
    with local_client(root) as client:
        assert client.post(f"{LOCAL}/v1/jobs/a:pause", json={}).status_code == 202
    with token_client(root, tokens) as client:
        assert client.post("/v1/jobs/a:pause", json={}).headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/jobs/a:pause", json={}, headers=headers["bob"]).json()["code"] == "scope"
