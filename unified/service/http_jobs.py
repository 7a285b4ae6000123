"""Routes about single jobs: what there is, what happens to them, and what one can ask of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from unified.job_state import JobState
from unified.queue.errors import UnknownJobError
from unified.queue.records import JobRow
from unified.queue.verbs import Outcome, Queue
from unified.service.http_auth import Identity
from unified.service.http_context import Reader, Submitter, TheQueue, context_of, problems
from unified.service.http_models import (
    JobDetails,
    JobPage,
    MetricRows,
    Transitions,
    VerbAnswer,
    job_details,
    job_model,
    transition_model,
)
from unified.service.http_streams import EventsResponse, Following, file_pieces, last_lines
from unified.summary import finite

router = APIRouter(tags=["jobs"])

MAX_WAIT_SECONDS = 30.0  #: for which a verb may hold a connection

_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "As asked for."}}


@router.get("/v1/jobs", responses=problems(422))
def list_jobs(
    queue: TheQueue,
    identity: Reader,
    state: Annotated[list[JobState] | None, Query(description="Only jobs in this state; may be given several times.")] = None,
    user: Annotated[str | None, Query(description="Only this user's jobs, for an operator.")] = None,
    cursor: Annotated[str | None, Query(description="From the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    newest: bool = False,
) -> JobPage:
    """List jobs in the order of their submission, or the newest first."""
    if identity.sees is not None and user not in {None, identity.sees}:
        return JobPage(jobs=[], cursor=None)
    page = queue.list(
        states=tuple(state or ()),
        user=user if identity.sees is None else identity.sees,
        cursor=cursor,
        limit=limit,
        newest_first=newest,
    )
    return JobPage(jobs=[job_model(row, queue.reason(row)) for row in page.jobs], cursor=page.cursor)


@router.get("/v1/jobs/{job}", responses=problems(404, 409))
def show_job(queue: TheQueue, identity: Reader, job: str) -> JobDetails:
    """Show a job with what was submitted, its checkpoints and its attempts."""
    row = queue.get(job, user=identity.sees)
    return job_details(row, queue.reason(row), queue.store.checkpoints(row.id), queue.store.transitions(row.id))


@router.get("/v1/jobs/{job}/transitions", responses=problems(404, 409))
def list_transitions(queue: TheQueue, identity: Reader, job: str) -> Transitions:
    """List every change of a job's state."""
    row = queue.get(job, user=identity.sees)
    return Transitions(transitions=[transition_model(move) for move in queue.store.transitions(row.id)])


class VerbOptions(BaseModel):
    """How to carry out a verb."""

    model_config = ConfigDict(extra="forbid")

    wait_seconds: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0.0


class RequeueOptions(VerbOptions):
    """How to queue a job again."""

    from_scratch: bool = False


_VERB_RESPONSES = problems(404, 408, 409, 413, 415) | {
    202: {"model": VerbAnswer, "description": "Asked for; the supervisor does it."}
}


def _add_verb(name: str, text: str) -> None:
    async def steer(
        request: Request,
        queue: TheQueue,
        identity: Submitter,
        job: str,
        options: Annotated[VerbOptions | None, Body()] = None,
    ) -> JSONResponse:
        wait = (options or VerbOptions()).wait_seconds
        verb: Callable[..., Outcome] = getattr(queue, name)
        ask = partial(verb, job, by=identity.by, user=identity.sees, wait_seconds=wait or None)
        # Those that wait have threads of their own, so that they keep nobody else waiting.
        outcome = await to_thread.run_sync(ask, limiter=context_of(request).waiters if wait else None)
        return await to_thread.run_sync(_verb_answer, queue, outcome)

    steer.__doc__ = text
    router.post(f"/v1/jobs/{{job}}:{name}", response_model=VerbAnswer, responses=_VERB_RESPONSES, name=f"{name}_job")(steer)


for _name, _text in {
    "pause": "Set a job aside; its memory is free when it is PAUSED.",
    "resume": "Let a paused job wait for a slot again, in its old place.",
    "cancel": "End a job; it is CANCELLED when it is off its slot.",
    "checkpoint": "Save a job's state at its next step.",
}.items():
    _add_verb(_name, _text)


