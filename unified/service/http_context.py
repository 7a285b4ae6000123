"""What every route needs: the queue, who asks, and what they may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from unified.queue.verbs import Queue
from unified.service.http_auth import LOCAL, Identity, Scope, TokenFileError, Tokens
from unified.service.http_models import ProblemDetail
from unified.service.http_problems import HttpError
from unified.service.http_streams import Streams
from unified.service.prometheus import EndedJobs

bearer = HTTPBearer(auto_error=False, description="A token of the token file; none is needed without one.")


@dataclass(slots=True, kw_only=True)
class Context:
    """What the app works with.

    Attributes:
        queue: The queue; None until the app starts and after it ends.
        tokens: Who may come in; None: this machine's people, without a token.
        is_stopping: Whether the process is about to end, so that streams end too.
        streams: What is being followed.
        waiters: Threads for requests that wait for the supervisor.
        ended: What was seen of jobs that have ended, for ``/metrics``.
    """

    tokens: Tokens | None
    queue: Queue | None = None
    is_stopping: Callable[[], bool] = field(default=lambda: False)
    streams: Streams = field(default_factory=Streams)
    waiters: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(100))
    ended: EndedJobs = field(default_factory=EndedJobs)


def context_of(request: Request) -> Context:
    """Return what the app that answers this request works with."""
    return request.app.state.context


def queue_of(request: Request) -> Queue:
    """Return the queue that this request is about."""
    queue = context_of(request).queue
    if queue is None:
        raise HttpError(503, "starting", "Not ready", "the service starts or ends; try again", {"Retry-After": "1"})
    return queue


def identify(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Identity:
    """Return who asks.

    Raises:
        HttpError: Without a token that the token file knows.
    """
    tokens = context_of(request).tokens
    if tokens is None:
        return LOCAL
    try:
        identity = tokens.identify(credentials.credentials) if credentials else None
    except TokenFileError as error:
        raise HttpError(503, "token-file", "Nobody is let in", str(error)) from error
    if identity is None:
        detail = "expected the header 'Authorization: Bearer TOKEN' with a token that this service knows"
        raise HttpError(401, "unauthorized", "Who are you?", detail, {"WWW-Authenticate": "Bearer"})
    return identity


def _needs(scope: Scope) -> Callable[[Identity], Identity]:
    def check(identity: Annotated[Identity, Depends(identify)]) -> Identity:
        if not identity.may(scope):
            detail = f"this needs a token with the scope {scope}; yours has {', '.join(sorted(identity.scopes))}"
            raise HttpError(403, "scope", "Not allowed with this token", detail)
        return identity

    return check


#: Somebody who may see jobs, or hand them in and steer them.
Reader = Annotated[Identity, Depends(_needs(Scope.READ))]
Submitter = Annotated[Identity, Depends(_needs(Scope.SUBMIT))]
Anybody = Annotated[Identity, Depends(identify)]
TheQueue = Annotated[Queue, Depends(queue_of)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI is told of the errors of a route."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetail"}}}
    return {status: {"description": _TITLES[status], "content": content} for status in (401, 403, *statuses)}


#: Named here so that OpenAPI has the schema that :func:`problems` refers to.
PROBLEM_MODEL = ProblemDetail

_TITLES = {
    401: "No token, or one that is not known",
    403: "Not allowed with this token",
    404: "No such job, or another user's",
    408: "The body did not come in time",
    409: "Not possible in the present state",
    411: "The length is missing",
    413: "Too large, or over a limit",
    415: "Another content type is expected",
    416: "No such range",
    422: "Not valid, with everything that is wrong",
    429: "Too many of yours at a time",
    503: "Not now",
    507: "The disk is full",
}
