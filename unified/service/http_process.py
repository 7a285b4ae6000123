"""The process that answers HTTP: ``python -m unified.service.http_process ROOT HOST PORT [--token-file F] [--parent PID]``.

It is apart from the supervisor, so that no burst of requests delays a heartbeat, and it ends when its parent does.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServingError
from serving.http import listening
from serving.http.loopback import is_loopback_address
from unified.errors import UnifiedError

_PARENT_SECONDS = 0.5
_GRACE_SECONDS = 3  #: for answers that are under way
_ORPHAN_SECONDS = 2.0  #: within which a process whose parent is gone listens no more
_KEEP_ALIVE_SECONDS = 5  #: for a further request on a connection
_HEAD_SECONDS = 10.0  #: for the whole head of a further request, where its first bytes have come
_MAX_CONNECTIONS = 1000


class ListenError(UnifiedError):
    """The service cannot or must not listen there; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How to serve.

    Attributes:
        root: The queue's folder.
        host: Address to listen on.
        port: 0: any that is free.
        token_file: Who may come in; None: this machine's people.
        tls_cert: Certificate chain, for TLS.
        tls_key: Its key.
        parent: The process with which to end.
    """

    root: Path
    host: str
    port: int
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    parent: int | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parent = os.getppid()  # before the imports below, which take long enough for it to die meanwhile
    options = _parse(sys.argv[1:] if arguments is None else arguments, parent)
    try:
        listener = listen(options)
    except UnifiedError as error:
        sys.stderr.write(f"unified: {error}\n")
        return 1
    return _serve(options, listener)


def check_address(host: str, token_file: Path | None) -> None:
    """Refuse to be reached from other machines by people without tokens.

    Raises:
        ListenError: If ``host`` is not an address of this machine alone and there is no token file.
    """
    if token_file is not None:
        return
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host or "0.0.0.0", None)}
    except OSError as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror or error}") from error
    if not all(is_loopback_address(address) for address in addresses):
        raise ListenError(f"refusing to listen on {host} without --token-file")


def listen(options: HttpOptions) -> socket.socket:
    """Return the socket to serve on.

    Raises:
        ListenError: If that address must not or cannot be listened on.
    """
    check_address(options.host, options.token_file)
    try:
        return listening.listen(options.host, options.port)
    except ServingError as error:
        raise ListenError(str(error)) from error


def check_options(options: HttpOptions) -> None:
    """Make sure that the token file can be read and the address be listened on, by doing so for a moment.

    The HTTP process of a supervisor that was killed is given the time to notice.

    Raises:
        UnifiedError: If that address must not or cannot be listened on, or the token file cannot be used.
    """
    from unified.service.http_auth import Tokens

    check_address(options.host, options.token_file)
    if options.token_file is not None:
        Tokens(options.token_file)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            listen(options).close()
        except ListenError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PARENT_SECONDS / 2)
        else:
            return


def _serve(options: HttpOptions, listener: socket.socket) -> int:
    import uvicorn

    from serving.http.connections import ConnectionLimits, bounded_protocol
    from unified.queue.verbs import Queue
    from unified.service.http_app import make_app
    from unified.service.http_auth import Tokens
    from unified.service.http_problems import problem_response

    try:
        with Queue.open(options.root):
            pass  # now, as what is wrong with it could not be said in a line later
        tokens = None if options.token_file is None else Tokens(options.token_file)
        app = make_app(options.root, tokens=tokens)
    except UnifiedError as error:
        sys.stderr.write(f"unified: {error}\n")
        return 1
    config = uvicorn.Config(
        app,
        http=bounded_protocol(
            lambda detail: problem_response(400, "http", "No HTTP", detail, headers={"Connection": "close"}),
            ConnectionLimits(keep_alive_seconds=_HEAD_SECONDS),
        ),
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        ws="none",
    )
    server = uvicorn.Server(config)
    app.state.context.is_stopping = lambda: server.should_exit
    if options.parent is not None:
        threading.Thread(target=_end_with_parent, args=(options.parent, server), daemon=True).start()
    # uvicorn raises again what it was told to stop by; without these, that would make an error of a plain end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    scheme = "http" if options.tls_cert is None else "https"
    sys.stdout.write(f"listening on {listening.address_of(listener, scheme)}\n")
    sys.stdout.flush()
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _end_with_parent(parent: int, server: object) -> None:
    # By looking, not by the kernel's death signal: that comes when the thread ends that started us, not the process.
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    setattr(server, "should_exit", True)  # noqa: B010 - uvicorn is imported late
    time.sleep(2 * _GRACE_SECONDS)
    os._exit(1)


def _parse(arguments: Sequence[str], parent: int) -> HttpOptions:
    parser = argparse.ArgumentParser(prog="python -m unified.service.http_process", description="Serve a queue over HTTP.")
    parser.add_argument("root", type=Path)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--token-file", type=Path, help="lines made by python -m unified.service.http_auth new")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain (PEM)")
    parser.add_argument("--tls-key", type=Path, help="its key (PEM)")
    parser.add_argument(
        "--parent", type=int, default=parent, help="process with which to end; by default the one that starts it"
    )
    return HttpOptions(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: a thread may still wait for the supervisor on behalf of a client that is gone
