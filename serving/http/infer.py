"""``POST …/infer``: the one route that must be quick, so it is plain ASGI.

FastAPI's own routing and request and response objects take 0.08 ms, as much as checking and converting a tensor of JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from serving.http.binary import HEADER
from serving.http.bodies import Bodies, Gone, SlowBodyError, check_encoding
from serving.http.problems import error_response, internal_error, not_found, refusal_response
from serving.http.protocol import Target, answer_parts, read_call
from serving.runtime.requests import InferAnswer, RefusalKind, Refused
from serving.runtime.service import Service
from serving.table import Table

_HEADER = HEADER.lower().encode()
_READ = frozenset({_HEADER, b"content-length", b"content-encoding"})


class InferRoute:
    """Answers inference requests.

    Args:
        service: What answers them.
        bodies: What reads them.
        latency_ms: The limit of requests that give none, None for none.
        max_rows: In one request.
        count: Called with the status of each answer.
    """

    def __init__(
        self, service: Service, bodies: Bodies, *, latency_ms: float | None, max_rows: int, count: Callable[[int], None]
    ) -> None:
        self._service = service
        self._bodies = bodies
        self._latency_ms = latency_ms
        self._max_rows = max_rows
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send, *, model: str, version: str | None) -> None:
        """Answer one request to a model, or to one version of it."""
        try:
            body, headers = await self._answer(scope, receive, model, version)
        except Gone:
            return
        except Refused as refused:
            response = refusal_response(refused)
        except SlowBodyError:
            response = error_response(408, "timeout", "the body did not come in time", {"Connection": "close"})
        except Exception:  # noqa: BLE001 - the border: what is our fault becomes a line, with the trace in the log
            response = internal_error()
        else:
            self._count(200)
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        self._count(response.status_code)
        await response(scope, receive, send)

    async def _answer(
        self, scope: Scope, receive: Receive, model: str, version: str | None
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        body = await self._bodies.read(receive, headers.get(b"content-length"))
        try:
            received = time.monotonic()
            check_encoding(headers.get(b"content-encoding"))
            call = read_call(body, headers.get(_HEADER), self._target(model, version), received)
            answer = await _unless_gone(receive, self._service.answer(call.request))
            return answer_parts(answer, call)
        finally:
            self._bodies.forget(body)

    def _target(self, model: str, version: str | None) -> Target:
        table = find_table(self._service, model)
        tasks = table.family.task_names if version is None else find_tasks(table, version)
        return Target(family=table.family, tasks=tasks, version=version, latency_ms=self._latency_ms, max_rows=self._max_rows)


def find_table(service: Service, model: str) -> Table:
    """Return what is served of a model; raises Refused if there is none of that name, or nothing is known yet."""
    families = service.families
    if model in families:
        return service.table(model)
    if not families:
        raise Refused(RefusalKind.NOT_READY, "not_ready", "the service is starting; try again")
    raise not_found("unknown_model", f"there is no model {model[:100]!r}; there is {', '.join(families)}")


def find_tasks(table: Table, version: str) -> tuple[str, ...]:
    """Return what a version of a model answers; raises Refused if there is no such version."""
    place = table.index.get(version)
    if place is None:
        of_name = [variant.id for variant in table.variants if variant.name == version]
        hint = f"; variant {version!r} has the id {of_name[0]}" if of_name else ""
        raise not_found(
            "unknown_version",
            f"model {table.family.name!r} has no version {version[:100]!r} that is served here; it takes ids of variants{hint}",
        )
    return table.variants[place].tasks


async def _unless_gone(receive: Receive, work: Awaitable[InferAnswer]) -> InferAnswer:
    """Wait for an answer, and give it up if the client goes away first; raises Gone."""
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None, "routes run in tasks"
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        await receive()  # behind a whole body comes only the end of the connection
        is_gone = True
        task.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not is_gone:
            raise
        task.uncancel()
        raise Gone from None
    finally:
        watcher.cancel()