@router.post("/v1/jobs/{job}:requeue", response_model=VerbAnswer, responses=_VERB_RESPONSES)
def requeue_job(
    queue: TheQueue, identity: Submitter, job: str, options: Annotated[RequeueOptions | None, Body()] = None
) -> JSONResponse:
    """Queue a job again that failed, was given up or cancelled, with all its tries."""
    chosen = options or RequeueOptions()
    outcome = queue.requeue(job, by=identity.by, user=identity.sees, from_scratch=chosen.from_scratch)
    return _verb_answer(queue, outcome)


def _verb_answer(queue: Queue, outcome: Outcome) -> JSONResponse:
    answer = VerbAnswer(job=job_model(outcome.job, queue.reason(outcome.job)), done=outcome.done, text=outcome.text)
    return JSONResponse(answer.model_dump(mode="json", by_alias=True), status_code=200 if outcome.done else 202)


@router.get("/v1/jobs/{job}/logs", response_class=Response, responses=problems(404, 429, 503) | _EVENTS)
def read_log(
    request: Request,
    queue: TheQueue,
    identity: Reader,
    job: str,
    follow: Annotated[bool, Query(description="As server-sent events, until the job has ended.")] = False,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only so many last lines.")] = None,
    last_event_id: Annotated[str, Header(max_length=60)] = "",
) -> Response:
    """Return a job's log as text or, with ``follow``, line by line as it is written."""
    row = queue.get(job, user=identity.sees)
    path = queue.root.log(row.id)
    if follow:
        return _events(request, queue, identity, row, path, last_event_id, lambda line: line)
    if tail is not None:
        return Response(last_lines(path, tail), media_type="text/plain; charset=utf-8")
    return StreamingResponse(file_pieces(path), media_type="text/plain; charset=utf-8")


@router.get(
    "/v1/jobs/{job}/metrics",
    response_model=MetricRows,
    responses=problems(404, 429, 503) | {200: {"content": {"text/event-stream": {}}, "description": "As asked for."}},
)
def read_metrics(
    request: Request,
    queue: TheQueue,
    identity: Reader,
    job: str,
    since: Annotated[int, Query(ge=0, description="From this step on.")] = 0,
    follow: Annotated[bool, Query(description="As server-sent events, until the job has ended.")] = False,
    last_event_id: Annotated[str, Header(max_length=60)] = "",
) -> Response:
    """Return a job's metrics over time or, with ``follow``, row by row as they are measured."""
    row = queue.get(job, user=identity.sees)
    if not follow:
        rows = [_shown_row(each, identity) for each in queue.metrics(row.id, since)]
        return JSONResponse(MetricRows(rows=rows).model_dump(mode="json", by_alias=True))

    def wanted(line: str) -> str | None:
        try:
            found = json.loads(line)
        except ValueError:  # torn by a kill; the writer goes on behind it
            return None
        is_wanted = isinstance(found, dict) and found.get("step", 0) >= since
        return json.dumps(_shown_row(found, identity)) if is_wanted else None

    return _events(request, queue, identity, row, queue.root.metrics(row.id), last_event_id, wanted)


def _shown_row(row: dict[str, Any], identity: Identity) -> dict[str, Any]:
    """Return a row of metrics as JSON allows; whose jobs were beside it is the operator's to know."""
    company = row.get("company")
    if isinstance(company, list):
        row = row | {"num_company": len(company)}
        if not identity.is_operator:
            del row["company"]
    return finite(row)


def _events(
    request: Request,
    queue: Queue,
    identity: Identity,
    row: JobRow,
    path: Path,
    mark: str,
    wanted: Callable[[str], str | None],
) -> EventsResponse:
    context = context_of(request)

    def state() -> JobState | None:
        try:
            return queue.store.get(row.id).state
        except UnknownJobError:
            return None

    following = Following(path=path, mark=mark, wanted=wanted, state=state, is_stopping=context.is_stopping)
    return EventsResponse(context.streams, identity.user, following)
