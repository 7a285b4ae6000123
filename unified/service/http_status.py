"""Routes about the service as a whole: slots, timeline, schedulers, who asks, health and numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from schedulers import registry
from unified.job_state import ENDED, RESIDENT
from unified.queue.errors import UnknownJobError
from unified.queue.verbs import Queue
from unified.service import prometheus
from unified.service.http_auth import Identity
from unified.service.http_context import Anybody, Reader, TheQueue, context_of, problems
from unified.service.http_models import (
    Health,
    Readiness,
    SchedulerItem,
    Schedulers,
    Slot,
    Slots,
    Timeline,
    Turn,
    WhoAmI,
    utc,
)
from unified.service.http_streams import last_lines

router = APIRouter(tags=["service"])

MAX_TURNS = 20_000
STALE_SECONDS = 15.0  #: a supervisor that has said nothing for so long is stuck


@router.get("/v1/slots", responses=problems())
def list_slots(queue: TheQueue, identity: Reader) -> Slots:
    """Show the slots with their members, and the memory."""
    status = queue.status() or {}
    return Slots(
        is_served=bool(status),
        scheduler=status.get("scheduler"),
        device=status.get("device"),
        version=status.get("version"),
        time=utc(status["time"]) if "time" in status else None,
        slots=[_slot(queue, identity, slot) for slot in status.get("slots", ())],
        memory_bytes=status.get("memory_bytes"),
        memory_total_bytes=status.get("memory_total_bytes"),
        utilisation=status.get("utilisation"),
        queued=status.get("queued", 0),
        disk_free_bytes=status.get("disk_free_bytes"),
        is_draining=bool(status.get("is_draining")),
    )


def _slot(queue: Queue, identity: Identity, slot: Mapping[str, Any]) -> Slot:
    residents, running = list(slot.get("residents") or ()), slot.get("running")
    return Slot(
        index=slot["index"],
        device=str(slot.get("device", "")),
        threads=slot.get("threads"),
        state=str(slot.get("state", "")),
        running=running if running and _is_seen(queue, identity, running) else None,
        residents=[job for job in residents if _is_seen(queue, identity, job)],
        num_residents=len(residents),
        is_busy=running is not None,
        memory_bytes=slot.get("memory_bytes"),
    )


def _is_seen(queue: Queue, identity: Identity, job: str) -> bool:
    if identity.sees is None:
        return True
    try:
        return queue.store.get(job).user == identity.sees
    except UnknownJobError:
        return False


@router.get("/v1/timeline", responses=problems())
def read_timeline(
    queue: TheQueue,
    identity: Reader,
    since: Annotated[float, Query(ge=0, description="Only turns that ended later, in seconds since 1970.")] = 0.0,
) -> Timeline:
    """Return the latest turns of jobs on slots."""
    turns: list[Turn] = []
    for line in last_lines(queue.root.timeline, MAX_TURNS).split(b"\n"):
        try:
            turn = Turn.model_validate(json.loads(line))
        except ValueError:  # torn by a kill; the writer goes on behind it
            continue
        if turn.end >= since and identity.sees in {None, turn.user}:
            turns.append(turn)
    return Timeline(turns=turns)


@router.get("/v1/schedulers", responses=problems())
def list_schedulers(queue: TheQueue, identity: Reader) -> Schedulers:
    """List the schedulers that there are."""
    items = [SchedulerItem(name=name, help=text) for name, text in registry.available().items()]
    return Schedulers(schedulers=items, current=(queue.status() or {}).get("scheduler"))


@router.get("/v1/whoami", responses=problems())
def who_am_i(identity: Anybody) -> WhoAmI:
    """Say whose token this is and what it allows."""
    return WhoAmI(user=identity.user or "", scopes=sorted(identity.scopes), is_operator=identity.is_operator)


@router.get("/healthz")
async def is_healthy() -> Health:
    """Say that the process lives."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready."}})
def is_ready(queue: TheQueue) -> JSONResponse:
    """Say whether the store can be written, a supervisor holds the root, and its ticks are fresh."""
    checks = {"store": _store_check(queue)} | _supervisor_checks(queue.status(), time.time())
    answer = Readiness(ready=all(text == "ok" for text in checks.values()), checks=checks)
    return JSONResponse(answer.model_dump(mode="json"), status_code=200 if answer.ready else 503)


def _store_check(queue: Queue) -> str:
    try:
        queue.store.check()
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being written is what is asked for
        return f"cannot be written: {type(error).__name__}"
    return "ok"


def _supervisor_checks(status: Mapping[str, Any] | None, now: float) -> dict[str, str]:
    if status is None:
        return {"supervisor": "none runs"}
    age = now - status.get("time", 0.0)
    late = ", ".join(status.get("late") or ())
    return {
        "supervisor": "is draining" if status.get("is_draining") else "ok",
        "status": "ok" if abs(age) < STALE_SECONDS else f"is {age:.0f} s old",
        "ticks": f"late: {late}" if late else "ok",
    }


@router.get("/metrics", response_class=Response, responses=problems() | {200: {"content": {"text/plain": {}}}})
def read_numbers(request: Request, queue: TheQueue, identity: Reader) -> Response:
    """Return the service's numbers for Prometheus; of jobs on slots, those that the token sees."""
    store, ended = queue.store, context_of(request).ended
    counts = store.counts()
    with ended.lock:
        if ended.is_behind(counts):
            ended.look(store.jobs(states=tuple(ENDED)))
        live = store.jobs(states=tuple(RESIDENT), user=identity.sees)
        numbers = prometheus.Numbers(counts=counts, live=live, ended=ended, status=queue.status())
        return Response(prometheus.exposition(numbers), media_type=prometheus.CONTENT_TYPE)
