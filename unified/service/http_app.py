"""The HTTP API over a queue, as a FastAPI app; ``python -m unified.service.http_app`` prints its OpenAPI document."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

import unified
from unified.queue.verbs import Queue
from unified.service import http_artifacts, http_jobs, http_status, http_submissions
from unified.service.http_auth import Tokens
from unified.service.http_context import Context
from unified.service.http_docs import docs_page
from unified.service.http_guard import Guard
from unified.service.http_models import ProblemDetail
from unified.service.http_problems import HttpError, add_problem_handlers

PAGE = Path(__file__).parent / "page"
_DESCRIPTION = (
    "Jobs that are never lost, over HTTP. Errors are application/problem+json with a short stable code. "
    "Times are RFC 3339 in UTC, sizes bytes, durations seconds. Every POST has a Content-Type; an empty JSON body is {}."
)


def make_app(root_path: str | Path, *, tokens: Tokens | None) -> FastAPI:
    """Return the app over the queue in a folder, which is opened when the app starts.

    Args:
        root_path: The queue's root.
        tokens: Who may come in; None: whoever names this machine as the host, so it must not listen to others.
    """
    context = Context(tokens=tokens)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with Queue.open(root_path) as queue:
            context.queue = queue
            yield
            context.queue = None

    app = FastAPI(
        title="unified",
        version=unified.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.context = context
    add_problem_handlers(app)
    # Submitting first: 'job.json' is no id, but '/v1/uploads' must not be taken for a job either.
    for part in (http_submissions, http_status, http_jobs, http_artifacts):
        app.include_router(part.router)
    _add_documents(app)
    _add_page(app)
    app.add_middleware(Guard, is_local=tokens is None)
    return app


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return what ``/openapi.json`` says."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    schemas.update(ProblemDetail.model_json_schema(ref_template="#/components/schemas/{model}").pop("$defs", {}))
    detail = ProblemDetail.model_json_schema(ref_template="#/components/schemas/{model}")
    detail.pop("$defs", None)
    schemas["ProblemDetail"] = detail
    # FastAPI's own form of a refused request, which add_problem_handlers replaces.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetail"}}}
    for path in document["paths"].values():
        for route in path.values():
            if "HTTPValidationError" in json.dumps(route["responses"].get("422", {})):
                route["responses"]["422"] = {"description": "Not valid, with everything that is wrong", "content": problem}
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _add_documents(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_document(app)
        return app.openapi_schema

    app.openapi = openapi  # pyrefly: ignore[bad-assignment] - FastAPI's own way to replace it
    app.get("/openapi.json", include_in_schema=False)(openapi)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs() -> str:
        return docs_page(openapi())


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False, response_class=Response)
    def index() -> Response:
        page = PAGE / "index.html"
        if not page.is_file():
            raise HttpError(404, "no-page", "There is no page", "this installation came without it; /docs lists the API")
        return FileResponse(page)

    app.mount("/static", StaticFiles(directory=PAGE, check_dir=False), name="static")


def main() -> int:
    """Print the OpenAPI document."""
    sys.stdout.write(json.dumps(openapi_document(make_app(".", tokens=None)), indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
