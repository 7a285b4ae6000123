"""How a client is told what is wrong: a status, and always the body ``{"error": "<code>: <message>"}``."""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import Response

from serving.runtime.requests import RefusalKind, Refused

_log = logging.getLogger(__name__)

STATUSES: Mapping[RefusalKind, int] = MappingProxyType(
    {
        RefusalKind.BAD_REQUEST: 400,
        RefusalKind.NOT_FOUND: 404,
        RefusalKind.MISHIT: 409,
        RefusalKind.TOO_LARGE: 413,
        RefusalKind.INTERNAL: 500,
        RefusalKind.BUSY: 503,
        RefusalKind.NOT_READY: 503,
        RefusalKind.DRAINING: 503,
    }
)

_SHOWN_CHARACTERS = 60
_RETRY_SECONDS = 1.0  #: where a refusal is for a while and does not say for how long


def bad_request(code: str, message: str) -> Refused:
    """Return the refusal of a request that has to be changed."""
    return Refused(RefusalKind.BAD_REQUEST, code, message)


def not_found(code: str, message: str) -> Refused:
    """Return the refusal of a request for what there is not."""
    return Refused(RefusalKind.NOT_FOUND, code, message)


def too_large(code: str, message: str) -> Refused:
    """Return the refusal of a request that is over a limit."""
    return Refused(RefusalKind.TOO_LARGE, code, message)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer that says what is wrong; ``headers`` go with it."""
    content = json.dumps({"error": f"{code}: {message}"}).encode()
    return Response(content, status, headers=headers, media_type="application/json")


def no_http(message: str) -> Response:
    """Return the answer to bytes that are no HTTP."""
    return error_response(400, "http", message, {"Connection": "close"})


def refusal_response(refused: Refused) -> Response:
    """Return the answer to a request that is refused; a 503 says after how many seconds to try again."""
    status, headers = STATUSES[refused.kind], {}
    if status == 503:
        seconds = _RETRY_SECONDS if refused.retry_after is None else refused.retry_after
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return error_response(status, refused.code, refused.message, headers)


def internal_error() -> Response:
    """Return the answer to what is our fault, and log the exception that is being handled under the id in the answer."""
    key = secrets.token_hex(4)
    _log.exception("internal error %s", key)
    return error_response(500, "internal", f"something went wrong here; the server's log says what, under {key}")


def shown(value: object) -> str:
    """Return what a client sent as a short text for a message."""
    if isinstance(value, list | dict):  # never all of it: it may be a whole tensor
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
