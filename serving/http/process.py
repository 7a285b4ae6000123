"""The process that serves: listens, starts the service, and on a signal drains it before it ends."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from serving.http.app import make_app
from serving.http.connections import bounded_protocol
from serving.http.listening import address_of
from serving.http.loopback import is_loopback_address
from serving.http.problems import no_http
from serving.runtime.service import Service

EXIT_DONE, EXIT_LOST, EXIT_INTERRUPTED = 0, 1, 130

_OPEN_FILES = 4096  #: connections with a request and without, and what the store and its variants take
_ECHO_SECONDS = 0.5  #: a signal to a process group and one passed on by its leader are one signal
_LINGER_SECONDS = 0.5  #: after the last answer: who is just asking on an open connection is refused, not cut off
_CLOSE_SECONDS = 3  #: for answers to get through when everything is done


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How to serve over HTTP.

    Attributes:
        version: Of this server, for clients.
        latency_ms: The limit of requests that give none, None for none.
        max_body_bytes: Of one request.
        drain_seconds: For accepted requests to be answered when the process is told to stop.
    """

    version: str = ""
    latency_ms: float | None = None
    max_body_bytes: int = 1 << 24
    drain_seconds: float = 30.0


def serve(
    service: Service,
    listener: socket.socket,
    options: HttpOptions,
    *,
    say: Callable[[str], None],
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Serve until a signal; return the exit code, 1 if accepted requests were left unanswered.

    SIGTERM or SIGINT drains: the server is not ready any more, finishes what it has accepted, and ends. A second one ends it at
    once.

    Args:
        service: Not started yet.
        listener: Of :func:`serving.http.listening.listen`.
        options: How.
        say: Told a line at a time what happens.
        prepare: What must be done before the service can start; in a thread, while the server says that it is not ready.

    Raises:
        ServingError: If the service cannot start.
    """
    allow_files()
    return asyncio.run(_serve(service, listener, options, say, prepare))


def allow_files() -> None:
    """Let the process open as many files as all connections need that are let in: the usual 1,024 are fewer.

    Without a file to spare no variant can be loaded, and asyncio logs each connection that waits, again and again.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(
    service: Service, listener: socket.socket, options: HttpOptions, say: Callable[[str], None], prepare: Callable[[], None]
) -> int:
    server = _Server(service, listener, options)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    starting = asyncio.create_task(_start(service, prepare))
    stopping = asyncio.create_task(server.told.wait())
    try:
        await asyncio.wait({starting, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            say("stopped before it was ready")
            os._exit(EXIT_INTERRUPTED)  # what prepares runs in a thread that cannot be told to stop
        await starting
        say(f"{_readiness(service)}: {_served(service)} on {address_of(listener)}; stop with Ctrl-C or SIGTERM")
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        say("draining")
        lost = await service.drain(options.drain_seconds)
        await asyncio.sleep(_LINGER_SECONDS)
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
    if lost:
        say(f"{lost} accepted requests were not answered within {options.drain_seconds:g} s")
        return EXIT_LOST
    say("drained: every accepted request was answered")
    return EXIT_DONE


async def _start(service: Service, prepare: Callable[[], None]) -> None:
    await asyncio.to_thread(prepare)
    await service.start()


def _served(service: Service) -> str:
    counts = {name: len(service.table(name)) for name in service.families}
    parts = [f"{name} ({count} variant{'s' if count > 1 else ''})" for name, count in counts.items()]
    return f"serves {', '.join(parts)}"


def _readiness(service: Service) -> str:
    lacking = [f"no variant answers {', '.join(tasks)} of {name}" for name, tasks in service.unanswerable.items()]
    return f"not ready ({'; '.join(lacking)})" if lacking else "ready"


class _Server(uvicorn.Server):
    """uvicorn, told to stop by us: it would close its sockets at once."""

    def __init__(self, service: Service, listener: socket.socket, options: HttpOptions) -> None:
        self.told = asyncio.Event()
        self._told_at: float | None = None
        self._loop = asyncio.get_running_loop()
        app = make_app(
            service,
            version=options.version,
            latency_ms=options.latency_ms,
            max_rows=service.options.max_request_rows,
            max_body_bytes=options.max_body_bytes,
            is_local=is_loopback_address(listener.getsockname()[0]),
            is_stopping=lambda: self._told_at is not None,
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(no_http),
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=3600,  # the protocol's own deadline comes first
                timeout_graceful_shutdown=_CLOSE_SECONDS,
                ws="none",
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal ends the process at once."""
        now = time.monotonic()
        if self._told_at is None:
            self._told_at = now
            self._loop.call_soon_threadsafe(self.told.set)
        elif now - self._told_at > _ECHO_SECONDS:
            os._exit(EXIT_INTERRUPTED)
        del sig, frame
