"""What stands between the network and the routes: checks on where a request comes from, and headers on every answer.

Without tokens the service trusts everybody on this machine, and a browser on this machine runs other people's pages. So a
request must name this machine as its host (else a page could reach us by a name of its own that leads here), and what
changes something must carry a content type and a source that no page of another site can send without being asked for.

FastAPI reads a body before it asks who sends it, so bodies are bounded here; routes that take large ones read them themselves.
"""

from __future__ import annotations

from typing import NoReturn

import anyio
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.loopback import is_foreign, is_loopback_host
from unified.service.http_context import bearer, identify
from unified.service.http_problems import HttpError, error_response, problem_response

MAX_BODY_BYTES = 1 << 16  #: of a POST that hands nothing in
BODY_SECONDS = 10.0  #: within which it must have come

_SAFE = {"GET", "HEAD", "OPTIONS"}
_LARGE_BODIES = "/v1/jobs"  #: the POST that reads its body itself, once it knows who sends it
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
        if refusal is None and scope["method"] == "POST" and scope["path"] != _LARGE_BODIES:
            try:
                receive = await _take_body(Request(scope, receive))
            except HttpError as error:
                refusal = error_response(error)
            except ClientDisconnect:
                return
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if self._is_local and not is_loopback_host(host):
            detail = f"expected this machine as the host, such as 127.0.0.1, got {host!r}"
            return problem_response(421, "host", "Not served under this name", detail)
        if method in _SAFE:
            return None
        if self._is_local and is_foreign(headers.get("sec-fetch-site"), headers.get("origin"), host):
            detail = "this comes from a page of another site; without a token only this machine's own programs may write"
            return problem_response(403, "cross-site", "Refused", detail)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind not in _POST_TYPES:
            detail = f"expected Content-Type {' or '.join(_POST_TYPES)}, got {kind!r}; an empty JSON body is {{}}"
            return problem_response(415, "content-type", "Unsupported content type", detail)
        return None


async def _take_body(request: Request) -> Receive:
    """Take the body of a request into memory, from somebody who is known, and return what gives it to the app.

    Raises:
        HttpError: If nobody is known to send it, or it is too large or does not come.
        ClientDisconnect: If the connection breaks meanwhile.
    """
    identify(request, await bearer(request))
    given = request.headers.get("content-length", "")
    if given.isdecimal() and int(given) > MAX_BODY_BYTES:
        _refuse_body()
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    _refuse_body()
    except TimeoutError:
        detail = f"expected the whole body within {BODY_SECONDS:g} s, got {len(body)} bytes"
        raise HttpError(408, "timeout", "The body did not come", detail, {"Connection": "close"}) from None
    messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await request.receive()

    return receive


def _refuse_body() -> NoReturn:
    detail = f"expected at most {MAX_BODY_BYTES} bytes; files go to POST {_LARGE_BODIES} or PUT /v1/uploads/SHA256"
    raise HttpError(413, "too-large", "Too large", detail, {"Connection": "close"})
