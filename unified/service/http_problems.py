"""Every error of the HTTP API in one form: ``application/problem+json`` (RFC 9457) with a short stable code."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.job_state import IllegalMoveError
from unified.queue.errors import (
    AmbiguousIdError,
    ConflictError,
    FencedError,
    QueueError,
    RefusedError,
    RootError,
    UnknownJobError,
)
from unified.queue.limits import DiskFullError
from unified.queue.store_queries import BadCursorError
from unified.service.http_models import ProblemDetail, ProblemItem

logger = logging.getLogger(__name__)

#: What a client is told, by what went wrong; the first that fits counts.
_STATUS: tuple[tuple[type[UnifiedError], int, str], ...] = (
    (InvalidSubmission, 422, "The submission is not valid"),
    (UnknownJobError, 404, "There is no such job"),
    (AmbiguousIdError, 409, "The id fits several jobs"),
    (ConflictError, 409, "Not possible in the present state"),
    (FencedError, 409, "The job changed meanwhile"),
    (IllegalMoveError, 409, "Not possible in the present state"),
    (BadCursorError, 400, "Not a cursor"),
    (DiskFullError, 507, "The disk is full"),
    (RefusedError, 413, "The submission is refused"),
    (RootError, 503, "The queue's folder cannot be used"),
)

#: For errors that have no words of their own.
_CODES = {400: "bad-request", 401: "unauthorized", 403: "forbidden", 404: "not-found", 405: "method-not-allowed"}


class HttpError(UnifiedError):
    """A request that cannot be answered; ``status``, ``title`` and ``code`` say why."""

    def __init__(self, status: int, code: str, title: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.headers = dict(headers or {})


def problem_response(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    problems: Iterable[ProblemItem] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return an error as a response."""
    body = ProblemDetail(type="about:blank", title=title, status=status, detail=detail, code=code, problems=list(problems))
    content = body.model_dump(mode="json")
    return JSONResponse(content, status_code=status, media_type="application/problem+json", headers=headers)


def error_response(error: HttpError) -> JSONResponse:
    """Return an error of a request as a response."""
    return problem_response(error.status, error.code, error.title, str(error), headers=error.headers)


def add_problem_handlers(app: FastAPI) -> None:
    """Let ``app`` answer all errors as problems."""
    app.exception_handler(UnifiedError)(_answer_unified_error)
    app.exception_handler(HTTPException)(_answer_http_exception)
    app.exception_handler(RequestValidationError)(_answer_invalid_request)
    app.exception_handler(SQLAlchemyError)(_answer_store_error)
    app.exception_handler(OSError)(_answer_system_error)
    app.exception_handler(ClientDisconnect)(_answer_nobody)
    app.exception_handler(Exception)(_answer_unexpected)


def _answer_unified_error(_: Request, error: Any) -> JSONResponse:
    if isinstance(error, HttpError):
        return error_response(error)
    found = ((status, title) for kind, status, title in _STATUS if isinstance(error, kind))
    status, title = next(found, (500, "The queue cannot do this now"))
    if isinstance(error, InvalidSubmission):
        detail = f"{len(error.problems)} problem{'s' if len(error.problems) != 1 else ''}: {error}"
        items = [problem_item(problem) for problem in error.problems]
        return problem_response(status, "invalid-submission", title, detail, problems=items)
    code = error.code if isinstance(error, QueueError) else "conflict" if status == 409 else "error"
    return problem_response(status, code, title, str(error))


def problem_item(problem: Problem) -> ProblemItem:
    """Return one thing that is wrong with a submission, as JSON has it."""
    return ProblemItem(
        code=problem.code,
        job=problem.job,
        field=problem.field,
        expected=problem.expected,
        given=problem.given,
        remedy=problem.remedy,
    )


def _answer_http_exception(_: Request, error: Any) -> JSONResponse:
    code = _CODES.get(error.status_code, "error")
    text = str(error.detail)
    return problem_response(error.status_code, code, text, text, headers=error.headers)


def _answer_invalid_request(_: Request, error: Any) -> JSONResponse:
    faults = [(".".join(map(str, item["loc"])), item["msg"], item.get("input")) for item in error.errors()]
    items = [
        ProblemItem(code="E-REQUEST", job="", field=where, expected=what, given=repr(came)[:200], remedy="see /docs")
        for where, what, came in faults
    ]
    detail = "; ".join(f"{where}: {what}" for where, what, _ in faults)
    return problem_response(422, "invalid-request", "The request is not valid", detail, problems=items)


def _answer_store_error(_: Request, error: Any) -> JSONResponse:
    logger.error("the store failed: %s", error)
    detail = "the store did not answer; nothing was changed; try again"
    return problem_response(503, "store", "The store is not available", detail, headers={"Retry-After": "2"})


def _answer_system_error(request: Request, error: Any) -> JSONResponse:
    if error.errno in {errno.EIO, errno.EROFS}:
        logger.error("the disk failed: %s", error)
        return problem_response(503, "disk", "The disk fails", "nothing was kept; the operator must look at the disk")
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return _answer_unexpected(request, error)
    return problem_response(507, "disk-full", "The disk is full", "nothing was kept; try again when there is room")


def _answer_nobody(_: Request, error: Any) -> JSONResponse:
    return problem_response(400, "disconnected", "The connection broke", "the body did not come whole")


def _answer_unexpected(_: Request, error: Exception) -> JSONResponse:
    logger.error("a request failed", exc_info=error)
    return problem_response(500, "internal", "Internal error", f"{type(error).__name__}; the service's log says more")
