"""What stands before the routes: who may ask, how many at a time, and whether connections go on.

There is no authentication: a server on a loopback address trusts this machine's own people, any other is to be placed behind a
proxy. A browser on this machine runs other people's pages, so on a loopback address a request must name this machine as its
host (else a page could reach us by a name of its own that leads here) and must not come from a page of another site.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.loopback import is_foreign, is_loopback_host
from serving.http.problems import error_response

MAX_REQUESTS = 1000  #: that are being answered at a time

_CLOSE = (b"connection", b"close")


class Guard:
    """An ASGI layer around the app.

    Args:
        app: What it stands before.
        is_local: Only this machine's own programs may come through.
        is_stopping: Whether connections are to end with their answer, so that clients turn to another server.
        max_requests: That are being answered at a time; one more is told to try again.
    """

    def __init__(
        self, app: ASGIApp, *, is_local: bool, is_stopping: Callable[[], bool] = lambda: False, max_requests: int = MAX_REQUESTS
    ) -> None:
        self._app = app
        self._is_local = is_local
        self._is_stopping = is_stopping
        self._max_requests = max_requests
        self.num_requests = 0  #: that are being answered now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            if self._is_stopping() and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], _CLOSE]
            await send(message)

        self.num_requests += 1
        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_on)
        finally:
            self.num_requests -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        if self.num_requests > self._max_requests:
            detail = f"{self._max_requests} requests are being answered; try again"
            return error_response(503, "too_many_requests", detail, {"Retry-After": "1"})
        if not self._is_local:
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        host = headers.get(b"host", "")
        if not is_loopback_host(host):
            return error_response(421, "host", f"expected this machine as the host, such as 127.0.0.1; got {host[:100]!r}")
        if is_foreign(headers.get(b"sec-fetch-site"), headers.get(b"origin"), host):
            return error_response(403, "cross_site", "this comes from a page of another site; only this machine's own may ask")
        return None


_READ = frozenset({b"host", b"origin", b"sec-fetch-site"})
