"""HTTP/1.1 connections: who brings no request does not keep others out, and what is no HTTP is answered like all else.

uvicorn waits for ever for the end of a request's head, and for readers who do not read, and counts them among its connections:
a thousand that say nothing shut everybody out. So whoever is not being answered has a deadline, and there is only so much room
for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What connections without a request under way may do.

    Attributes:
        head_seconds: How long a new one may take to bring the whole head of a request.
        keep_alive_seconds: How long one may take to bring the head of a further one.
        send_seconds: How long one may take nothing of what is left of its last answer.
        max_idle: How many there may be at a time; one more costs the oldest its place.
    """

    head_seconds: float = 10.0
    keep_alive_seconds: float = 60.0
    send_seconds: float = 60.0
    max_idle: int = 400


#: Gives the answer to bytes that are no HTTP, by what is wrong with them; the connection ends with it.
Refuse = Callable[[str], Response]


def bounded_protocol(refuse_as: Refuse, given: ConnectionLimits | None = None) -> type[H11Protocol]:
    """Return a protocol for one server, which closes connections that bring no request."""

    class Bounded(_Bounded):
        idle: dict[_Bounded, None] = {}  # noqa: RUF012 - of all connections of this server, the oldest first
        limits = given or ConnectionLimits()
        refuse = staticmethod(refuse_as)

    return Bounded


class _Bounded(H11Protocol):
    """A connection; see :func:`bounded_protocol`."""

    idle: dict[_Bounded, None]
    limits: ConnectionLimits
    refuse: Refuse
    _deadline: asyncio.TimerHandle | None = None
    _num_unsent: int | None = None  #: of the last answer, when that was last looked at

    def connection_made(self, transport: Any) -> None:
        """Expect a request."""
        super().connection_made(transport)
        self._expect(self.limits.head_seconds)

    def data_received(self, data: bytes) -> None:
        """Take what came; single bytes of a head prolong nothing."""
        super().data_received(data)
        if self._is_answering():
            self._relax()

    def on_response_complete(self) -> None:
        """Expect the next request; what is left of the body of this one prolongs nothing either."""
        super().on_response_complete()
        if not self._is_answering() and self in self.connections:
            self._expect(self.limits.keep_alive_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._relax()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
            self._abort()
            return
        answer = self.refuse(msg)
        for event in (
            h11.Response(status_code=answer.status_code, headers=answer.raw_headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self, seconds: float) -> None:
        self._relax()
        self.idle[self] = None
        self._num_unsent = None
        self._deadline = self.loop.call_later(seconds, self._pass_deadline)
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
