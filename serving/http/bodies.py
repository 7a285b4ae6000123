"""The bodies of requests, in memory: none larger than a limit, and not too many bytes of all together."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from serving.http.problems import bad_request, shown, too_large
from serving.runtime.requests import RefusalKind, Refused

BODY_SECONDS = 30.0  #: within which a body must have come


class Gone(Exception):  # noqa: N818 - no error: there is just nobody left to tell
    """The client went away."""


class SlowBodyError(Exception):
    """A body did not come in time."""


class Bodies:
    """Reads bodies, and keeps count of the bytes of those that are being read or answered.

    Args:
        max_bytes: Of one body.
        max_total_bytes: Of all that are in memory at a time; beyond that a request is refused for a while.
        seconds: Within which a body must have come.
    """

    def __init__(self, *, max_bytes: int, max_total_bytes: int | None = None, seconds: float = BODY_SECONDS) -> None:
        self.max_bytes = max_bytes
        self.max_total_bytes = 16 * max_bytes if max_total_bytes is None else max_total_bytes
        self.num_bytes = 0  #: in memory now
        self._seconds = seconds

    async def read(self, receive: Receive, length: str | None) -> bytearray:
        """Return a whole body, whose bytes count until :meth:`forget`.

        Args:
            receive: ASGI's.
            length: The request's ``Content-Length``, None if it has none.

        Raises:
            Refused: If it is too large, or too much is in memory.
            SlowBodyError: If it does not come in time.
            Gone: If the client goes away meanwhile.
        """
        # by its digits first: Python reads no number of thousands of them
        if length is not None and length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self.max_bytes):
            raise self._too_large(length)
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while await self._take(receive, body):
                    pass
        except TimeoutError:
            self.forget(body)
            raise SlowBodyError from None
        except BaseException:
            self.forget(body)
            raise
        return body

    def forget(self, body: bytearray) -> None:
        """Count a body no longer: its request is over."""
        self.num_bytes -= len(body)

    async def _take(self, receive: Receive, body: bytearray) -> bool:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > self.max_bytes:
            raise self._too_large(None)
        if self.num_bytes + len(chunk) > self.max_total_bytes:
            raise Refused(RefusalKind.BUSY, "too_many_bytes", "too many bytes of other requests are in memory; try again")
        body += chunk
        self.num_bytes += len(chunk)
        return message.get("more_body", False)

    def _too_large(self, length: str | None) -> Refused:
        given = "" if length is None else f", got {length}"
        message = f"expected at most {self.max_bytes} bytes in a body{given}; send fewer rows, or tensors as bytes"
        return too_large("body_too_large", message)


def check_encoding(encoding: str | None) -> None:
    """Refuse a compressed body; raises Refused."""
    if encoding not in (None, "", "identity"):
        raise bad_request("header", f"expected no Content-Encoding, got {shown(encoding)}; send the body as it is")
