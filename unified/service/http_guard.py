"""What stands between the network and the routes: checks on where a request comes from, and headers on every answer.

Without tokens the service trusts everybody on this machine, and a browser on this machine runs other people's pages. So a
request must name this machine as its host (else a page could reach us by a name of its own that leads here), and what
changes something must carry a content type and a source that no page of another site can send without being asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unified.service.http_problems import problem_response
from unified.service.loopback import is_loopback_host

_SAFE = {"GET", "HEAD", "OPTIONS"}
_POST_TYPES = ("application/json", "application/zip")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI layer around the app.

    Args:
        app: What it stands before.
        is_local: Nobody needs a token, so only this machine's own people may come through.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool) -> None:
        self._app = app
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        if self._is_local and not is_loopback_host(headers.get("host", "")):
            detail = f"expected this machine as the host, such as 127.0.0.1, got {headers.get('host', '')!r}"
            return problem_response(421, "host", "Not served under this name", detail)
        if method in _SAFE:
            return None
        if self._is_local and _is_foreign(headers):
            detail = "this comes from a page of another site; without a token only this machine's own programs may write"
            return problem_response(403, "cross-site", "Refused", detail)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind not in _POST_TYPES:
            detail = f"expected Content-Type {' or '.join(_POST_TYPES)}, got {kind!r}; an empty JSON body is {{}}"
            return problem_response(415, "content-type", "Unsupported content type", detail)
        return None


def _is_foreign(headers: Headers) -> bool:
    """Return whether a browser says that a page of another origin is behind the request; programs say nothing."""
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return True
    origin = headers.get("origin")
    return origin is not None and origin not in _own_origins(headers.get("host", ""))


def _own_origins(host: str) -> Iterable[str]:
    return (f"http://{host}", f"https://{host}")
