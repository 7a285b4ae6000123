"""A socket to serve on."""

from __future__ import annotations

import os
import socket

from serving.errors import ServingError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket to serve on; raises ServingError if that address cannot be listened on."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        # By the number: Python adds the address again. What is negative is a resolver's, with words of its own.
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        raise ServingError(f"cannot listen on {host}:{port}: {why}; choose another --http") from error
    # asyncio sets this on sockets that it made itself only: without it, an answer in two parts takes 40 ms more.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL that a socket is reached at."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
