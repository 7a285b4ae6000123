"""Connections that bring no request: they have a deadline, and there is only so much room for them."""

import asyncio
import contextlib
import json
import resource

import uvicorn

from serving.http.connections import ConnectionLimits, bounded_protocol
from serving.http.listening import listen
from serving.http.problems import no_http
from serving.http.process import allow_files
from tests.unit.serving_runtime import run

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
FAR = 3600.0  #: a deadline that no test comes to


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def served(**limits):
    """A server with these limits; gives a function that connects to it."""
    given = ConnectionLimits(**({"head_seconds": FAR, "keep_alive_seconds": FAR} | limits))
    config = uvicorn.Config(answer, http=bounded_protocol(no_http, given), lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(server._serve(sockets=[listener]))  # without its handlers of signals

    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        server.should_exit = True
        server.force_exit = True
        await serving


async def ask(reader, writer):
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split()[1], await reader.readexactly(2)


async def has_ended(reader):
    """Wait for the end of a connection without a further byte."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


def test_who_brings_no_head_has_a_deadline_that_single_bytes_do_not_move():
    async def scenario():
        async with served(head_seconds=0.3) as connect:
            silent, _ = await connect()
            slow, writer = await connect()

            async def dribble():
                while True:
                    writer.write(b"x")
                    await asyncio.sleep(0.05)

            writer.write(b"GET / HTTP/1.1\r\nX: ")
            dribbling = asyncio.create_task(dribble())
            assert await has_ended(silent)
            assert await has_ended(slow)
            dribbling.cancel()
            await asyncio.wait([dribbling])

    run(scenario)


def test_a_connection_is_kept_for_further_requests_and_then_ends():
    async def scenario():
        async with served(keep_alive_seconds=0.3) as connect:
            reader, writer = await connect()
            for _ in range(3):
                assert await ask(reader, writer) == (b"200", b"ok")
            assert await has_ended(reader)

    run(scenario)


def test_the_oldest_idle_connection_makes_room():
    async def scenario():
        async with served(max_idle=2) as connect:
            first, _ = await connect()
            second = await connect()
            third = await connect()
            assert await has_ended(first)
            for reader, writer in (second, third):
                assert await ask(reader, writer) == (b"200", b"ok")

    run(scenario)


def test_what_is_no_http_is_refused_in_words():
    async def scenario():
        async with served() as connect:
            reader, writer = await connect()
            writer.write(b"\x00\x01\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.split()[1] == b"400"
            assert json.loads(body)["error"].startswith("http: ")

    run(scenario)


def test_the_server_may_open_as_many_files_as_it_lets_connections_in() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
        allow_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(4096, before[1]), before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
