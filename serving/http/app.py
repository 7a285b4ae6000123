"""The HTTP API over a service, as an ASGI app: FastAPI's routes, and before them the one for inference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.binary import EXTENSION
from serving.http.bodies import Bodies
from serving.http.guard import Guard
from serving.http.infer import InferRoute, find_table, find_tasks
from serving.http.listing import variants_of
from serving.http.metrics import CONTENT_TYPE, Metrics
from serving.http.page import read_page
from serving.http.problems import error_response, internal_error, refusal_response
from serving.http.protocol import model_metadata, server_metadata
from serving.runtime.requests import Refused
from serving.runtime.service import Service

EXTENSIONS = (EXTENSION, "variant_selection")
_MODELS = "/v2/models/"


def make_app(
    service: Service,
    *,
    version: str,
    latency_ms: float | None = None,
    max_rows: int = 256,
    max_body_bytes: int = 1 << 24,
    is_local: bool = True,
    is_stopping: Callable[[], bool] = lambda: False,
) -> ASGIApp:
    """Return the app.

    Args:
        service: What answers requests.
        version: Of this server, for clients.
        latency_ms: The limit of requests that give none, None for none.
        max_rows: In one request.
        max_body_bytes: Of one request.
        is_local: It is listened to on a loopback address, so only this machine's own programs may ask.
        is_stopping: Whether connections are to end with their answer.
    """
    metrics = Metrics(service)
    infer = InferRoute(
        service, Bodies(max_bytes=max_body_bytes), latency_ms=latency_ms, max_rows=max_rows, count=metrics.count_response
    )
    app = FastAPI(title="unified", version=version, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_health(app, service)
    _add_models(app, service)
    _add_ours(app, service, metrics)
    _add_problems(app)

    @app.get("/v2")
    async def metadata() -> Response:
        return _json(server_metadata(version, EXTENSIONS))

    return Guard(_InferFirst(app, infer), is_local=is_local, is_stopping=is_stopping)


class _InferFirst:
    """Leads inference requests to their route and all others to the app."""

    def __init__(self, app: ASGIApp, infer: InferRoute) -> None:
        self._app = app
        self._infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = _infer_path(scope["path"]) if scope["type"] == "http" else None
        if named is None:
            await self._app(scope, receive, send)
        elif scope["method"] != "POST":
            response = error_response(405, "method", f"expected POST, got {scope['method']}", {"Allow": "POST"})
            await response(scope, receive, send)
        else:
            await self._infer(scope, receive, send, model=named[0], version=named[1])


def _infer_path(path: str) -> tuple[str, str | None] | None:
    """Return the model and version that an inference request names, None if it is another path."""
    if not (path.startswith(_MODELS) and path.endswith("/infer")):
        return None
    match path.removeprefix(_MODELS).split("/"):
        case [model, "infer"]:
            return model, None
        case [model, "versions", version, "infer"]:
            return model, version
    return None


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/v2/health/live")
    async def live() -> Response:
        return _health(service, is_good=service.is_live())

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return _health(service, is_good=service.is_ready())


def _health(service: Service, *, is_good: bool) -> Response:
    # The text of OIP shows "live" as the body of both, its OpenAPI document none.
    return _json({"live": service.is_live(), "ready": service.is_ready()}, 200 if is_good else 503)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v2/models/{model}")
    async def of_model(model: str) -> Response:
        table = find_table(service, model)
        return _json(model_metadata(table.family, table.index, table.family.task_names))

    @app.get("/v2/models/{model}/versions/{version}")
    async def of_version(model: str, version: str) -> Response:
        table = find_table(service, model)
        return _json(model_metadata(table.family, table.index, find_tasks(table, version)))

    @app.get("/v2/models/{model}/ready")
    async def model_ready(model: str) -> Response:
        return _ready(find_table(service, model).family.name)

    @app.get("/v2/models/{model}/versions/{version}/ready")
    async def version_ready(model: str, version: str) -> Response:
        find_tasks(find_table(service, model), version)
        return _ready(model)

    def _ready(model: str) -> Response:
        is_ready = service.is_ready(model)
        return _json({"name": model, "ready": is_ready}, 200 if is_ready else 503)


def _add_ours(app: FastAPI, service: Service, metrics: Metrics) -> None:
    page, page_headers = read_page()

    @app.get("/v2/models")
    async def models() -> Response:
        return _json({"models": list(service.families)})

    @app.get("/v2/models/{model}/variants")
    async def variants(model: str) -> Response:
        return _json(variants_of(find_table(service, model), service.status().residents))

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/")
    async def index() -> Response:
        return Response(page, headers=page_headers, media_type="text/html; charset=utf-8")


def _add_problems(app: FastAPI) -> None:
    """Say everything that is wrong in OIP's form, also where FastAPI has a form of its own."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal_response(error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_path", 405: "method"}.get(error.status_code, "http")
        message = f"{error.detail}: {request.method} {request.url.path[:200]}"
        return error_response(error.status_code, code, message, error.headers)

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> Response:
        return internal_error()


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(content).encode(), status, headers=headers, media_type="application/json")
