"""HTTP/1.1 for a service that strangers reach: who does not get to the point does not keep others from getting in.

uvicorn waits for ever for the end of a request's head, and counts who keeps it waiting among its connections: a thousand
that say nothing shut everybody out. So whoever is not being answered has a deadline, and there is only so much room for them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  #: within which a whole request head must come, after the connection or the last answer
SEND_SECONDS = 60.0  #: within which whoever is still fetching an answer must get on
MAX_IDLE = 400  #: connections without a request under way; then the oldest of them has to go


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What connections without a request under way may do.

    Attributes:
        head_seconds: How long one may take to bring the whole head of its next request.
        send_seconds: How long one may take nothing of what is left of its last answer.
        max_idle: How many there may be at a time; one more costs the oldest its place.
    """

    head_seconds: float = HEAD_SECONDS
    send_seconds: float = SEND_SECONDS
    max_idle: int = MAX_IDLE


def bounded_protocol(given: Limits | None = None) -> type[H11Protocol]:
    """Return a protocol for one server, which closes connections that bring no request."""

    class Bounded(_BoundedProtocol):
        idle: dict[_BoundedProtocol, None] = {}  # noqa: RUF012 - of all connections of this server, the oldest first
        limits = given or Limits()

    return Bounded


class _BoundedProtocol(H11Protocol):
    """A connection; see :func:`bounded_protocol`."""

    idle: dict[_BoundedProtocol, None]
    limits: Limits
    _deadline: asyncio.TimerHandle | None = None
    _num_unsent: int | None = None  #: of the last answer, when that was last looked at

    def connection_made(self, transport: Any) -> None:
        """Expect a request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Take what came; single bytes of a head prolong nothing."""
        super().data_received(data)
        if self._is_answering():
            self._relax()

    def on_response_complete(self) -> None:
        """Expect the next request; what is left of the body of this one prolongs nothing either."""
        super().on_response_complete()
        if not self._is_answering() and self in self.connections:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._relax()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        self._relax()
        self.idle[self] = None
        self._num_unsent = None
        self._deadline = self.loop.call_later(self.limits.head_seconds, self._pass_deadline)
        if len(self.idle) > self.limits.max_idle:
            # Those that are still fetching their answer are spared, if there are others.
            next((each for each in self.idle if not each.transport.get_write_buffer_size()), next(iter(self.idle)))._abort()

    def _relax(self) -> None:
        self.idle.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _pass_deadline(self) -> None:
        num_unsent = self.transport.get_write_buffer_size()
        if num_unsent and num_unsent != self._num_unsent:  # a slow reader, who is getting on
            self._num_unsent = num_unsent
            self._deadline = self.loop.call_later(self.limits.send_seconds, self._pass_deadline)
        else:
            self._abort()

    def _abort(self) -> None:
        self._relax()
        self.transport.abort()  # not closed: that would wait for a reader who does not read
